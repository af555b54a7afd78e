"""The encoder: reads source token ids into one vector a position and a last state a layer. Knows no target.

Shape letters: B batch, S source length, E embedding, H hidden, D directions, M = D·H of the last layer.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from model.config import ModelConfig
from model.network.dropout import Dropouts, apply_dropout, draw_mask
from model.network.recurrent import RecurrentLayer, State, reverse_by_length


class EncoderOutput(NamedTuple):
    """What the encoder hands over.

    Attributes:
        outputs: [B, S, M], the last layer at every position; padding positions hold no meaning.
        last_states: for each layer, lowest first, the state after the last valid token, tensors [B, D·H].
        lens: [B] int64.
    """

    outputs: Tensor
    last_states: tuple[State, ...]
    lens: Tensor


class Encoder(nn.Module):
    """A stack of recurrent layers over embeddings: deep, bidirectional in its lowest layers, residual where asked."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding, dropouts: Dropouts) -> None:
        super().__init__()
        self.config = config
        self.dropouts = dropouts
        self.embedding = embedding
        layers: list[RecurrentLayer] = []
        input_dim = config.embedding_dim
        for num_directions in config.num_directions:
            layers.append(
                RecurrentLayer(
                    config.cell,
                    input_dim,
                    config.encoder_dim,
                    num_directions=num_directions,
                    layer_norm=config.layer_norm,
                )
            )
            input_dim = num_directions * config.encoder_dim
        self.layers = nn.ModuleList(layers)

    def forward(self, src_ids: Tensor, src_lens: Tensor) -> EncoderOutput:
        """src_ids [B, S] int64, src_lens [B] int64 (each at least 1) -> EncoderOutput."""
        drop = self.dropouts
        x = self.embedding(src_ids)  # [B, S, E]
        if self.config.reverse_source:
            x = reverse_by_length(x, src_lens)
        x = apply_dropout(x, drop.embedding, variational=drop.variational, is_training=self.training)
        last_states: list[State] = []
        for index, layer in enumerate(self.layers):
            if index:
                x = apply_dropout(x, drop.layer, variational=drop.variational, is_training=self.training)
            y, last = layer(x, src_lens, self._hidden_masks(x, index))
            x = y + x if self.config.is_residual_layer(index) else y
            last_states.append(last)
        return EncoderOutput(x, tuple(last_states), src_lens)

    def _hidden_masks(self, x: Tensor, layer: int) -> tuple[Tensor, ...] | None:
        if not self.training or self.dropouts.recurrent == 0:
            return None
        shape = (x.shape[0], self.config.encoder_dim)
        return tuple(draw_mask(x, shape, self.dropouts.recurrent) for _ in range(self.config.num_directions[layer]))
