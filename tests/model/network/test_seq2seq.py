"""The whole network of every architecture: batched equals single, padding changes nothing, and it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PRESETS, ModelConfig
from model.data.batching import Batch, collate
from model.data.vocab import BOS_ID
from model.network.dropout import Dropouts
from model.network.seq2seq import Seq2Seq

SRC = [[5, 9, 4], [7, 7, 8, 11, 20, 4], [13]]
TGT = [[6, 10], [12, 4, 4, 9], [21, 22, 5]]


def inputs(batch: Batch) -> Tensor:
    return torch.cat((torch.full((batch.tgt_ids.shape[0], 1), BOS_ID), batch.tgt_ids[:, :-1]), dim=1)


def loss_of(network: Seq2Seq, batch: Batch) -> Tensor:
    logits = network(batch.src_ids, batch.src_lens, inputs(batch))
    mask = torch.arange(batch.tgt_ids.shape[1]) < batch.tgt_lens[:, None]
    return F.cross_entropy(logits[mask], batch.tgt_ids[mask])


@torch.no_grad()
def test_a_batch_gives_the_logits_of_its_sentences_alone(config: ModelConfig) -> None:
    network, batch = Seq2Seq(config).double().eval(), collate(SRC, TGT)
    logits = network(batch.src_ids, batch.src_lens, inputs(batch))
    assert logits.shape == (3, 5, config.tgt_vocab_size)
    for row, (src, tgt) in enumerate(zip(SRC, TGT, strict=True)):
        alone = collate([src], [tgt])
        expected = network(alone.src_ids, alone.src_lens, inputs(alone))[0]
        torch.testing.assert_close(logits[row, : len(tgt) + 1], expected)


@torch.no_grad()
def test_more_padding_changes_nothing(config: ModelConfig) -> None:
    network, batch = Seq2Seq(config).double().eval(), collate(SRC, TGT)
    wider = F.pad(batch.src_ids, (0, 4), value=17)
    logits = network(batch.src_ids, batch.src_lens, inputs(batch))
    torch.testing.assert_close(network(wider, batch.src_lens, inputs(batch)), logits)


def test_every_parameter_learns(config: ModelConfig) -> None:
    network = Seq2Seq(config).train()
    loss_of(network, collate(SRC, TGT)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_preset_learns_a_repeated_batch(preset_config: ModelConfig) -> None:
    network, batch = Seq2Seq(preset_config).train(), collate(SRC, TGT)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(2):
        loss = loss_of(network, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    losses.append(loss_of(network, batch).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05


def test_gradients_of_the_whole_network_are_the_numerical_ones(config: ModelConfig) -> None:
    network, batch = Seq2Seq(config).double(), collate(SRC, TGT)
    loss_of(network, batch).backward()
    generator = torch.Generator().manual_seed(11)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in network.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(network.parameters(), directions, strict=True) if p.grad is not None)
    losses: list[float] = []
    step = 1e-7  # layer norm of a zero state bends within 1e-3: a longer step would measure that
    with torch.no_grad():
        for shift in (step, -2 * step):
            for p, d in zip(network.parameters(), directions, strict=True):
                p.add_(d, alpha=shift)
            losses.append(loss_of(network, batch).item())
    assert float(slope) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_recurrent_dropout_is_drawn_from_the_seed_alone(preset_config: ModelConfig) -> None:
    network = Seq2Seq(preset_config, Dropouts(embedding=0.2, layer=0.2, recurrent=0.2, readout=0.2)).train()
    batch = collate(SRC, TGT)
    losses: list[float] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(loss_of(network, batch).item())
    assert losses[0] == losses[1] != losses[2]


@torch.no_grad()
def test_a_step_gives_log_probabilities(config: ModelConfig) -> None:
    network, batch = Seq2Seq(config).eval(), collate(SRC, TGT)
    memory, state = network.encode(batch.src_ids, batch.src_lens)
    log_probs, _ = network.step(torch.full((3,), BOS_ID), state, memory)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3))


def test_tied_embeddings_are_one_parameter() -> None:
    config = replace(PRESETS["small"].model, src_vocab_size=50, tgt_vocab_size=50)
    tied, output = Seq2Seq(config), Seq2Seq(replace(config, tie_embeddings="output"))
    untied = Seq2Seq(replace(config, tie_embeddings="none"))
    assert tied.encoder.embedding.weight is tied.decoder.embedding.weight is tied.decoder.output.weight
    size = 50 * config.embedding_dim
    assert untied.num_parameters == output.num_parameters + size == tied.num_parameters + 2 * size


def test_a_network_holds_no_state_between_calls(config: ModelConfig) -> None:
    network, batch = Seq2Seq(config).eval(), collate(SRC, TGT)
    before = set(network.state_dict())
    loss_of(network, batch)
    assert set(network.state_dict()) == before == {name for name, _ in network.named_parameters(remove_duplicate=False)}
