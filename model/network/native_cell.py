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

from model.network.kernels import Affine, Input, Work
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
        self._cell = type(cell)

    def pack(self, weight: Tensor, bias: Tensor | None, parts: Sequence[tuple[int, float]]) -> Affine:
        """The gates as one map of the inputs that come as bytes, weight [G·H, ·] and bias [G·H], and of the state.

        A GRU multiplies one share of its candidate by its reset gate: it has four sums, the two shares apart.
        """
        state = (self.weight_hh.shape[1], 1.0)
        if self.state_bias is None:
            joined = torch.cat((weight, self.weight_hh), dim=1)
            return Affine(joined, bias, parts=[*parts, state], num_sums=self._cell.num_gates)
        bias = torch.zeros_like(self.state_bias) if bias is None else bias
        of_input, of_state = (torch.stack(part.chunk(self._cell.num_gates)) for part in (weight, self.weight_hh))
        of_input = torch.cat((of_input, torch.zeros_like(of_input[-1:])))  # r, z, the candidate's share; nothing
        of_state = torch.cat((of_state[:-1], torch.zeros_like(of_state[-1:]), of_state[-1:]))
        input_bias, state_bias = (part.chunk(self._cell.num_gates) for part in (bias, self.state_bias))
        biases = [*(a + b for a, b in zip(input_bias[:-1], state_bias, strict=False)), input_bias[-1], state_bias[-1]]
        return Affine(
            torch.cat((of_input, of_state), dim=2).flatten(0, 1),
            torch.cat(biases),
            parts=[*parts, state],
            num_sums=len(biases),
            sums_of_parts=[*[(0, 1, 2)] * len(parts), (0, 1, 3)],
        )

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
        self._gates = maps.pack(weight, None if embedding is not None else maps.input_bias, parts)

    def step(
        self,
        work: Work,
        x: Sequence[Input],
        state: State,
        num_rows: int,
        added: Tensor | None,
        ids: Tensor | None,
        *,
        wants_floats: bool,
    ) -> tuple[State, Tensor | None]:
        """Writes down one step.

        Args:
            x: the inputs, bytes [N, ·].
            state: that of the rows' parents; see the module.
            num_rows: N.
            added: shares of the gates that are there already, [N, G·H]; or with ids [N] int64 a table of them.

        Returns:
            The state after it, and h [N, H] float32 where wanted.
        """
        h = torch.empty(num_rows, self._hidden_dim, dtype=torch.uint8)
        kept = tuple(torch.empty(num_rows, self._hidden_dim) for _ in state[1:])
        # A GRU keeps h exactly as it is: there is no need to write it twice.
        is_kept = self._kind is CELLS["gru"]
        floats = torch.empty(num_rows, self._hidden_dim) if wants_floats and not is_kept else None
        inputs = [*x, Input(state[0], is_parents=True)]
        work.cell(self._gates, KINDS[self._kind], inputs, added, ids, state[1:], kept, h, floats)
        return (h, *kept), (kept[0] if is_kept and wants_floats else floats)
