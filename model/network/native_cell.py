"""A recurrent cell of the decoder over the kernels of kernels.cpp; and what it shares with the encoder's.

A cell's state is h in bytes [N, H] and, beside it, what has to be kept exactly [N, H] float32: c of an LSTM, h of a
GRU; a plain RNN has nothing to keep.

Shape letters: N live rows, G gates, H hidden, V vocabulary, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.network.kernels import Affine
from model.network.packed import Fp32Linear
from model.network.recurrent import CELLS, Cell, State

KINDS: dict[type[Cell], int] = {CELLS["rnn"]: 0, CELLS["gru"]: 1, CELLS["lstm"]: 2}  # as kernels.cpp numbers them


def bias_of_input(cell: Cell) -> Tensor:
    """The whole bias where the two shares of the gates enter as their sum only, else the input's."""
    return cell.bias_ih + cell.bias_hh if cell.is_additive else cell.bias_ih


def bias_of_state(cell: Cell) -> Tensor | None:
    return None if cell.is_additive else cell.bias_hh


def table_of(cell: Cell, embedding: Tensor) -> Tensor:
    """What each token [V, E] adds to the gates [V, G·H]; the first E columns of the cell's input are its embedding."""
    return Fp32Linear(cell.weight_ih[:, : embedding.shape[1]], bias_of_input(cell))(embedding.float())


class NativeCell:
    """One step of a decoder's cell.

    Args:
        cell: whose weights to pack.
        parts: widths and bounds of the inputs that come as bytes and stand side by side.
        embedding: [V, E], where the first E columns of the input are embedded tokens.
        num_constant: columns at the end of the input that are the same at every step of a sentence; their share of the
            gates comes from outside.
    """

    def __init__(
        self, cell: Cell, parts: Sequence[tuple[int, float]], *, embedding: Tensor | None = None, num_constant: int = 0
    ) -> None:
        self._kind, self._hidden_dim = type(cell), cell.hidden_dim
        self.table = None if embedding is None else table_of(cell, embedding)
        first = 0 if embedding is None else embedding.shape[1]
        weight = cell.weight_ih[:, first : cell.weight_ih.shape[1] - num_constant]
        bias = None if embedding is not None else bias_of_input(cell)
        state = (cell.hidden_dim, 1.0)
        self._input: Affine | None = None
        if cell.is_additive:
            joined = torch.cat((weight, cell.weight_hh), dim=1)
            self._gates = Affine(joined, bias, parts=[*parts, state], num_gates=cell.num_gates)
            return
        if parts:
            self._input = Affine(weight, bias, parts=parts)
        self._gates = Affine(cell.weight_hh, cell.bias_hh, parts=[state], num_gates=cell.num_gates)

    def step(
        self, x: Sequence[Tensor], state: State, added: Tensor | None, ids: Tensor | None, *, wants_floats: bool
    ) -> tuple[State, Tensor | None]:
        """One step.

        Args:
            x: the inputs, bytes [N, ·].
            state: see the module.
            added: shares of the gates that are there already, [N, G·H]; or with ids [N] int64 a table of them.

        Returns:
            The state after it, and h [N, H] float32 where wanted.
        """
        if self._input is not None:
            added, ids = self._input.product(x, added=added, ids=ids), None
        inputs = [*x, state[0]] if self._kind.is_additive else [state[0]]
        num_rows = len(state[0])
        h = torch.empty(num_rows, self._hidden_dim, dtype=torch.uint8)
        kept = tuple(torch.empty(num_rows, self._hidden_dim) for _ in state[1:])
        # A GRU keeps h exactly as it is: there is no need to write it twice.
        is_kept = KINDS[self._kind] == KINDS[CELLS["gru"]]
        floats = torch.empty(num_rows, self._hidden_dim) if wants_floats and not is_kept else None
        self._gates.cell(KINDS[self._kind], inputs, added, ids, state[1:], kept, h, floats)
        return (h, *kept), (kept[0] if is_kept and wants_floats else floats)
