"""Recurrent cells and their layers: the only file that knows how RNN, GRU and LSTM differ.

A state is a tuple of tensors of one shape: `(h,)` for RNN and GRU, `(h, c)` for LSTM. Everyone else passes it on whole.

Shape letters: B batch, N rows, T time, I input width, H hidden width, G gates of the cell, D directions.

Weights have PyTorch's layout and gate order, so that a cell can be compared with `torch.nn.RNN`, `GRU` and `LSTM`.

Why not those modules: a sentence's states are needed at every step (padding must not reach the last state, LSTM's c
included), one step must be callable alone, and the loop below, with all weight gradients in one product after it, is
faster on a CPU.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, ...]

# The state before the first step is zero, and so is its share of the gates: its variance is this alone, and what comes
# back through the norm is multiplied by 1 / sqrt(eps). torch's 1e-5 made that 316, and one step outweighed all others.
_NORM_EPS = 1e-2


class Cell(nn.Module):
    """One recurrent cell: maps an input and a state to the next state.

    Gates are an affine map of the input plus an affine map of h, then the cell's own pointwise part, `activate`.
    With `layer_norm` each of the two maps is normalised (Ba et al. 2016, equation 4).

    Args:
        input_dim: I.
        hidden_dim: H.
        layer_norm: normalise the gates' two summands.
    """

    num_gates: ClassVar[int]
    num_states: ClassVar[int]
    candidate: ClassVar[int]  # which of the gates goes through a tanh
    is_additive: ClassVar[bool]  # the two shares of the gates enter as their sum only

    def __init__(self, input_dim: int, hidden_dim: int, *, layer_norm: bool = False) -> None:
        super().__init__()
        gates_dim = self.num_gates * hidden_dim
        self.hidden_dim = hidden_dim
        self.weight_ih = nn.Parameter(torch.empty(gates_dim, input_dim))
        self.weight_hh = nn.Parameter(torch.empty(gates_dim, hidden_dim))
        self.bias_ih = nn.Parameter(torch.zeros(gates_dim))
        self.bias_hh = nn.Parameter(torch.zeros(gates_dim))
        self.norm_ih = nn.LayerNorm(gates_dim) if layer_norm else None
        self.norm_hh = nn.LayerNorm(gates_dim, eps=_NORM_EPS) if layer_norm else None
        bound = 1 / math.sqrt(hidden_dim)
        nn.init.uniform_(self.weight_ih, -bound, bound)
        for gate in self.weight_hh.data.chunk(self.num_gates):
            nn.init.orthogonal_(gate)

    def initial_state(self, num_rows: int) -> State:
        """Zeros: `num_states` tensors [N, H]."""
        zeros = self.weight_hh.new_zeros(num_rows, self.hidden_dim)
        return (zeros,) * self.num_states

    def input_gates(self, x: Tensor) -> Tensor:
        """The input's share of the gates: x [..., I] -> [..., G·H]."""
        gates = F.linear(x, self.weight_ih, self.bias_ih)
        return gates if self.norm_ih is None else cast(Tensor, self.norm_ih(gates))

    def hidden_gates(self, h: Tensor) -> Tensor:
        """The state's share of the gates: h [N, H] -> [N, G·H]."""
        gates = F.linear(h, self.weight_hh, self.bias_hh)
        return gates if self.norm_hh is None else cast(Tensor, self.norm_hh(gates))

    def step(self, input_gates: Tensor, state: State, hidden_mask: Tensor | None = None) -> State:
        """One step.

        Args:
            input_gates: [N, G·H], from `input_gates`.
            state: tensors [N, H].
            hidden_mask: [N, H] dropout mask on the recurrent connection, or None.
        """
        h = state[0] if hidden_mask is None else state[0] * hidden_mask
        return self.activate(input_gates, self.hidden_gates(h), state)

    @staticmethod
    def activate(input_gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        """The cell's pointwise part: gates' shares [N, G·H] and state -> next state."""
        raise NotImplementedError

    @staticmethod
    def activate_sum_(gates: Tensor, state: State) -> State:
        """`activate` of an additive cell, from the sum of both shares [N, G·H]; leaves in it what `backward_` needs."""
        raise NotImplementedError

    @classmethod
    def for_sigmoid(cls, share: Tensor) -> Tensor:
        """Weights or biases [G·H, ...] with the candidate's rows times -2, as `activate_sigmoid_` wants them."""
        shares = list(share.detach().chunk(cls.num_gates))
        shares[cls.candidate] = -2 * shares[cls.candidate]
        return torch.cat(shares)

    @staticmethod
    def activate_sigmoid_(gates: Tensor, hidden_gates: Tensor | None, state: State) -> State:
        """`activate` without a tanh, which takes torch six times as long as a sigmoid: tanh x = 1 - 2 σ(-2x).

        Args:
            gates: [N, G·H], overwritten; the input's share, of an additive cell the sum of both. The candidate's part
                is -2 times what `activate` takes.
            hidden_gates: [N, G·H], the state's share of a cell that is not additive, in the same way.
            state: tensors [N, H].
        """
        raise NotImplementedError

    @staticmethod
    def forward_(gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        """`activate` that leaves in `gates` [N, G·H] what `backward_` needs, and may overwrite `hidden_gates`."""
        raise NotImplementedError

    @staticmethod
    def backward_(
        grad: tuple[Tensor, ...], gates: Tensor, hidden_gates: Tensor, state: State, new_state: State, grad_hh: Tensor
    ) -> State:
        """Gradient of `forward_`.

        Args:
            grad: of the new state, tensors [N, H].
            gates, hidden_gates: [N, G·H] as `forward_` left them; `gates` is overwritten with the gradient of the
                input's share, `grad_hh` with that of the state's share.
            state, new_state: before and after the step.

        Returns:
            Gradient of the state before the step, without the part that goes through the state's share of the gates.
        """
        raise NotImplementedError

    def unroll(self, x: Tensor, state: State, hidden_mask: Tensor | None = None) -> State:
        """Runs over a whole sequence.

        Args:
            x: [B, T, I] float.
            state: tensors [B, H], before the first step.
            hidden_mask: [B, H], one dropout mask for all steps (Gal and Ghahramani 2016), or None.

        Returns:
            The state after every step: `num_states` tensors [B, T, H].
        """
        gates = self.input_gates(x).transpose(0, 1)  # [T, B, G·H]
        if self.norm_hh is not None:
            return self._unroll_by_autograd(gates, state, hidden_mask)
        dtype = gates.dtype
        with torch.autocast(gates.device.type, enabled=False):
            states = _Unroll.apply(  # type: ignore[no-untyped-call]
                type(self),
                gates,
                self.weight_hh.to(dtype),
                self.bias_hh.to(dtype),
                None if hidden_mask is None else hidden_mask.to(dtype),
                *(s.to(dtype) for s in state),
            )
        return tuple(s.transpose(0, 1) for s in cast(State, states))  # [B, T, H]

    def _unroll_by_autograd(self, gates: Tensor, state: State, hidden_mask: Tensor | None) -> State:
        steps: list[State] = []
        for gate in gates:
            state = self.step(gate, state, hidden_mask)
            steps.append(state)
        return tuple(torch.stack(part, dim=1) for part in zip(*steps, strict=True))


_ONE = torch.ones(())


def _tanh_of(s: Tensor) -> Tensor:
    """tanh x from s = σ(-2x)."""
    return torch.sub(_ONE, s, alpha=2)


class RNNCell(Cell):
    """Elman's cell: h' = tanh(W x + U h + b)."""

    num_gates = 1
    num_states = 1
    candidate = 0
    is_additive = True

    @staticmethod
    def activate(input_gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        return (torch.tanh(input_gates + hidden_gates),)

    @staticmethod
    def activate_sigmoid_(gates: Tensor, hidden_gates: Tensor | None, state: State) -> State:
        return (_tanh_of(gates.sigmoid_()),)

    @staticmethod
    def activate_sum_(gates: Tensor, state: State) -> State:
        return (gates.tanh_(),)

    @staticmethod
    def forward_(gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        return (gates.add_(hidden_gates).tanh_().clone(),)

    @staticmethod
    def backward_(
        grad: tuple[Tensor, ...], gates: Tensor, hidden_gates: Tensor, state: State, new_state: State, grad_hh: Tensor
    ) -> State:
        torch.mul(grad[0], 1 - gates * gates, out=gates)
        grad_hh.copy_(gates)
        return (torch.zeros_like(grad[0]),)


class GRUCell(Cell):
    """Cho's cell, as in Cho et al. 2014 but with the reset after the product (as cuDNN has it):

    r = σ(W_r x + U_r h)        z = σ(W_z x + U_z h)
    n = tanh(W_n x + r ⊙ (U_n h))
    h' = (1 − z) ⊙ n + z ⊙ h
    """

    num_gates = 3
    num_states = 1
    candidate = 2
    is_additive = False

    @staticmethod
    def activate(input_gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        (h,) = state
        x_rz, x_n = input_gates.split((2 * h.shape[-1], h.shape[-1]), dim=-1)
        h_rz, h_n = hidden_gates.split((2 * h.shape[-1], h.shape[-1]), dim=-1)
        r, z = torch.sigmoid(x_rz + h_rz).chunk(2, dim=-1)
        n = torch.tanh(torch.addcmul(x_n, r, h_n))
        return (torch.lerp(n, h, z),)

    @staticmethod
    def activate_sigmoid_(gates: Tensor, hidden_gates: Tensor | None, state: State) -> State:
        (h,) = state
        assert hidden_gates is not None
        dim = h.shape[-1]
        rz, n = gates[:, : 2 * dim], gates[:, 2 * dim :]
        rz.add_(hidden_gates[:, : 2 * dim]).sigmoid_()
        n.addcmul_(gates[:, :dim], hidden_gates[:, 2 * dim :]).sigmoid_()
        return (torch.lerp(_tanh_of(n), h, gates[:, dim : 2 * dim]),)

    @staticmethod
    def forward_(gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        (h,) = state
        dim = h.shape[-1]
        rz, n = gates[:, : 2 * dim], gates[:, 2 * dim :]
        rz.add_(hidden_gates[:, : 2 * dim]).sigmoid_()
        n.addcmul_(gates[:, :dim], hidden_gates[:, 2 * dim :]).tanh_()
        return (torch.lerp(n, h, gates[:, dim : 2 * dim]),)

    @staticmethod
    def backward_(
        grad: tuple[Tensor, ...], gates: Tensor, hidden_gates: Tensor, state: State, new_state: State, grad_hh: Tensor
    ) -> State:
        (h,), (d_h,) = state, grad
        dim = h.shape[-1]
        r, z, n = gates.split(dim, dim=-1)
        d_z = (h - n).mul_(d_h).mul_(z * (1 - z))
        d_state = d_h * z
        d_n = (d_h - d_state).mul_(1 - n * n)
        d_r = (d_n * hidden_gates[:, 2 * dim :]).mul_(r * (1 - r))
        torch.mul(d_n, r, out=grad_hh[:, 2 * dim :])
        for target in (gates, grad_hh):
            target[:, :dim].copy_(d_r)
            target[:, dim : 2 * dim].copy_(d_z)
        gates[:, 2 * dim :].copy_(d_n)
        return (d_state,)


class LSTMCell(Cell):
    """Hochreiter and Schmidhuber's cell with forget gate (Gers et al. 2000):

        i, f, o = σ(W x + U h)      g = tanh(W_g x + U_g h)
        c' = f ⊙ c + i ⊙ g          h' = o ⊙ tanh(c')

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 4).
    """

    num_gates = 4
    num_states = 2
    candidate = 2
    is_additive = True

    def __init__(self, input_dim: int, hidden_dim: int, *, layer_norm: bool = False) -> None:
        super().__init__(input_dim, hidden_dim, layer_norm=layer_norm)
        nn.init.ones_(self.bias_ih.data[hidden_dim : 2 * hidden_dim])

    @staticmethod
    def activate(input_gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        _, c = state
        i, f, g, o = (input_gates + hidden_gates).chunk(4, dim=-1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(new_c), new_c

    @staticmethod
    def forward_(gates: Tensor, hidden_gates: Tensor, state: State) -> State:
        return LSTMCell.activate_sum_(gates.add_(hidden_gates), state)

    @staticmethod
    def activate_sum_(gates: Tensor, state: State) -> State:
        _, c = state
        dim = c.shape[-1]
        gates[:, : 2 * dim].sigmoid_()
        gates[:, 2 * dim : 3 * dim].tanh_()
        gates[:, 3 * dim :].sigmoid_()
        i, f, g, o = gates.split(dim, dim=-1)
        new_c = torch.addcmul(f * c, i, g)
        return torch.tanh(new_c).mul_(o), new_c

    @staticmethod
    def activate_sigmoid_(gates: Tensor, hidden_gates: Tensor | None, state: State) -> State:
        _, c = state
        i, f, g, o = gates.sigmoid_().split(c.shape[-1], dim=-1)
        new_c = torch.addcmul(i, f, c).addcmul_(i, g, value=-2)  # f ⊙ c + i ⊙ (1 - 2g)
        t = torch.mul(new_c, -2).sigmoid_()
        return torch.sub(o, t.mul_(o), alpha=2), new_c  # o ⊙ (1 - 2t)

    @staticmethod
    def backward_(
        grad: tuple[Tensor, ...], gates: Tensor, hidden_gates: Tensor, state: State, new_state: State, grad_hh: Tensor
    ) -> State:
        (_, c), (_, new_c), (d_h, d_c) = state, new_state, grad
        dim = c.shape[-1]
        i, f, g, o = gates.split(dim, dim=-1)
        tanh_c = torch.tanh(new_c)
        d_c = d_c + torch.ops.aten.tanh_backward(d_h * o, tanh_c)
        d_i = d_c * g
        _through_sigmoid(d_h * tanh_c, o)
        _through_tanh(d_c * i, g)
        _through_sigmoid(d_i, i)
        d_state = d_c * f
        _through_sigmoid(d_c * c, f)
        grad_hh.copy_(gates)
        return torch.zeros_like(d_h), d_state


def _through_sigmoid(grad: Tensor, y: Tensor) -> None:
    """Overwrites y = σ(x) with the gradient of x, from that of y."""
    torch.ops.aten.sigmoid_backward.grad_input(grad, y, grad_input=y)


def _through_tanh(grad: Tensor, y: Tensor) -> None:
    """Overwrites y = tanh(x) with the gradient of x, from that of y."""
    torch.ops.aten.tanh_backward.grad_input(grad, y, grad_input=y)


CELLS: dict[str, type[Cell]] = {"rnn": RNNCell, "gru": GRUCell, "lstm": LSTMCell}


class _Unroll(torch.autograd.Function):
    """A cell over T steps with a backward pass of its own.

    Autograd over single steps would add a [G·H, H] weight gradient T times; here the gates' gradients are collected
    and both weights get theirs in one product over all T·B rows, as cuDNN does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: type[Cell],
        gates: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor,
        hidden_mask: Tensor | None,
        *state: Tensor,
    ) -> State:
        """gates [T, B, G·H], weight_hh [G·H, H], bias_hh [G·H], hidden_mask [B, H], state [B, H] -> [T, B, H] each."""
        num_steps, num_rows, gates_dim = gates.shape
        keep = any(ctx.needs_input_grad)
        is_sum = cell.is_additive
        gates = gates + bias_hh if is_sum else gates.clone(memory_format=torch.contiguous_format)
        hidden_gates = gates.new_empty(0 if is_sum else num_steps if keep else 1, num_rows, gates_dim)
        states = tuple(s.new_empty(num_steps, *s.shape) for s in state)
        weight = weight_hh.t()
        current = state
        for t in range(num_steps):
            h = current[0] if hidden_mask is None else current[0] * hidden_mask
            if is_sum:
                current = cell.activate_sum_(gates[t].addmm_(h, weight), current)
            else:
                share = hidden_gates[t if keep else 0]
                torch.addmm(bias_hh, h, weight, out=share)
                current = cell.forward_(gates[t], share, current)
            for kept, part in zip(states, current, strict=True):
                kept[t] = part
        if keep:
            ctx.cell = cell
            ctx.num_states = len(state)
            ctx.save_for_backward(gates, hidden_gates, weight_hh, hidden_mask, *state, *states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gates, hidden_gates, weight_hh, hidden_mask = saved[:4]
        first, states = saved[4 : 4 + ctx.num_states], saved[4 + ctx.num_states :]
        gates = gates.clone()
        is_sum = ctx.cell.is_additive
        grad_hh = gates if is_sum else torch.empty_like(gates)
        grad: State = tuple(torch.zeros_like(s) for s in first)
        for t in reversed(range(gates.shape[0])):
            before = first if t == 0 else tuple(s[t - 1] for s in states)
            after = tuple(s[t] for s in states)
            grad = tuple(g + given[t] for g, given in zip(grad, grads, strict=True))
            grad = ctx.cell.backward_(
                grad, gates[t], gates[t] if is_sum else hidden_gates[t], before, after, grad_hh[t]
            )
            through_gates = grad_hh[t] @ weight_hh
            if hidden_mask is not None:
                through_gates *= hidden_mask
            grad = (grad[0] + through_gates, *grad[1:])
        h_before = torch.cat((first[0][None], states[0][:-1]))  # [T, B, H]
        if hidden_mask is not None:
            h_before = h_before * hidden_mask
        flat = grad_hh.flatten(0, 1)
        grad_weight = flat.t() @ h_before.flatten(0, 1)
        return None, gates, grad_weight, flat.sum(0), None, *grad


def reverse_by_length(x: Tensor, lens: Tensor) -> Tensor:
    """Reverses the valid part of each sequence and leaves its padding where it is.

    Args:
        x: [B, T, ...].
        lens: [B] int64.
    """
    positions = torch.arange(x.shape[1], device=x.device)
    mirrored = lens[:, None] - 1 - positions  # [B, T]
    index = torch.where(mirrored >= 0, mirrored, positions)
    return x.gather(1, index.view(*index.shape, *(1,) * (x.dim() - 2)).expand_as(x))


def last_valid(states: State, lens: Tensor) -> State:
    """The state after the last valid step of each sequence: tensors [B, T, H], lens [B] -> tensors [B, H]."""
    index = (lens - 1)[:, None, None]
    return tuple(s.gather(1, index.expand(-1, 1, s.shape[2])).squeeze(1) for s in states)


class RecurrentLayer(nn.Module):
    """One encoder layer, in one or two directions.

    Padding changes nothing: the backward direction reads each sequence from its own end, and last states are taken
    at each sequence's own length.
    """

    def __init__(
        self, cell: str, input_dim: int, hidden_dim: int, *, num_directions: int = 1, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(
            CELLS[cell](input_dim, hidden_dim, layer_norm=layer_norm) for _ in range(num_directions)
        )

    def forward(
        self, x: Tensor, lens: Tensor, hidden_masks: tuple[Tensor | None, ...] | None = None
    ) -> tuple[Tensor, State]:
        """x [B, S, I], lens [B] -> outputs [B, S, D·H], last states, each [B, D·H].

        `hidden_masks` holds one [B, H] dropout mask for each direction.
        """
        outputs: list[Tensor] = []
        lasts: list[State] = []
        for direction, module in enumerate(self.cells):
            cell = cast(Cell, module)
            read = x if direction == 0 else reverse_by_length(x, lens)
            mask = hidden_masks[direction] if hidden_masks else None
            states = cell.unroll(read, cell.initial_state(x.shape[0]), mask)
            lasts.append(last_valid(states, lens))
            outputs.append(states[0] if direction == 0 else reverse_by_length(states[0], lens))
        if len(outputs) == 1:
            return outputs[0], lasts[0]
        return torch.cat(outputs, dim=-1), tuple(torch.cat(parts, dim=-1) for parts in zip(*lasts, strict=True))
