"""Recurrent cells over packed products, as they decode: see inference.py.

Shape letters: N live rows, G gates, H hidden, V vocabulary, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from model.network.packed import Fp32Linear, PackedLinear
from model.network.recurrent import Cell, State


def product(linear: PackedLinear, x: Tensor, add: Tensor | None) -> Tensor:
    """Of the prepared x, plus `add` [N, O] where given, which is overwritten."""
    return linear(x) if add is None else linear.add_to_(add, x)


def beside(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)


class Gates:
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
        gates = Gates(cell)
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
            gates = product(self._hidden, torch.cat((*x, hidden), dim=1), given)
            return self._gates.activate_(gates, None, state)
        if self._input is not None:
            given = product(self._input, beside(x), given)
        assert given is not None
        if self._gates.is_sum:
            return self._gates.activate_(self._hidden.add_to_(given, hidden), None, state)
        return self._gates.activate_(self._gates.normalize_input(given), self._hidden(hidden), state)
