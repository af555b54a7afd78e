"""The decoder over packed products, one step for all live rows: see inference.py.

Shape letters: B batch, N live rows, R entries of a memory, K rows an entry, S source length, G gates, H hidden,
M memory width, A key width, C context, F readout, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.attention import Attention
from model.network.decoder import Decoder, Memory
from model.network.packed import Fp32Linear, PackedLinear, padded_rows
from model.network.packed_cell import PackedCell, beside, product
from model.network.recurrent import CELLS, Cell, RNNCell, State
from model.network.token_scores import BLOCK, TokenScores


class StepOutput(NamedTuple):
    """What one step gives.

    Attributes:
        scores: of N rows over V', V padded to a multiple of the scores' blocks.
        state: after the step, tensors [N, ...].
        attention: for each memory its rows' weights [R·K, S]; empty without attention.
    """

    scores: TokenScores
    state: State
    attention: tuple[Tensor, ...]


def _filled(x: Tensor, num_rows: int) -> Tensor:
    """x [N, ...] with rows of zeros up to so many."""
    return x if x.shape[0] == num_rows else F.pad(x, (0, 0, 0, num_rows - x.shape[0]))


def padded_output(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Weight [V', F] and bias [V'] of the output layer, with tokens that never come up to a whole block."""
    weight, bias = decoder.output.weight, decoder.output.bias
    num_missing = -weight.shape[0] % BLOCK
    return (
        torch.cat((weight, weight.new_zeros(num_missing, weight.shape[1]))),
        torch.cat((bias, bias.new_full((num_missing,), float("-inf")))),
    )


def pack_bridge(bridge: nn.Module) -> Fp32Linear | None:
    """None where states pass as they are."""
    if isinstance(bridge, nn.Identity):
        return None
    affine = cast(nn.Linear, cast(nn.Sequential, bridge)[0])
    return Fp32Linear(affine.weight, affine.bias)  # once a request, and a cell's c has no bound


