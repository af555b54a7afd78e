"""The decoder that goes forward and backward by hand against autograd over single steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.network.decoder import Decoder
from model.network.dropout import Dropouts
from model.network.seq2seq import Seq2Seq

LENS = torch.tensor([4, 7, 1])
BASE = ModelConfig(
    src_vocab_size=23,
    tgt_vocab_size=23,
    embedding_dim=5,
    encoder_dim=6,
    decoder_dim=7,
    readout_dim=9,
    decoder_layers=2,
    input_feeding=True,
    tie_embeddings="none",
)
CONFIGS = {
    "lstm": BASE,
    "gru": replace(BASE, cell="gru"),
    "rnn": replace(BASE, cell="rnn"),
    "three residual layers": replace(BASE, decoder_layers=3, residual=True),
    "dot": replace(BASE, attention="dot", encoder_dim=7, bidirectional_layers=0),
}
DROPOUTS = {
    "none": Dropouts(),
    "a mask a sentence": Dropouts(embedding=0.2, layer=0.3, recurrent=0.3, readout=0.2),
    "a mask a step": Dropouts(layer=0.3, variational=False),
}


def readouts_and_gradients(network: Seq2Seq) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    src_ids, tgt_ids = torch.randint(4, 23, (3, 7)), torch.randint(4, 23, (3, 5))
    network.zero_grad()
    readouts = network.readouts(src_ids, LENS, tgt_ids)
    (readouts * torch.randn(readouts.shape, dtype=readouts.dtype)).sum().backward()
    return readouts, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropouts", DROPOUTS.values(), ids=DROPOUTS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_readouts_and_gradients_equal_those_of_autograd(
    config: ModelConfig, dropouts: Dropouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Seq2Seq(config, dropouts).double().train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert network.decoder._is_fed_by_hand
    ours, our_grads = readouts_and_gradients(network)
    monkeypatch.setattr(Decoder, "_is_fed_by_hand", False)
    theirs, their_grads = readouts_and_gradients(network)
    torch.testing.assert_close(ours, theirs)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, msg=lambda text, name=name: f"{name}: {text}")


def test_a_second_pass_back_gives_the_same_gradients() -> None:
    network = Seq2Seq(BASE).double()
    ids = torch.randint(4, 23, (3, 5))
    total = network.readouts(ids, torch.tensor([5, 2, 3]), ids).square().sum()
    weights = list(network.decoder.cells.parameters())
    first = torch.autograd.grad(total, weights, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, weights), strict=True):
        assert torch.equal(a, b)


def test_bf16_stays_near_fp32() -> None:
    network = Seq2Seq(replace(BASE, decoder_dim=32, readout_dim=32)).train()
    exact, exact_grads = readouts_and_gradients(network)
    with torch.autocast("cpu", torch.bfloat16):
        rough, rough_grads = readouts_and_gradients(network)
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)
    for name, grad in exact_grads.items():
        assert (rough_grads[name] - grad).norm() < 0.05 * grad.norm() + 1e-3, name
