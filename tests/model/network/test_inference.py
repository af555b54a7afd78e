"""The packed network is the same function as the modules, and no row of it depends on its company."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.network.decoder import Memory
from model.network.inference import InferenceNetwork
from model.network.kernels import library
from model.network.packed import PACKED
from model.network.recurrent import State
from model.network.seq2seq import Seq2Seq
from model.network.token_scores import BLOCK

native = pytest.mark.skipif(library() is None, reason="needs the kernels, and a processor with AVX-512 VNNI")

B, S, T = 5, 7, 4
LENS = [3, 7, 1, 7, 5]
TOLERANCE = {"fp32": 1e-5, "bf16": 0.1, "int8": 0.2}
VARIANTS = pytest.mark.parametrize(
    ("precision", "is_native"),
    [("fp32", False), ("bf16", False), ("int8", False), pytest.param("int8", True, marks=native)],
)


def make_network(config: ModelConfig) -> Seq2Seq:
    network = Seq2Seq(config).eval()
    torch.nn.init.normal_(network.decoder.output.bias)
    return network


def widened(config: ModelConfig) -> ModelConfig:
    """With widths that are multiples of 64: rows then fill whole vectors of the processor, and a row at the end of a
    batch is computed by the same instructions as one in its midst."""
    dims = {"embedding_dim": 64, "encoder_dim": 64, "decoder_dim": 192, "attention_dim": 64, "readout_dim": 192}
    if config.tie_embeddings != "none":
        dims["readout_dim"] = 64
    if config.attention == "dot":
        dims["decoder_dim"] = 128
    return replace(config, **dims)


def random_ids(*shape: int) -> Tensor:
    return torch.randint(4, 23, shape)


def entries(memory: Memory, index: Sequence[int], rows_each: int = 1) -> Memory:
    def of(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[list(index)]

    return Memory(of(memory.keys), of(memory.values), memory.mask[list(index)], of(memory.context), rows_each)


@torch.inference_mode()
def decode(packed: InferenceNetwork, memory: Memory, state: State, tgt_ids: Tensor) -> tuple[list[Tensor], State]:
    steps: list[Tensor] = []
    for ids in tgt_ids.t():
        scores, state, _ = packed.step(ids, state, (memory,))
        steps.append(scores.log_probs())
    return steps, state


@pytest.mark.parametrize("precision", sorted(PACKED))
def test_packed_network_is_the_function_of_the_modules(config: ModelConfig, precision: str) -> None:
    network = make_network(config)
    src_ids, tgt_ids = random_ids(B, S), random_ids(B, T)
    packed = InferenceNetwork(network, precision)
    steps, state = decode(packed, *packed.encode(src_ids, LENS), tgt_ids)
    memory, expected_state = network.encode(src_ids, torch.tensor(LENS))
    for t, log_probs in enumerate(steps):
        expected, expected_state = network.step(tgt_ids[:, t], expected_state, memory)
        torch.testing.assert_close(
            log_probs[:, : config.tgt_vocab_size], expected, atol=TOLERANCE[precision], rtol=0, check_stride=False
        )
    for part, expected_part in zip(state, expected_state, strict=True):
        torch.testing.assert_close(part, expected_part, atol=TOLERANCE[precision], rtol=0)


@native
def test_kernels_are_the_function_of_the_modules(config: ModelConfig) -> None:
    network = make_network(widened(config))
    src_ids, tgt_ids = random_ids(B, S), random_ids(B, T)
    packed = InferenceNetwork(network, "int8")
    assert packed.is_native == (not config.layer_norm)
    steps, _ = decode(packed, *packed.encode(src_ids, LENS), tgt_ids)
    memory, state = network.encode(src_ids, torch.tensor(LENS))
    for t, log_probs in enumerate(steps):
        expected, state = network.step(tgt_ids[:, t], state, memory)
        torch.testing.assert_close(
            log_probs[:, : config.tgt_vocab_size], expected, atol=0.04, rtol=0, check_stride=False
        )


def test_widths_that_fill_no_register_are_left_to_torch(config: ModelConfig) -> None:
    assert not InferenceNetwork(make_network(config), "int8").is_native


@VARIANTS
def test_log_probs_are_padded_with_impossible_tokens(config: ModelConfig, precision: str, is_native: bool) -> None:
    packed = InferenceNetwork(make_network(widened(config)), precision, is_native=is_native)
    memory, state = packed.encode(random_ids(B, S), LENS)
    log_probs = packed.step(random_ids(B), state, (memory,)).scores.log_probs()
    assert log_probs.shape[1] % BLOCK == 0
    assert (log_probs[:, config.tgt_vocab_size :] == float("-inf")).all()
    assert log_probs[:, : config.tgt_vocab_size].isfinite().all()


@VARIANTS
def test_sentence_alone_is_bit_for_bit_the_sentence_in_company(
    config: ModelConfig, precision: str, is_native: bool
) -> None:
    packed = InferenceNetwork(make_network(widened(config)), precision, is_native=is_native)
    src_ids, tgt_ids = random_ids(B, S), random_ids(B, T)
    together, state = decode(packed, *packed.encode(src_ids, LENS), tgt_ids)
    for row in range(B):
        alone, own_state = decode(packed, *packed.encode(src_ids[[row]], [LENS[row]]), tgt_ids[[row]])
        for one, all_rows in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_rows[row])
        for own, part in zip(own_state, state, strict=True):
            assert torch.equal(own[0], part[row])


@VARIANTS
def test_rows_of_a_beam_share_their_entry(config: ModelConfig, precision: str, is_native: bool) -> None:
    packed = InferenceNetwork(make_network(widened(config)), precision, is_native=is_native)
    memory, state = packed.encode(random_ids(B, S), LENS)
    ids = random_ids(2 * B)
    twice = tuple(part.repeat_interleave(2, dim=0) for part in state)
    shared = packed.step(ids, twice, (replace(memory, rows_each=2),)).scores.log_probs()
    own = packed.step(ids, twice, (entries(memory, [i // 2 for i in range(2 * B)]),)).scores.log_probs()
    torch.testing.assert_close(shared, own)


@VARIANTS
def test_several_memories_are_as_one(config: ModelConfig, precision: str, is_native: bool) -> None:
    packed = InferenceNetwork(make_network(widened(config)), precision, is_native=is_native)
    memory, state = packed.encode(random_ids(B, S), LENS)
    ids = random_ids(B)
    whole, _, attention = packed.step(ids, state, (memory,))
    split, _, parts = packed.step(ids, state, (entries(memory, [0, 1]), entries(memory, [2, 3, 4])))
    assert torch.equal(whole.log_probs(), split.log_probs())
    if attention:
        assert torch.equal(attention[0], torch.cat(parts))
        torch.testing.assert_close(attention[0].sum(dim=1), torch.ones(B))
        assert (attention[0][memory.mask.logical_not()] == 0).all()


@VARIANTS
def test_threads_may_share_a_network(config: ModelConfig, precision: str, is_native: bool) -> None:
    packed = InferenceNetwork(make_network(widened(config)), precision, is_native=is_native)
    batches = [(random_ids(B, S), random_ids(B, T)) for _ in range(8)]

    def run(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return decode(packed, *packed.encode(batch[0], LENS), batch[1])[0]

    expected = [run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for steps, alone in zip(pool.map(run, batches), expected, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(steps, alone, strict=True))
