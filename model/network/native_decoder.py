"""The decoder over the kernels of kernels.cpp, one step for all live rows: see inference.py.

Shape letters: B batch, N live rows, R entries of a memory, K rows an entry, S source length, G gates, H hidden,
M memory width, A key width, C context, F readout, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model.network.attention import DotAttention
from model.network.decoder import Decoder, Memory
from model.network.kernels import Affine, Input, ScatteredMemory, Work, dequantize, quantize
from model.network.native_cell import TANH_FACTOR, NativeCell
from model.network.native_encoder import Encoded
from model.network.packed import Fp32Linear
from model.network.packed_decoder import StepOutput, look_up, pack_bridge, padded_output
from model.network.recurrent import CELLS, Cell, State
from model.network.token_scores import TokenScores


def looks_up_anywhere(decoder: Decoder) -> bool:
    """Whether a step takes a `ScatteredMemory`."""
    return isinstance(decoder.attention, DotAttention) and not decoder.config.context_input


class NativeDecoder:
    """One token for every live row.

    The state is that of each layer's cell, lowest first (native_cell.py), and the attentional vector in bytes [N, F]
    last where input feeding is on.
    """

    def __init__(self, decoder: Decoder, memory_bound: float) -> None:
        config = decoder.config
        self._config = config
        self._attention = decoder.attention
        self.looks_up_anywhere = looks_up_anywhere(decoder)
        self._memory_bound = memory_bound
        self._num_states = CELLS[config.cell].num_states  # of the modules
        self._pack_attention()
        self._pack_cells(decoder)
        self._pack_readout(decoder)
        self._output = Affine(*padded_output(decoder))
        self._bridges = [pack_bridge(bridge) for bridge in decoder.bridges]
        self._source_layers = [decoder.source_layer(layer) for layer in range(config.decoder_layers)]

    def _pack_attention(self) -> None:
        memory_map = getattr(self._attention, "project_memory", getattr(self._attention, "project", None))
        query_map = getattr(self._attention, "project_query", None)
        self._keys: Affine | None = None
        self._queries: Affine | None = None
        if memory_map is not None:
            parts = [(self._config.memory_dim, self._memory_bound)]
            self._keys = Affine(memory_map.weight, memory_map.bias, parts=parts)
        if query_map is not None:
            parts = [(self._config.decoder_dim, self._query_bound)]
            self._queries = Affine(query_map.weight, query_map.bias, parts=parts)

    @property
    def _query_bound(self) -> float:
        """Of what looks up the source: the top cell's own state, or the sum over all layers."""
        is_own = self._config.attention_query == "previous" or not self._config.residual
        return 1.0 if is_own else float(self._config.decoder_layers)

    def _pack_cells(self, decoder: Decoder) -> None:
        config = self._config
        lowest: list[tuple[int, float]] = []
        if config.input_feeding:
            lowest = [(config.readout_dim, 1.0)]
        elif config.attention_query == "previous":
            lowest = [(decoder.context_dim, self._memory_bound)]
        self._cells: list[NativeCell] = []
        for layer, cell in enumerate(decoder.cells):
            if layer == 0:
                num_constant = decoder.context_dim if config.context_input else 0
                packed = NativeCell(
                    cast(Cell, cell), lowest, embedding=decoder.embedding.weight, num_constant=num_constant
                )
            else:
                packed = NativeCell(cast(Cell, cell), [(config.decoder_dim, float(layer) if config.residual else 1.0)])
            self._cells.append(packed)

    def _pack_readout(self, decoder: Decoder) -> None:
        config = self._config
        weight, bias = (TANH_FACTOR * part.detach() for part in (decoder.readout.weight, decoder.readout.bias))
        dims = [config.decoder_dim, decoder.context_dim, weight.shape[1] - config.decoder_dim - decoder.context_dim]
        of_state, of_context, of_embedding = weight.split(dims, dim=1)
        self._readout_table = Fp32Linear(of_embedding, None)(decoder.embedding.weight.float()) if dims[2] else None
        self._readout_constant = Fp32Linear(of_context, None) if config.context_input else None
        parts = [(config.decoder_dim, float(config.decoder_layers) if config.residual else 1.0)]
        if self._attention is None:
            self._readout = Affine(of_state, bias, parts=parts)
        else:
            parts.append((decoder.context_dim, self._memory_bound))
            self._readout = Affine(torch.cat((of_state, of_context), dim=1), bias, parts=parts)

    def memory(self, encoded: Encoded, lens: Tensor) -> Memory:
        """The memory of B sentences of these lengths [B]; their reading is done then."""
        keys: Tensor | None = None
        if self._keys is not None:
            num_places, like = encoded.outputs.shape[0] * encoded.outputs.shape[1], encoded.outputs
            # As the outputs: nobody looks behind the tokens, or there have to be zeros.
            new = like.new_empty if self.looks_up_anywhere else like.new_zeros
            keys = new(num_places, self._keys.num_outputs)
            encoded.work.product_into(keys, encoded.positions, self._keys, [Input(encoded.bytes)])
        encoded.work.run()
        outputs = encoded.outputs
        num_rows, width, _ = outputs.shape
        mask = torch.arange(width) < lens[:, None]  # [B, S]
        context: Tensor | None = None
        constant = self._cells[0].constant
        if constant is not None and self._readout_constant is not None:
            last = encoded.last_states[-1][0]
            context = torch.cat((constant(last), self._readout_constant(last)), dim=1)  # [B, G·H + F]
        if self._attention is None:
            return Memory(None, None, mask, context)
        if keys is None:
            return Memory(outputs, outputs, mask, context)
        return Memory(keys.view(num_rows, width, -1), outputs, mask, context)

    def init_state(self, last_states: Sequence[State]) -> State:
        """The state before `<bos>`."""
        state: list[Tensor] = []
        for layer, source in enumerate(self._source_layers):
            bridges = self._bridges[layer * self._num_states : (layer + 1) * self._num_states]
            parts = [
                part if bridge is None else torch.tanh(bridge(part.contiguous()))
                for part, bridge in zip(last_states[source], bridges, strict=True)
            ]
            state.append(quantize(parts[0]))
            if self._config.cell != "rnn":
                state.append(parts[-1].contiguous())
        if self._config.input_feeding:
            state.append(torch.full((len(state[0]), self._config.readout_dim), 128, dtype=torch.uint8))
        return tuple(state)

    def step(
        self, ids: Tensor, state: State, memories: Sequence[Memory | ScatteredMemory], parents: Tensor | None = None
    ) -> StepOutput:
        """ids [N] int64, the state and which of its rows each goes on from [N] (see `InferenceNetwork.step`)
        -> StepOutput."""
        config, ids = self._config, ids.contiguous()
        num_rows, num_parts = len(ids), (len(state) - config.input_feeding) // config.decoder_layers
        work = Work(num_rows, parents, len(state[0]))
        table = self._cells[0].table
        fixed: Tensor | None = None
        context: Tensor | None = None  # bytes [N, C]
        attention: tuple[Tensor, ...] = ()
        x: list[Input] = []
        if config.input_feeding:
            x = [Input(state[-1], is_parents=True)]
        elif config.attention_query == "previous":
            top = state[(config.decoder_layers - 1) * num_parts :]
            floats = top[1] if config.cell == "gru" else None
            context, attention = self._attend(work, Input(top[0], is_parents=True), floats, memories, parents)
            x = [Input(context)]
        elif config.context_input:
            assert table is not None
            contexts = [(cast(Tensor, cast(Memory, m).context), m.rows_each) for m in memories]
            fixed = torch.cat([part.repeat_interleave(rows_each, dim=0) for part, rows_each in contexts])
            table = table.index_select(0, ids).add_(fixed[:, : table.shape[1]])
        has_rows = fixed is None
        new_state: list[Tensor] = []
        sums: Tensor | None = None  # [N, H] float32
        asks_top = context is None and self._attention is not None and self._queries is None
        for layer, cell in enumerate(self._cells):
            is_top = layer + 1 == config.decoder_layers
            after, h = cell.step(
                work,
                x,
                state[layer * num_parts : (layer + 1) * num_parts],
                num_rows,
                None if layer else table,
                ids if layer == 0 and has_rows else None,
                wants_floats=config.residual or (is_top and asks_top),
            )
            new_state.extend(after)
            x = [Input(after[0])]
            if config.residual and h is not None:
                work.run()
                sums = h if sums is None else sums.add(h)
                x = [Input(quantize(sums, float(layer + 1)))] if layer else x
                h = sums
        if context is None and self._attention is not None:
            context, attention = self._attend(work, x[0], h, memories)
        if context is not None:
            x.append(Input(context))
        readout_table = self._readout_table
        if fixed is not None:
            rest = fixed[:, fixed.shape[1] - config.readout_dim :]
            readout_table = rest if readout_table is None else readout_table.index_select(0, ids).add_(rest)
        is_by_id = readout_table is not None and has_rows
        readout = work.tanh(self._readout, x, added=readout_table, ids=ids if is_by_id else None)
        if config.input_feeding:
            new_state.append(readout)
        logits = work.logits(self._output, [Input(readout)])
        work.run()
        return StepOutput(TokenScores(*logits, parents=parents), tuple(new_state), attention)

    def _attend(
        self,
        work: Work,
        state: Input,
        floats: Tensor | None,
        memories: Sequence[Memory | ScatteredMemory],
        parents: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Looks up the source.

        Args:
            state: [·, H] of the rows, or of their parents.
            floats: the same in float32 where it is at hand.
            parents: [N], where the state is theirs.

        Returns:
            Context in bytes [N, M] and each memory's weights [R·K, S].
        """
        assert self._attention is not None
        if self._queries is not None:
            queries = work.product(self._queries, [state])
        else:
            if floats is None:
                work.run()
                floats = dequantize(state.data)
            queries = floats
            if parents is not None:
                queries = queries.index_select(0, parents.clamp(min=0))
        contexts = torch.empty(sum(memory.num_rows for memory in memories), self._config.memory_dim, dtype=torch.uint8)
        weights: list[Tensor] = []
        start = 0
        for memory in memories:
            end = start + memory.num_rows
            if self.looks_up_anywhere:
                scattered = memory if isinstance(memory, ScatteredMemory) else scattered_memory(memory)
                weight = work.attend(queries, scattered, contexts, start, self._memory_bound)
            else:
                work.run()
                context, weight = look_up(self._attention, queries[start:end], cast(Memory, memory))
                contexts[start:end] = quantize(context, self._memory_bound)
            weights.append(weight)
            start = end
        return contexts, tuple(weights)


def scattered_memory(
    memory: Memory, entries: np.ndarray | None = None, lens: np.ndarray | None = None
) -> ScatteredMemory:
    """Entries [R] of a memory in bfloat16 where they lie, whose lengths are `lens` [R]; without them all, as its mask
    says."""
    assert memory.keys is not None and memory.values is not None
    entries = np.arange(memory.num_entries) if entries is None else entries
    keys, values = (part.data_ptr() + entries * (2 * part.stride(0)) for part in (memory.keys, memory.values))
    lens = memory.mask.sum(dim=1).numpy() if lens is None else lens
    return ScatteredMemory(keys, values, lens, memory.mask.shape[1], memory.rows_each, [memory])
