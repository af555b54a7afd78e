"""A recurrent cell of the decoder over the kernels of kernels.cpp; and what it shares with the encoder's.

A cell's state is h in bytes [N, H] and, beside it, what has to be kept exactly [N, H] float32: c of an LSTM, h of a
GRU; a plain RNN has nothing to keep.

Shape letters: N live rows, G gates, H hidden, V vocabulary, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.network.kernels import Affine
from model.network.packed import Fp32Linear
from model.network.recurrent import CELLS, Cell, State

KINDS: dict[type[Cell], int] = {CELLS["rnn"]: 0, CELLS["gru"]: 1, CELLS["lstm"]: 2}  # as kernels.cpp numbers them


TANH_FACTOR = 2 / math.log(2)  # tanh x = 1 - 2 / (1 + 2^(factor x))
_SIGMOID_FACTOR = -1 / math.log(2)  # σ(x) = 1 / (1 + 2^(factor x))


class GateMaps:
    """A cell's maps to its gates, multiplied as the kernels take them: powers of two are what they compute.

    Attributes:
        weight_ih, weight_hh: [G·H, I] and [G·H, H].
        input_bias: the whole bias where the two shares of the gates enter as their sum only, else the input's.
        state_bias: the rest, or None.
    """

    def __init__(self, cell: Cell) -> None:
        factors = torch.full((cell.num_gates, 1), _SIGMOID_FACTOR)
        factors[cell.candidate] = TANH_FACTOR
        by_gate = factors.expand(-1, cell.hidden_dim).flatten()  # [G·H]
        self.weight_ih = cell.weight_ih.detach() * by_gate[:, None]
        self.weight_hh = cell.weight_hh.detach() * by_gate[:, None]
        bias_ih, bias_hh = cell.bias_ih.detach() * by_gate, cell.bias_hh.detach() * by_gate
        self.input_bias = bias_ih + bias_hh if cell.is_additive else bias_ih
        self.state_bias = None if cell.is_additive else bias_hh

    def table(self, embedding: Tensor) -> Tensor:
        """What each token [V, E] adds to the gates [V, G·H]; the first E columns of the input are its embedding."""
        return Fp32Linear(self.weight_ih[:, : embedding.shape[1]], self.input_bias)(embedding.float())


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
        maps = GateMaps(cell)
        self._kind, self._hidden_dim = type(cell), cell.hidden_dim
        self.table = None if embedding is None else maps.table(embedding)
        first, last = 0 if embedding is None else embedding.shape[1], maps.weight_ih.shape[1] - num_constant
        weight = maps.weight_ih[:, first:last]
        self.constant = Fp32Linear(maps.weight_ih[:, last:], None) if num_constant else None
        bias = None if embedding is not None else maps.input_bias
        state = (cell.hidden_dim, 1.0)
        self._input: Affine | None = None
        if cell.is_additive:
            joined = torch.cat((weight, maps.weight_hh), dim=1)
            self._gates = Affine(joined, bias, parts=[*parts, state], num_gates=cell.num_gates)
            return
        if parts:
            self._input = Affine(weight, bias, parts=parts)
        self._gates = Affine(maps.weight_hh, maps.state_bias, parts=[state], num_gates=cell.num_gates)

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
        is_kept = self._kind is CELLS["gru"]
        floats = torch.empty(num_rows, self._hidden_dim) if wants_floats and not is_kept else None
        self._gates.cell(KINDS[self._kind], inputs, added, ids, state[1:], kept, h, floats)
        return (h, *kept), (kept[0] if is_kept and wants_floats else floats)
