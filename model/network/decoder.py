"""The decoder: predicts the next target token from the last one, a state and the source. Keeps nothing between steps.

Shape letters: B batch, N live rows, R entries of a memory, K rows an entry, S source length, T target length,
E embedding, H hidden, M memory width, A key width, F readout width, V vocabulary.

A decoder state is a flat tuple of tensors [N, H]: each layer's state, lowest layer first, and the attentional vector
[N, F] last where input feeding is on. Rows of a beam are re-ordered by indexing each tensor alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.attention import DotAttention, build_attention
from model.network.dropout import Dropouts, apply_dropout, draw_mask
from model.network.encoder import EncoderOutput
from model.network.feeding import FeedingDecoder, Recurrence
from model.network.recurrent import CELLS, Cell, State


@dataclass(frozen=True, eq=False)
class Memory:
    """What the decoder may look up of R source sentences: computed once, then only read.

    Attributes:
        keys: [R, S, A], the memory as attention's keys; None without attention.
        values: [R, S, M], the encoder's outputs; None without attention.
        mask: [R, S] bool, True = valid.
        context: [R, C], the fixed context for every input (Cho et al. 2014); None unless the model asks for it.
        rows_each: K, live rows of each entry: a beam's rows share one entry.
        table: what these are the first entries of, with room for more; None where they stand alone.
    """

    keys: Tensor | None
    values: Tensor | None
    mask: Tensor
    context: Tensor | None
    rows_each: int = 1
    table: Memory | None = None

    @property
    def num_entries(self) -> int:
        return self.mask.shape[0]

    @property
    def num_rows(self) -> int:
        return self.num_entries * self.rows_each


class Decoder(nn.Module):
    """A stack of recurrent cells with attention, and the readout in front of the output layer."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding, dropouts: Dropouts) -> None:
        super().__init__()
        self.config = config
        self.dropouts = dropouts
        self.embedding = embedding
        self.attention = build_attention(config)
        self.context_dim = self._context_dim()
        input_dim = config.embedding_dim
        if config.input_feeding:
            input_dim += config.readout_dim
        elif config.attention_query == "previous" or config.context_input:
            input_dim += self.context_dim
        self.cells = nn.ModuleList(
            CELLS[config.cell](
                input_dim if layer == 0 else config.decoder_dim, config.decoder_dim, layer_norm=config.layer_norm
            )
            for layer in range(config.decoder_layers)
        )
        readout_input_dim = config.decoder_dim + self.context_dim
        if self._sees_embedding:
            readout_input_dim += config.embedding_dim
        self.readout = nn.Linear(readout_input_dim, config.readout_dim)
        self.output = nn.Linear(config.readout_dim, config.tgt_vocab_size)
        nn.init.zeros_(self.output.bias)
        if config.tie_embeddings != "none":
            self.output.weight = embedding.weight
        self.bridges = self._build_bridges()

    def _context_dim(self) -> int:
        if self.attention is not None:
            return self.config.memory_dim
        return self._last_dim(self.config.encoder_layers - 1) if self.config.context_input else 0

    def _last_dim(self, encoder_layer: int) -> int:
        return self.config.encoder_dim * self.config.num_directions[encoder_layer]

    @property
    def _sees_embedding(self) -> bool:
        """Whether the readout reads the last token directly, as Cho's and Bahdanau's deep output does."""
        return self.config.attention_query == "previous" or self.config.context_input

    @property
    def _num_states(self) -> int:
        return CELLS[self.config.cell].num_states

    def source_layer(self, layer: int) -> int:
        """The encoder layer whose last state starts a decoder layer: the stacks are aligned at their tops."""
        return max(0, self.config.encoder_layers - self.config.decoder_layers + layer)

    def _build_bridges(self) -> nn.ModuleList:
        """For each layer and part of its state a map from the encoder's last state, where the widths differ."""
        config = self.config
        bridges: list[nn.Module] = []
        for layer in range(config.decoder_layers):
            width = self._last_dim(self.source_layer(layer))
            for _ in range(self._num_states):
                same = width == config.decoder_dim
                bridges.append(
                    nn.Identity() if same else nn.Sequential(nn.Linear(width, config.decoder_dim), nn.Tanh())
                )
        return nn.ModuleList(bridges)

    def memory(self, encoded: EncoderOutput) -> Memory:
        """What the decoder will look up: keys are projected here, once."""
        outputs = encoded.outputs
        mask = torch.arange(outputs.shape[1], device=outputs.device) < encoded.lens[:, None]  # [B, S]
        context = encoded.last_states[-1][0] if self.config.context_input else None
        if self.attention is None:
            return Memory(None, None, mask, context)
        return Memory(self.attention.keys(outputs), outputs, mask, context)

    def init_state(self, encoded: EncoderOutput) -> State:
        """The state before the first token, from the encoder's last states: tensors [B, H] (and [B, F])."""
        state: list[Tensor] = []
        for layer in range(self.config.decoder_layers):
            parts = encoded.last_states[self.source_layer(layer)]
            bridges = self.bridges[layer * self._num_states : (layer + 1) * self._num_states]
            state.extend(bridge(part) for bridge, part in zip(bridges, parts, strict=True))
        if self.config.input_feeding:
            state.append(state[0].new_zeros(state[0].shape[0], self.config.readout_dim))
        return tuple(state)

    def forward(self, tgt_in_ids: Tensor, state: State, memory: Memory) -> Tensor:
        """Teacher forcing: tgt_in_ids [B, T] int64 (`<bos>` first), state [B, ...] -> readouts [B, T, F]."""
        embedded = self.embedding(tgt_in_ids)  # [B, T, E]
        drop = self.dropouts
        embedded = apply_dropout(embedded, drop.embedding, variational=drop.variational, is_training=self.training)
        if self.config.input_feeding or self.config.attention_query == "previous":
            readouts = self._forward_by_steps(embedded, state, memory)
        else:
            readouts = self._forward_by_layers(embedded, state, memory)
        return apply_dropout(readouts, drop.readout, variational=False, is_training=self.training)

    def _forward_by_layers(self, embedded: Tensor, state: State, memory: Memory) -> Tensor:
        """All time steps of a layer at once: possible where attention does not enter the recurrence."""
        drop = self.dropouts
        x = embedded
        if memory.context is not None:
            x = torch.cat((x, memory.context[:, None].expand(-1, x.shape[1], -1)), dim=-1)
        recurrent_masks = self._recurrent_masks(embedded)
        for layer, cell in enumerate(self.cells):
            if layer:
                x = apply_dropout(x, drop.layer, variational=drop.variational, is_training=self.training)
            first = state[layer * self._num_states : (layer + 1) * self._num_states]
            y = cast(Cell, cell).unroll(x, first, recurrent_masks[layer])[0]
            x = y + x if self.config.residual and layer else y
        context = memory.context[:, None].expand(-1, x.shape[1], -1) if memory.context is not None else None
        if self.attention is not None:
            assert memory.keys is not None and memory.values is not None
            context, _ = self.attention(x, memory.keys, memory.values, memory.mask)
        return self._read_out(x, context, embedded)

    def _forward_by_steps(self, embedded: Tensor, state: State, memory: Memory) -> Tensor:
        """One time step after the other: needed where a step's attention enters the next one's cell."""
        drop = self.dropouts
        layer_masks: list[Tensor | None] = [None] * len(self.cells)
        if self.training and drop.layer:
            num_steps = 1 if drop.variational else embedded.shape[1]
            shape = (embedded.shape[0], num_steps, self.config.decoder_dim)
            layer_masks = [None, *(draw_mask(embedded, shape, drop.layer) for _ in self.cells[1:])]
        recurrent_masks = self._recurrent_masks(embedded)
        if self._is_fed_by_hand:
            return self._forward_by_hand(embedded, state, memory, layer_masks, recurrent_masks)
        readouts: list[Tensor] = []
        for t in range(embedded.shape[1]):
            at_t = [None if m is None else m[:, t % m.shape[1]] for m in layer_masks]
            readout, state, _ = self._advance(embedded[:, t], state, (memory,), at_t, recurrent_masks)
            readouts.append(readout)
        return torch.stack(readouts, dim=1)

    @property
    def _is_fed_by_hand(self) -> bool:
        """Whether `FeedingDecoder` has a backward pass for this architecture."""
        is_query_the_state = isinstance(self.attention, DotAttention)
        return self.config.input_feeding and is_query_the_state and not self.config.layer_norm

    def _forward_by_hand(
        self,
        embedded: Tensor,
        state: State,
        memory: Memory,
        layer_masks: Sequence[Tensor | None],
        recurrent_masks: Sequence[Tensor | None],
    ) -> Tensor:
        """As `_forward_by_steps`, without autograd between the steps."""
        cells = [cast(Cell, cell) for cell in self.cells]
        weight = cells[0].weight_ih
        embedding_dim = embedded.shape[-1]
        gates = F.linear(embedded.transpose(0, 1), weight[:, :embedding_dim])  # [T, B, G·H]
        parameters = [weight[:, embedding_dim:], cells[0].weight_hh, cells[0].bias_ih, cells[0].bias_hh]
        for cell in cells[1:]:
            parameters.extend((cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh))
        dtype = gates.dtype

        def cast_to(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        recurrence = Recurrence(
            cell=type(cells[0]),
            residual=self.config.residual,
            mask=memory.mask,
            input_masks=[cast_to(mask) for mask in layer_masks],
            recurrent_masks=[cast_to(mask) for mask in recurrent_masks],
        )
        inputs = (memory.keys, memory.values, self.readout.weight, self.readout.bias, state[-1])
        with torch.autocast(gates.device.type, enabled=False):
            readouts = FeedingDecoder.apply(  # type: ignore[no-untyped-call]
                recurrence, gates, *map(cast_to, (*inputs, *parameters, *state[:-1]))
            )
        return cast(Tensor, readouts).transpose(0, 1)  # [B, T, F]

    def _recurrent_masks(self, like: Tensor) -> list[Tensor | None]:
        if not self.training or self.dropouts.recurrent == 0:
            return [None] * len(self.cells)
        shape = (like.shape[0], self.config.decoder_dim)
        return [draw_mask(like, shape, self.dropouts.recurrent) for _ in self.cells]

    def step(self, ids: Tensor, state: State, memories: Sequence[Memory]) -> tuple[Tensor, State, Tensor | None]:
        """One token for every live row.

        Args:
            ids: [N] int64, the last token of each row.
            state: tensors [N, ...].
            memories: the rows' source sentences: the rows come in the memories' order, entry by entry, and each
                memory's entries have equally many rows (`rows_each`).

        Returns:
            Readouts [N, F], the new state, and attention weights [N, S] where there is one memory with attention.
        """
        nothing: list[Tensor | None] = [None] * len(self.cells)
        return self._advance(self.embedding(ids), state, memories, nothing, nothing)

    def _advance(
        self,
        embedded: Tensor,
        state: State,
        memories: Sequence[Memory],
        layer_masks: Sequence[Tensor | None],
        recurrent_masks: Sequence[Tensor | None],
    ) -> tuple[Tensor, State, Tensor | None]:
        config = self.config
        top = (config.decoder_layers - 1) * self._num_states  # index of the top layer's h
        context: Tensor | None = None
        weights: Tensor | None = None
        x = embedded  # [N, E]
        if config.input_feeding:
            x = torch.cat((x, state[-1]), dim=-1)
        elif config.attention_query == "previous" or config.context_input:
            context, weights = self._attend(state[top], memories)
            x = torch.cat((x, context), dim=-1)
        new_state: list[Tensor] = []
        for layer, cell in enumerate(self.cells):
            mask = layer_masks[layer]
            x = x if mask is None else x * mask
            before = state[layer * self._num_states : (layer + 1) * self._num_states]
            after = cast(Cell, cell).step(cast(Cell, cell).input_gates(x), before, recurrent_masks[layer])
            new_state.extend(after)
            x = after[0] + x if config.residual and layer else after[0]
        if context is None and self.context_dim:
            context, weights = self._attend(x, memories)
        readout = self._read_out(x, context, embedded)
        if config.input_feeding:
            new_state.append(readout)
        return readout, tuple(new_state), weights

    def _attend(self, query: Tensor, memories: Sequence[Memory]) -> tuple[Tensor, Tensor | None]:
        """query [N, H] -> context [N, M]; each memory's rows meet their own entries, without copying them."""
        if len(memories) == 1:
            return self._attend_one(query, memories[0])
        parts = query.split([memory.num_rows for memory in memories])
        contexts = [self._attend_one(part, memory)[0] for part, memory in zip(parts, memories, strict=True)]
        return torch.cat(contexts), None

    def _attend_one(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        if memory.context is not None:
            return memory.context.repeat_interleave(memory.rows_each, dim=0), None
        assert self.attention is not None and memory.keys is not None and memory.values is not None
        queries = query.unflatten(0, (memory.num_entries, memory.rows_each))  # [R, K, H]
        context, weights = self.attention(queries, memory.keys, memory.values, memory.mask)
        return context.flatten(0, 1), weights.flatten(0, 1)

    def _read_out(self, x: Tensor, context: Tensor | None, embedded: Tensor) -> Tensor:
        parts = [x] if context is None else [x, context]
        if self._sees_embedding:
            parts.append(embedded)
        return torch.tanh(self.readout(torch.cat(parts, dim=-1)))
