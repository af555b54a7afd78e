"""The encoder: its shapes, and that neither padding nor company changes what it reads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.dropout import Dropouts
from model.network.encoder import Encoder

B, S = 3, 7
LENS = torch.tensor([4, 7, 1])
MASK = torch.arange(S) < LENS[:, None]
PLAIN = ModelConfig(embedding_dim=4, encoder_dim=5, encoder_layers=3, bidirectional_layers=0, readout_dim=4)


def make_encoder(config: ModelConfig, dropouts: Dropouts | None = None) -> Encoder:
    embedding = nn.Embedding(config.src_vocab_size or 23, config.embedding_dim)
    return Encoder(config, embedding, dropouts or Dropouts()).double().eval()


def random_ids() -> Tensor:
    return torch.randint(4, 23, (B, S))


@torch.no_grad()
def test_outputs_and_states_have_the_widths_of_the_config(config: ModelConfig) -> None:
    outputs, last_states, lens = make_encoder(config)(random_ids(), LENS)
    assert outputs.shape == (B, S, config.memory_dim)
    assert len(last_states) == config.encoder_layers
    assert torch.equal(lens, LENS)
    for state, num_directions in zip(last_states, config.num_directions, strict=True):
        assert len(state) == (2 if config.cell == "lstm" else 1)
        assert all(part.shape == (B, num_directions * config.encoder_dim) for part in state)


@torch.no_grad()
def test_a_batch_is_read_as_its_sentences_are_alone(config: ModelConfig) -> None:
    encoder, ids = make_encoder(config), random_ids()
    outputs, last_states, _ = encoder(ids, LENS)
    for row, length in enumerate(LENS.tolist()):
        alone, alone_states, _ = encoder(ids[row : row + 1, :length], LENS[row : row + 1])
        torch.testing.assert_close(outputs[row, :length], alone[0])
        for state, alone_state in zip(last_states, alone_states, strict=True):
            for part, alone_part in zip(state, alone_state, strict=True):
                torch.testing.assert_close(part[row], alone_part[0])


@torch.no_grad()
def test_what_stands_in_padding_changes_nothing(config: ModelConfig) -> None:
    encoder, ids = make_encoder(config), random_ids()
    outputs, last_states, _ = encoder(ids, LENS)
    other, other_states, _ = encoder(torch.where(MASK, ids, 1), LENS)
    assert torch.equal(outputs[MASK], other[MASK])
    for state, other_state in zip(last_states, other_states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(state, other_state, strict=True))


@torch.no_grad()
def test_a_reversed_source_is_read_from_its_own_end() -> None:
    forward = make_encoder(PLAIN)
    backward = make_encoder(replace(PLAIN, reverse_source=True))
    backward.load_state_dict(forward.state_dict())
    ids = random_ids()
    turned = ids.clone()
    for row, length in enumerate(LENS.tolist()):
        turned[row, :length] = ids[row, :length].flip(0)
    torch.testing.assert_close(backward(ids, LENS).outputs[MASK], forward(turned, LENS).outputs[MASK])


@torch.no_grad()
def test_a_residual_layer_adds_its_input() -> None:
    plain = make_encoder(replace(PLAIN, encoder_layers=2))
    residual = make_encoder(replace(PLAIN, encoder_layers=2, residual=True))
    residual.load_state_dict(plain.state_dict())
    ids = random_ids()
    first_layer, _ = plain.layers[0](plain.embedding(ids), LENS)
    torch.testing.assert_close(residual(ids, LENS).outputs, plain(ids, LENS).outputs + first_layer)


@torch.no_grad()
def test_dropout_acts_in_training_alone(config: ModelConfig) -> None:
    encoder = make_encoder(config, Dropouts(embedding=0.3, layer=0.3, recurrent=0.3))
    ids = random_ids()
    assert torch.equal(encoder(ids, LENS).outputs, encoder(ids, LENS).outputs)
    encoder.train()
    assert not torch.equal(encoder(ids, LENS).outputs[MASK], encoder(ids, LENS).outputs[MASK])