def look_up(attention: Attention, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """queries [R·K, A] -> context [R·K, M] and weights [R·K, S]."""
    assert memory.keys is not None and memory.values is not None
    num_entries, shape = memory.num_entries, (memory.num_entries, memory.rows_each, -1)
    looked_up = (queries.view(shape), memory.keys, memory.values, memory.mask)
    if num_entries == 1:  # the kernel for one sentence adds in another order
        looked_up = cast(tuple[Tensor, Tensor, Tensor, Tensor], tuple(t.expand(2, *t.shape[1:]) for t in looked_up))
    context, weights = attention.look_up(*looked_up)
    return context[:num_entries].flatten(0, 1), weights[:num_entries].flatten(0, 1)


class PackedDecoder:
    """One token for every live row."""

    def __init__(self, decoder: Decoder, linear: type[PackedLinear], memory_bound: float) -> None:
        config = decoder.config
        self._config = config
        self._attention = decoder.attention
        self._num_states = CELLS[config.cell].num_states
        self._prepare = linear.prepare
        # One for all that stands side by side in a product: residual layers add up, contexts are as large as memories.
        num_sums = config.decoder_layers - 1 if config.residual else 0
        self._bound = max(1.0 + num_sums, memory_bound)
        self._memory_bound = memory_bound
        self._keys: PackedLinear | None = None
        self._queries: PackedLinear | None = None
        if self._attention is not None:
            project_memory = getattr(self._attention, "project_memory", getattr(self._attention, "project", None))
            if project_memory is not None:
                self._keys = linear(project_memory.weight, project_memory.bias, bound=memory_bound)
        self._cells = [
            PackedCell(
                cast(Cell, cell),
                linear,
                bound=self._bound,
                embedding=None if layer else decoder.embedding.weight,
                has_constant=layer == 0 and config.context_input,
            )
            for layer, cell in enumerate(decoder.cells)
        ]
        project_query = getattr(self._attention, "project_query", None)
        if project_query is not None:
            self._queries = linear(project_query.weight, project_query.bias, bound=self._bound)
        self._pack_readout(decoder, linear)
        self._bridges = [pack_bridge(bridge) for bridge in decoder.bridges]
        self._source_layers = [decoder.source_layer(layer) for layer in range(config.decoder_layers)]

    def _pack_readout(self, decoder: Decoder, linear: type[PackedLinear]) -> None:
        config = self._config
        weight, bias = RNNCell.for_sigmoid(decoder.readout.weight), RNNCell.for_sigmoid(decoder.readout.bias)
        dims = [config.decoder_dim, decoder.context_dim, weight.shape[1] - config.decoder_dim - decoder.context_dim]
        of_state, of_context, of_embedding = weight.split(dims, dim=1)
        self._readout_table: Tensor | None = None
        self._readout_constant: Fp32Linear | None = None
        if dims[2]:
            self._readout_table = Fp32Linear(of_embedding, None)(decoder.embedding.weight.float())
        if config.context_input:
            self._readout_constant = Fp32Linear(of_context, None)
            self._readout = linear(of_state, bias, bound=self._bound)
        else:
            self._readout = linear(torch.cat((of_state, of_context), dim=1), bias, bound=self._bound)
        self._output = linear(*padded_output(decoder))

    def memory(self, outputs: Tensor, last_states: Sequence[State], lens: Tensor) -> Memory:
        """outputs [B, S, M] with zeros where there is no token -> the memory of B sentences."""
        num_rows, width, _ = outputs.shape
        mask = torch.arange(width, device=lens.device) < lens[:, None]  # [B, S]
        context: Tensor | None = None
        if self._config.context_input:
            last = last_states[-1][0]
            assert self._cells[0].constant is not None and self._readout_constant is not None
            context = torch.cat((self._cells[0].constant(last), self._readout_constant(last)), dim=1)  # [B, G·H + F]
        if self._attention is None:
            return Memory(None, None, mask, context)
        if self._keys is None:
            return Memory(outputs, outputs, mask, context)
        keys = self._keys(self._prepare(outputs.flatten(0, 1), self._memory_bound))
        return Memory(keys.view(num_rows, width, -1), outputs, mask, context)

    def init_state(self, last_states: Sequence[State]) -> State:
        """The state before `<bos>`: tensors [B, H] (and [B, F])."""
        state: list[Tensor] = []
        for layer, source in enumerate(self._source_layers):
            bridges = self._bridges[layer * self._num_states : (layer + 1) * self._num_states]
            for part, bridge in zip(last_states[source], bridges, strict=True):
                state.append(part if bridge is None else torch.tanh(bridge(part.contiguous())))
        if self._config.input_feeding:
            state.append(state[0].new_zeros(state[0].shape[0], self._config.readout_dim))
        return tuple(state)

    def step(self, ids: Tensor, state: State, memories: Sequence[Memory]) -> StepOutput:
        """ids [N] int64, state tensors [N, ...] -> StepOutput."""
        num_rows = ids.shape[0]
        num_missing = padded_rows(num_rows) - num_rows
        if not num_missing:
            return self._step(ids, state, memories)
        filled = tuple(F.pad(part, (0, 0, 0, num_missing)) for part in state)
        scores, state, attention = self._step(F.pad(ids, (0, num_missing)), filled, memories)
        return StepOutput(scores.rows(0, num_rows), tuple(part[:num_rows] for part in state), attention)

    def _step(self, ids: Tensor, state: State, memories: Sequence[Memory]) -> StepOutput:
        """As `step`; there may be more rows than the memories have."""
        config = self._config
        attention: tuple[Tensor, ...] = ()
        given = cast(Tensor, self._cells[0].table).index_select(0, ids)  # [N, G·H]
        fixed: Tensor | None = None
        context: Tensor | None = None  # prepared
        dense: list[Tensor] = []
        if config.input_feeding:
            dense.append(self._prepare(state[-1], self._bound))
        elif config.attention_query == "previous":
            context, attention = self._attend(state[(config.decoder_layers - 1) * self._num_states], memories)
            dense.append(context)
        elif config.context_input:
            fixed = torch.cat([cast(Tensor, m.context).repeat_interleave(m.rows_each, dim=0) for m in memories])
            fixed = _filled(fixed, ids.shape[0])
            given += fixed[:, : given.shape[1]]
        x, prepared = state[0], dense
        new_state: list[Tensor] = []
        for layer, cell in enumerate(self._cells):
            before = state[layer * self._num_states : (layer + 1) * self._num_states]
            after = cell.step(None if layer else given, prepared, before)
            new_state.extend(after)
            x = after[0] + x if config.residual and layer else after[0]
            prepared = [self._prepare(x, self._bound)]
        if context is None and self._attention is not None:
            context, attention = self._attend(x, memories)
        added = None if self._readout_table is None else self._readout_table.index_select(0, ids)
        if fixed is not None:
            rest = fixed[:, given.shape[1] :]
            added = rest.contiguous() if added is None else added.add_(rest)
        seen = prepared if context is None else [*prepared, context]
        (readout,) = RNNCell.activate_sigmoid_(product(self._readout, beside(seen), added), None, ())
        if config.input_feeding:
            new_state.append(readout)
        logits = self._output(self._prepare(readout))
        log_probs = torch._log_softmax(logits, 1, False, out=logits)
        return StepOutput(TokenScores(log_probs), tuple(new_state), attention)

    def _attend(self, state: Tensor, memories: Sequence[Memory]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """state [N, H] -> prepared context [N, M] and each memory's weights [R·K, S]."""
        assert self._attention is not None
        queries = state if self._queries is None else self._queries(self._prepare(state, self._bound))
        contexts: list[Tensor] = []
        weights: list[Tensor] = []
        num_rows = [memory.num_rows for memory in memories]
        for part, memory in zip(queries[: sum(num_rows)].split(num_rows), memories, strict=True):
            context, weight = look_up(self._attention, part, memory)
            contexts.append(context)
            weights.append(weight)
        context = self._prepare(contexts[0] if len(contexts) == 1 else torch.cat(contexts), self._bound)
        return _filled(context, state.shape[0]), tuple(weights)
