"""The encoder over packed products, for sentences of unequal length without padding: see inference.py.

Shape letters: B batch, S source length, P source tokens of a batch without padding, Q rows of all steps that read them,
D directions, G gates, H hidden, M memory width, V vocabulary, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.network.packed import Fp32Linear, PackedLinear, padded_rows
from model.network.packed_cell import Gates, beside
from model.network.recurrent import Cell, State
from model.network.seq2seq import Seq2Seq


class Layout:
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
        self._gates = [Gates(cell) for cell in cells]
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

    def read(self, layout: Layout, ids: Tensor | None, x: Tensor | None) -> tuple[Tensor, State]:
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

    def _of_tokens(self, layout: Layout, ids: Tensor | None) -> Tensor:
        assert self._table is not None and ids is not None
        read = ids[layout.tokens(self.num_directions)]
        if self.num_directions == 2:
            read += self._vocab_size * layout.directions()
        return self._table.index_select(0, read)

    def _of_outputs(self, layout: Layout, x: Tensor) -> Tensor:
        assert self._input is not None
        shares = self._input(self._prepare(x, self._bound))  # [P, D·G·H]
        if self._gates[0].is_normed:
            of_direction = shares.chunk(self.num_directions, dim=1)
            shares = beside([g.normalize_input(s) for g, s in zip(self._gates, of_direction, strict=True)])
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
            self.bound = self.bound + 1.0 if self._config.is_residual_layer(index) else 1.0

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
        layout = Layout(lens, width, is_reversed=self._config.reverse_source, device=src_ids.device)
        below: Tensor | None = None
        last_states: list[State] = []
        for index, layer in enumerate(self._layers):
            outputs, last = layer.read(layout, src_ids.flatten(), below)
            last_states.append(last)
            if index + 1 == len(self._layers) and not self._config.is_residual_layer(index):
                padded = outputs.index_select(0, layout.padded_outputs(layer.num_directions))
                return padded.view(num_rows, width, -1), last_states
            x = outputs.index_select(0, layout.outputs(layer.num_directions)).view(len(layout), -1)
            below = x + below if below is not None and self._config.is_residual_layer(index) else x
        assert below is not None
        padded = below.new_zeros(num_rows * width, below.shape[1]).index_copy_(0, layout.positions(), below)
        return padded.view(num_rows, width, -1), last_states
