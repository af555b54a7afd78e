"""The decoder: a step alone equals teacher forcing; rows, entries and memories can be put together in any way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import InvalidValue
from model.network.decoder import Memory
from model.network.dropout import Dropouts
from model.network.recurrent import State
from model.network.seq2seq import Seq2Seq

B, S, T, K = 3, 7, 5, 4
LENS = torch.tensor([4, 7, 1])


def make_network(config: ModelConfig, dropouts: Dropouts | None = None) -> Seq2Seq:
    return Seq2Seq(config, dropouts).double().eval()


def random_ids(*shape: int) -> Tensor:
    return torch.randint(4, 23, shape)


def entries(memory: Memory, rows: slice, rows_each: int = 1) -> Memory:
    def of(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[rows]

    return Memory(of(memory.keys), of(memory.values), memory.mask[rows], of(memory.context), rows_each)


@torch.no_grad()
def test_single_steps_equal_teacher_forcing(config: ModelConfig) -> None:
    network = make_network(config)
    src_ids, tgt_ids = random_ids(B, S), random_ids(B, T)
    expected = torch.log_softmax(network(src_ids, LENS, tgt_ids), dim=-1).float()
    memory, state = network.encode(src_ids, LENS)
    for t in range(T):
        log_probs, state = network.step(tgt_ids[:, t], state, memory)
        torch.testing.assert_close(log_probs, expected[:, t])


@torch.no_grad()
def test_the_future_does_not_reach_a_prediction(config: ModelConfig) -> None:
    network = make_network(config)
    src_ids, tgt_ids = random_ids(B, S), random_ids(B, T)
    changed = tgt_ids.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 23
    before, after = network(src_ids, LENS, tgt_ids), network(src_ids, LENS, changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


@torch.no_grad()
def test_rows_that_share_an_entry_equal_rows_of_their_own(config: ModelConfig) -> None:
    network, ids = make_network(config), random_ids(B * K)
    src_ids = random_ids(B, S)
    memory, state = network.encode(src_ids, LENS)
    beams: State = tuple(part.repeat_interleave(K, dim=0) for part in state)
    shared, shared_state = network.step(ids, beams, replace(memory, rows_each=K))
    own_memory, own_state = network.encode(src_ids.repeat_interleave(K, dim=0), LENS.repeat_interleave(K))
    own, own_state = network.step(ids, own_state, own_memory)
    torch.testing.assert_close(shared, own)
    torch.testing.assert_close(shared_state, own_state)


@torch.no_grad()
def test_several_memories_equal_one(config: ModelConfig) -> None:
    network = make_network(config)
    memory, state = network.encode(random_ids(B, S), LENS)
    whole, _ = network.step(torch.tensor([4, 5, 6]), state, memory)
    parts = [entries(memory, slice(0, 1)), entries(memory, slice(1, 3))]
    split, _ = network.step(torch.tensor([4, 5, 6]), state, parts)
    torch.testing.assert_close(whole, split)


@torch.no_grad()
def test_memories_of_other_widths_of_beam_step_together(config: ModelConfig) -> None:
    network, ids = make_network(config), random_ids(2 + 2 * K)
    memory, state = network.encode(random_ids(B, S), LENS)
    parts = [entries(memory, slice(0, 1), 2), entries(memory, slice(1, 3), K)]
    rows = torch.tensor([0] * 2 + [1] * K + [2] * K)
    together, _ = network.step(ids, tuple(part[rows] for part in state), parts)
    for n, row in enumerate(rows.tolist()):
        one_row = tuple(part[row : row + 1] for part in state)
        alone, _ = network.step(ids[n : n + 1], one_row, entries(memory, slice(row, row + 1)))
        torch.testing.assert_close(together[n], alone[0])


@torch.no_grad()
def test_a_step_leaves_its_state_and_memory_as_they_were(config: ModelConfig) -> None:
    network = make_network(config)
    memory, state = network.encode(random_ids(B, S), LENS)
    first, _ = network.step(torch.tensor([4, 5, 6]), state, memory)
    second, _ = network.step(torch.tensor([4, 5, 6]), state, memory)
    assert torch.equal(first, second)


@torch.no_grad()
def test_attention_weights_of_a_step_are_shares_of_its_source(config: ModelConfig) -> None:
    network = make_network(config)
    memory, state = network.encode(random_ids(B, S), LENS)
    _, _, weights = network.decoder.step(torch.tensor([4, 5, 6]), state, (memory,))
    if config.attention == "none":
        assert weights is None
    else:
        assert weights is not None
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, dtype=torch.float64))
        assert not weights[~memory.mask].any()


@torch.no_grad()
def test_the_first_state_has_the_decoder_width_whatever_the_encoder(config: ModelConfig) -> None:
    _, state = make_network(config).encode(random_ids(B, S), LENS)
    num_parts = config.decoder_layers * (2 if config.cell == "lstm" else 1)
    widths = [config.decoder_dim] * num_parts + [config.readout_dim] * config.input_feeding
    assert [tuple(part.shape) for part in state] == [(B, width) for width in widths]


@torch.no_grad()
def test_attention_asked_before_the_cell_reads_the_top_layers_last_state() -> None:
    config = ModelConfig(
        src_vocab_size=23, tgt_vocab_size=23, embedding_dim=5, readout_dim=5, encoder_dim=6, decoder_dim=7,
        decoder_layers=3, attention="additive", attention_dim=8, attention_query="previous",
    )  # fmt: skip
    network, ids = make_network(config), torch.tensor([4, 5, 6])
    memory, state = network.encode(random_ids(B, S), LENS)
    state = tuple(torch.randn_like(part) for part in state)
    _, _, weights = network.decoder.step(ids, state, (memory,))
    h_of_top = 4  # the state is h, c of layers 0, 1, 2
    for index in range(len(state)):
        changed = tuple(part + 1 if i == index else part for i, part in enumerate(state))
        _, _, other = network.decoder.step(ids, changed, (memory,))
        assert weights is not None
        assert other is not None
        assert torch.equal(weights, other) is (index != h_of_top)


@torch.no_grad()
def test_input_feeding_hands_the_last_readout_to_the_next_step() -> None:
    config = ModelConfig(
        src_vocab_size=23, tgt_vocab_size=23, embedding_dim=5, readout_dim=5, encoder_dim=6, decoder_dim=7,
        input_feeding=True,
    )  # fmt: skip
    network, ids = make_network(config), torch.tensor([4, 5, 6])
    memory, state = network.encode(random_ids(B, S), LENS)
    readout, state, _ = network.decoder.step(ids, state, (memory,))
    assert torch.equal(state[-1], readout)
    fed, _, _ = network.decoder.step(ids, state, (memory,))
    starved, _, _ = network.decoder.step(ids, (*state[:-1], torch.zeros_like(readout)), (memory,))
    assert not torch.equal(fed, starved)


@torch.no_grad()
def test_equal_widths_hand_the_last_state_over_as_it_is() -> None:
    config = ModelConfig(
        src_vocab_size=23, tgt_vocab_size=23, embedding_dim=5, readout_dim=5, encoder_dim=6, decoder_dim=6,
        encoder_layers=3, decoder_layers=2, bidirectional_layers=0, attention="none",
    )  # fmt: skip
    network, src_ids = make_network(config), random_ids(B, S)
    _, state = network.encode(src_ids, LENS)
    upper_layers = network.encoder(src_ids, LENS).last_states[1:]
    for ours, theirs in zip(state, (part for layer in upper_layers for part in layer), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_dropout_acts_in_training_alone(config: ModelConfig) -> None:
    network = make_network(config, Dropouts(embedding=0.3, layer=0.3, recurrent=0.3, readout=0.3))
    src_ids, tgt_ids = random_ids(B, S), random_ids(B, T)
    assert torch.equal(network(src_ids, LENS, tgt_ids), network(src_ids, LENS, tgt_ids))
    network.train()
    assert not torch.equal(network(src_ids, LENS, tgt_ids), network(src_ids, LENS, tgt_ids))


def test_a_bidirectional_decoder_is_refused_with_its_reason() -> None:
    with pytest.raises(InvalidValue, match="would see the tokens it has to predict") as caught:
        ModelConfig(bidirectional_decoder=True)
    assert caught.value.field == "bidirectional_decoder"
