"""A trained network as it decodes: the same function as `Seq2Seq`, made of packed weights. Knows token ids only.

What is different from the modules, and why:

    tables        what an embedding adds to the gates is computed once for the whole vocabulary, so that a step looks
                  it up instead of multiplying: a tenth of the products of an LSTM with input feeding
    one product   the input's and the state's share of an additive cell's gates are one product over both side by side
    no padding    the encoder runs over sentences sorted by length: step t holds those that are longer than t, and no
                  mask is needed (the layout of torch's packed sequences)
    few shapes    the number of rows is filled up to one of a few, for which the products are compiled: `padded_rows`
    rows alone    no row's result depends on its company: see packed.py for the products; attention's are made for at
                  least two sentences, because the kernel for one adds in another order

Everything is float32 but the products inside `PackedLinear`. `Seq2Seq` stays the definition; a test compares the two
for every architecture.

Shape letters: B batch, N live rows, R entries of a memory, K rows an entry, S source length, P source tokens of a
batch without padding, Q rows of all steps that read them, D directions, G gates, H hidden, M memory width, A key width,
C context, F readout, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.network.decoder import Decoder, Memory
from model.network.packed import PACKED, Fp32Linear, PackedLinear, padded_rows
from model.network.recurrent import CELLS, Cell, RNNCell, State
from model.network.seq2seq import Seq2Seq

VOCAB_MULTIPLE = 64  # log-probabilities are padded to it with -inf, so that a search can look at them in blocks


class StepOutput(NamedTuple):
    """What one step gives.

    Attributes:
        log_probs: [N, V'] float32, V padded to a multiple of `VOCAB_MULTIPLE`.
        state: after the step, tensors [N, ...].
        attention: for each memory its rows' weights [R·K, S]; empty without attention.
    """

    log_probs: Tensor
    state: State
    attention: tuple[Tensor, ...]


class PackedCell:
    """A cell of the decoder, over an embedding table, bounded inputs, or both.

    Args:
        cell: whose weights to pack.
        linear: the class of the packed products.
        bound: no input is larger.
        embedding: [V, E], where the first E columns of the input are embedded tokens.
        has_constant: part of the input is the same at every step of a sentence; its share comes from outside.
    """

    def __init__(
        self,
        cell: Cell,
        linear: type[PackedLinear],
        *,
        bound: float = 1.0,
        embedding: Tensor | None = None,
        has_constant: bool = False,
    ) -> None:
        gates = _Gates(cell)
        self._gates, self._prepare, self._bound = gates, linear.prepare, bound
        embedding_dim = 0 if embedding is None else embedding.shape[1]
        self.table: Tensor | None = None
        self.constant: Fp32Linear | None = None
        dense = gates.weight_ih[:, embedding_dim:]
        if embedding is not None:
            self.table = Fp32Linear(gates.weight_ih[:, :embedding_dim], gates.bias_ih)(embedding.float())
        if has_constant:
            self.constant = Fp32Linear(dense, None)
            dense = dense[:, :0]
        input_bias = gates.bias_ih if embedding is None else None
        self._is_fused = gates.is_sum and dense.shape[1] > 0
        self._input: PackedLinear | None = None
        if self._is_fused:
            self._hidden = linear(torch.cat((dense, gates.weight_hh), dim=1), input_bias, bound=bound)
            return
        if dense.shape[1]:
            self._input = linear(dense, input_bias, bound=bound)
        self._hidden = linear(gates.weight_hh, gates.bias_hh, bound=bound)

    def step(self, given: Tensor | None, x: Sequence[Tensor], state: State) -> State:
        """One step.

        Args:
            given: [N, G·H], shares of the gates that are there already; overwritten. None where there is none.
            x: the other inputs, prepared, tensors [N, ·] that stand side by side.
            state: tensors [N, H].
        """
        hidden = self._prepare(state[0], self._bound)
        if self._is_fused:
            gates = _product(self._hidden, torch.cat((*x, hidden), dim=1), given)
            return self._gates.activate_(gates, None, state)
        if self._input is not None:
            given = _product(self._input, _beside(x), given)
        assert given is not None
        if self._gates.is_sum:
            return self._gates.activate_(self._hidden.add_to_(given, hidden), None, state)
        return self._gates.activate_(self._gates.normalize_input(given), self._hidden(hidden), state)


class _Gates:
    """A cell's maps and its pointwise part, in the form that is fastest: made of sigmoids, and with both biases in one
    where the cell is additive; a layer-normalised cell stays as it is."""

    def __init__(self, cell: Cell) -> None:
        self.kind = type(cell)
        self._norm_ih, self._norm_hh = cell.norm_ih, cell.norm_hh
        self.is_normed = self._norm_hh is not None
        scaled = (lambda share: share) if self.is_normed else self.kind.for_sigmoid
        self.is_sum = self.kind.is_additive and not self.is_normed
        self.weight_ih, self.weight_hh = scaled(cell.weight_ih.detach()), scaled(cell.weight_hh.detach())
        bias_ih, bias_hh = scaled(cell.bias_ih.detach()), scaled(cell.bias_hh.detach())
        self.bias_ih = bias_ih + bias_hh if self.is_sum else bias_ih
        self.bias_hh = None if self.is_sum else bias_hh

    def normalize_input(self, gates: Tensor) -> Tensor:
        return gates if self._norm_ih is None else cast(Tensor, self._norm_ih(gates))

    def activate_(self, gates: Tensor, hidden_gates: Tensor | None, state: State) -> State:
        """From gates [N, G·H], which hold the state's share already where `is_sum`; they are overwritten."""
        if self._norm_hh is None:
            return self.kind.activate_sigmoid_(gates, hidden_gates, state)
        assert hidden_gates is not None
        return self.kind.forward_(gates, cast(Tensor, self._norm_hh(hidden_gates)), state)


class _Layout:
    """Where the tokens of a batch stand while an encoder reads them, without padding.

    Sentences are sorted by falling length, and step t reads the n_t that are longer than t: the P tokens stand step by
    step. Backwards each sentence is read from its own end, so that both directions read as many at each step, and D
    directions stand in *blocks* of D·n_t rows, one direction after the other. For lengths 3 and 1, read forwards (a)
    and backwards (b), tokens are numbered within their sentence:

        step 0    a: 0 0   b: 2 0        step 1    a: 1   b: 1        step 2    a: 2   b: 0

    Where n_t is none of the numbers of rows that products are made for, places are left over at the end of each
    direction: they read the batch's first token, and nobody looks at what becomes of them.
    """

    def __init__(self, lens: Sequence[int], width: int, *, is_reversed: bool, device: torch.device) -> None:
        self._device = device
        self._lens = np.asarray(lens)
        self.order = np.argsort(-self._lens, kind="stable")
        falling = self._lens[self.order]
        # How many sentences each step reads, and how many rows it has.
        self.num_read: list[int] = (falling[:, None] > np.arange(falling[0])).sum(axis=0).tolist()
        self.num_at = [padded_rows(n) for n in self.num_read]
        read, rows = np.asarray(self.num_read), np.asarray(self.num_at)
        starts, starts_of_rows = np.cumsum(read) - read, np.cumsum(rows) - rows
        self.num_rows = int(rows.sum())
        time = np.repeat(np.arange(len(read)), read)  # [P]
        rank = np.arange(len(time)) - starts[time]  # [P], which sentence of the sorted ones
        last = falling[rank] - 1
        self._mirror = starts[last - time] + rank  # [P], where the other direction reads the same token
        self._start, self._count, self._rank = starts_of_rows[time], rows[time], rank
        forwards = last - time if is_reversed else time
        self._positions = self.order[rank] * width + forwards  # [P] in [B, S] laid out flat
        self._num_padded = len(lens) * width

    def __len__(self) -> int:
        """P."""
        return len(self._rank)

    def tokens(self, num_directions: int) -> Tensor:
        """[D·Q] int64: positions in [B, S], laid out flat, of the tokens as D directions read them."""
        return self._index(self._in_blocks([self._positions, self._positions[self._mirror]][:num_directions]))

    def directions(self) -> Tensor:
        """[2·Q] int64: 0 where the tokens are read forwards, 1 where backwards."""
        forwards = np.zeros_like(self._rank)
        return self._index(self._in_blocks([forwards, forwards + 1]))

    def positions(self) -> Tensor:
        """[P] int64: positions of the tokens in [B, S], laid out flat."""
        return self._index(self._positions)

    def shares(self, num_directions: int) -> Tensor:
        """[D·Q] int64: which rows of D directions' shares, [P, D, ...] laid out flat, they read."""
        p = np.arange(len(self._mirror))
        directions = [p] if num_directions == 1 else [2 * p, 2 * self._mirror + 1]
        return self._index(self._in_blocks(directions))

    def outputs(self, num_directions: int) -> Tensor:
        """[P·D] int64: which rows of the D·Q outputs belong to each token."""
        return self._index(self._of_token(num_directions).ravel())

    def padded_outputs(self, num_directions: int) -> Tensor:
        """[B·S·D] int64: which rows of the D·Q outputs belong to each place of [B, S]; D·Q where there is none."""
        of_token = self._of_token(num_directions)
        index = np.full((self._num_padded, num_directions), num_directions * self.num_rows)
        index[self._positions] = of_token
        return self._index(index.ravel())

    def sentences(self) -> Tensor:
        """[B] int64: where each sentence stands among the sorted ones."""
        return self._index(np.argsort(self.order, kind="stable"))

    def _of_token(self, num_directions: int) -> NDArray[np.int64]:
        """[P, D]: the rows where the directions have read a token."""
        rows = [num_directions * self._start + direction * self._count + self._rank for direction in (0, 1)]
        return np.stack([rows[0], rows[1][self._mirror]][:num_directions], axis=1)

    def _in_blocks(self, directions: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """[P] of each direction -> [D·Q], 0 in the places left over."""
        num_directions = len(directions)
        blocks = np.zeros(num_directions * self.num_rows, dtype=np.int64)
        for direction, values in enumerate(directions):
            blocks[num_directions * self._start + direction * self._count + self._rank] = values
        return blocks

    def _index(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


class PackedEncoderLayer:
    """D cells that read the same inputs, one in each direction, at the same time.

    Args:
        cells: one or two.
        linear: the class of the packed products.
        embedding: [V, E] in the lowest layer.
        bound: no input is larger.
    """

    def __init__(
        self, cells: Sequence[Cell], linear: type[PackedLinear], *, embedding: Tensor | None = None, bound: float = 1.0
    ) -> None:
        self.num_directions = len(cells)
        self._gates = [_Gates(cell) for cell in cells]
        self._hidden = [linear(gates.weight_hh, gates.bias_hh) for gates in self._gates]
        self._hidden_dim = cells[0].hidden_dim
        self._prepare, self._bound = linear.prepare, bound
        self._table: Tensor | None = None
        self._input: PackedLinear | None = None
        if embedding is None:
            weight = torch.cat([gates.weight_ih for gates in self._gates])
            self._input = linear(weight, torch.cat([gates.bias_ih for gates in self._gates]), bound=bound)
        else:
            tables = [Fp32Linear(gates.weight_ih, gates.bias_ih)(embedding.float()) for gates in self._gates]
            self._table = torch.cat(
                [gates.normalize_input(table) for gates, table in zip(self._gates, tables, strict=True)]
            )
            self._vocab_size = embedding.shape[0]

    def read(self, layout: _Layout, ids: Tensor | None, x: Tensor | None) -> tuple[Tensor, State]:
        """Reads tokens, ids [B·S] int64, in the lowest layer, else outputs of the layer below, x [P, M].

        Returns:
            Outputs [D·Q + 1, H] in blocks, with a row of zeros after them, and the last states, tensors [B, D·H].
        """
        gates = self._of_tokens(layout, ids) if x is None else self._of_outputs(layout, x)  # [D·Q, G·H]
        size = self.num_directions * layout.num_at[0]
        kind = self._gates[0].kind
        state: State = (gates.new_zeros(size, self._hidden_dim),) * kind.num_states
        outputs: list[Tensor] = []
        ended: list[State] = []
        num_next = [*layout.num_read[1:], 0]
        for t, part in enumerate(gates.split([self.num_directions * n for n in layout.num_at])):
            if part.shape[0] < state[0].shape[0]:
                num_rows = part.shape[0] // self.num_directions
                state = tuple(s[:, :num_rows].reshape(-1, self._hidden_dim) for s in self._by_direction(state))
            state = self._step(part, state, is_first=not outputs)
            outputs.append(state[0])
            if num_next[t] < layout.num_read[t]:
                ended.append(tuple(s[:, num_next[t] : layout.num_read[t]] for s in self._by_direction(state)))
        sorted_last = [torch.cat(pieces[::-1], dim=1) for pieces in zip(*ended, strict=True)]  # [D, B, H]
        back = layout.sentences()
        outputs.append(gates.new_zeros(1, self._hidden_dim))
        return torch.cat(outputs), tuple(s[:, back].transpose(0, 1).flatten(1) for s in sorted_last)

    def _by_direction(self, state: State) -> list[Tensor]:
        return [s.view(self.num_directions, -1, self._hidden_dim) for s in state]

    def _of_tokens(self, layout: _Layout, ids: Tensor | None) -> Tensor:
        assert self._table is not None and ids is not None
        read = ids[layout.tokens(self.num_directions)]
        if self.num_directions == 2:
            read += self._vocab_size * layout.directions()
        return self._table.index_select(0, read)

    def _of_outputs(self, layout: _Layout, x: Tensor) -> Tensor:
        assert self._input is not None
        shares = self._input(self._prepare(x, self._bound))  # [P, D·G·H]
        if self._gates[0].is_normed:
            of_direction = shares.chunk(self.num_directions, dim=1)
            shares = _beside([g.normalize_input(s) for g, s in zip(self._gates, of_direction, strict=True)])
        of_rows = shares.view(self.num_directions * x.shape[0], -1)
        return of_rows.index_select(0, layout.shares(self.num_directions))

    def _step(self, part: Tensor, state: State, *, is_first: bool) -> State:
        """A block of gates [D·n, G·H] and state, tensors [D·n, H] -> the next state."""
        first, rows = self._gates[0], part.chunk(self.num_directions)
        if is_first and first.is_sum:  # the state is zero, and the gates hold all biases
            return first.activate_(part, None, state)
        hidden = self._prepare(state[0]).chunk(self.num_directions)
        if first.is_sum:
            for linear, share, x in zip(self._hidden, rows, hidden, strict=True):
                linear.add_to_(share, x)
            return first.activate_(part, None, state)
        shares = [linear(x) for linear, x in zip(self._hidden, hidden, strict=True)]
        by_direction = zip(*(s.chunk(self.num_directions) for s in state), strict=True)
        steps = [
            gates.activate_(row, share, before)
            for gates, row, share, before in zip(self._gates, rows, shares, by_direction, strict=True)
        ]
        if len(steps) == 1:
            return steps[0]
        return tuple(torch.cat(parts) for parts in zip(*steps, strict=True))


class PackedEncoder:
    """Reads a batch of sentences without padding."""

    def __init__(self, network: Seq2Seq, linear: type[PackedLinear]) -> None:
        encoder = network.encoder
        self._config = network.config
        self._layers: list[PackedEncoderLayer] = []
        self.bound = 1.0  # of the outputs
        for index, layer in enumerate(encoder.layers):
            cells = [cast(Cell, cell) for cell in cast(nn.ModuleList, layer.cells)]
            embedding = encoder.embedding.weight if index == 0 else None
            self._layers.append(PackedEncoderLayer(cells, linear, embedding=embedding, bound=self.bound))
            self.bound = self.bound + 1.0 if self._is_residual(index) else 1.0

    def _is_residual(self, index: int) -> bool:
        directions = self._config.num_directions
        return self._config.residual and index > 0 and directions[index] == directions[index - 1]

    def __call__(self, src_ids: Tensor, lens: Sequence[int]) -> tuple[Tensor, list[State]]:
        """Reads B sentences.

        Args:
            src_ids: [B, S] int64.
            lens: of each.

        Returns:
            Outputs [B, S, M], zeros where there is no token; and each layer's last states, tensors [B, D·H], lowest
            first.
        """
        num_rows, width = src_ids.shape
        layout = _Layout(lens, width, is_reversed=self._config.reverse_source, device=src_ids.device)
        below: Tensor | None = None
        last_states: list[State] = []
        for index, layer in enumerate(self._layers):
            outputs, last = layer.read(layout, src_ids.flatten(), below)
            last_states.append(last)
            if index + 1 == len(self._layers) and not self._is_residual(index):
                padded = outputs.index_select(0, layout.padded_outputs(layer.num_directions))
                return padded.view(num_rows, width, -1), last_states
            x = outputs.index_select(0, layout.outputs(layer.num_directions)).view(len(layout), -1)
            below = x + below if below is not None and self._is_residual(index) else x
        assert below is not None
        padded = below.new_zeros(num_rows * width, below.shape[1]).index_copy_(0, layout.positions(), below)
        return padded.view(num_rows, width, -1), last_states


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
        self._bridges = [self._pack_bridge(bridge) for bridge in decoder.bridges]
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
        num_missing = -config.tgt_vocab_size % VOCAB_MULTIPLE
        out_weight = torch.cat(
            (decoder.output.weight, decoder.output.weight.new_zeros(num_missing, config.readout_dim))
        )
        out_bias = torch.cat((decoder.output.bias, decoder.output.bias.new_full((num_missing,), float("-inf"))))
        self._output = linear(out_weight, out_bias)

    @staticmethod
    def _pack_bridge(bridge: nn.Module) -> Fp32Linear | None:
        if isinstance(bridge, nn.Identity):
            return None
        affine = cast(nn.Linear, cast(nn.Sequential, bridge)[0])
        return Fp32Linear(affine.weight, affine.bias)  # once a request, and a cell's c has no bound

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
        log_probs, state, attention = self._step(F.pad(ids, (0, num_missing)), filled, memories)
        return StepOutput(log_probs[:num_rows], tuple(part[:num_rows] for part in state), attention)

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
        (readout,) = RNNCell.activate_sigmoid_(_product(self._readout, _beside(seen), added), None, ())
        if config.input_feeding:
            new_state.append(readout)
        logits = self._output(self._prepare(readout))
        return StepOutput(torch._log_softmax(logits, 1, False, out=logits), tuple(new_state), attention)

    def _attend(self, state: Tensor, memories: Sequence[Memory]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """state [N, H] -> prepared context [N, M] and each memory's weights [R·K, S]."""
        assert self._attention is not None
        queries = state if self._queries is None else self._queries(self._prepare(state, self._bound))
        contexts: list[Tensor] = []
        weights: list[Tensor] = []
        num_rows = [memory.num_rows for memory in memories]
        for part, memory in zip(queries[: sum(num_rows)].split(num_rows), memories, strict=True):
            assert memory.keys is not None and memory.values is not None
            num_entries, shape = memory.num_entries, (memory.num_entries, memory.rows_each, -1)
            looked_up = (part.view(shape), memory.keys, memory.values, memory.mask)
            if num_entries == 1:
                looked_up = cast(
                    tuple[Tensor, Tensor, Tensor, Tensor], tuple(t.expand(2, *t.shape[1:]) for t in looked_up)
                )
            context, weight = self._attention.look_up(*looked_up)
            contexts.append(context[:num_entries].flatten(0, 1))
            weights.append(weight[:num_entries].flatten(0, 1))
        context = self._prepare(contexts[0] if len(contexts) == 1 else torch.cat(contexts), self._bound)
        return _filled(context, state.shape[0]), tuple(weights)


class InferenceNetwork:
    """Encoder and decoder of a trained `Seq2Seq`, packed.

    Args:
        network: in evaluation mode, float32. Its weights are copied; it is not needed afterwards.
        precision: `fp32`, `bf16` or `int8` (on a CPU).
    """

    def __init__(self, network: Seq2Seq, precision: str = "fp32") -> None:
        linear = PACKED[precision]
        self.config = network.config
        self.precision = precision
        self.device = network.decoder.output.weight.device
        with torch.inference_mode():
            self._encoder = PackedEncoder(network, linear)
            self._decoder = PackedDecoder(network.decoder, linear, self._encoder.bound)

    @torch.inference_mode()
    def encode(self, src_ids: Tensor, src_lens: Sequence[int]) -> tuple[Memory, State]:
        """Reads B sentences: src_ids [B, S] int64, their lengths -> their memory, and the state before `<bos>`."""
        outputs, last_states = self._encoder(src_ids, src_lens)
        memory = self._decoder.memory(outputs, last_states, torch.tensor(src_lens, device=self.device))
        return memory, self._decoder.init_state(last_states)

    @torch.inference_mode()
    def step(self, ids: Tensor, state: State, memories: Sequence[Memory]) -> StepOutput:
        """One token for every live row.

        Args:
            ids: [N] int64, the last token of each row (`<bos>` at first).
            state: tensors [N, ...], as `encode` or the last `step` returned them, indexed as the search asks.
            memories: the source sentences of the rows, in their order.
        """
        return self._decoder.step(ids, state, memories)


def _filled(x: Tensor, num_rows: int) -> Tensor:
    """x [N, ...] with rows of zeros up to so many."""
    return x if x.shape[0] == num_rows else F.pad(x, (0, 0, 0, num_rows - x.shape[0]))


def _product(linear: PackedLinear, x: Tensor, add: Tensor | None) -> Tensor:
    """Of the prepared x, plus `add` [N, O] where given, which is overwritten."""
    return linear(x) if add is None else linear.add_to_(add, x)


def _beside(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)
