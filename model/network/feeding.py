"""The decoder with input feeding under teacher forcing, forward and backward by hand.

Input feeding (Luong et al. 2015, section 3.3) makes a step wait for the last one, so its products are small: a step's
share of a weight's gradient is as large as the weight and would be added T times. Here the steps only pass gradients
on to one another; what each contributed is kept, and every weight gets its gradient in one product over all T·B rows
afterwards (as `Cell.unroll` does for one cell). Autograd over single steps is the definition: the tests compare.

For cells without layer norm, and attention whose query is the state itself (`dot`, `general`).

Shape letters: B batch, T time, S source length, H hidden, G gates, I width of a layer's input, M memory width,
F readout width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.network.recurrent import Cell, State


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """What is no tensor that has a gradient.

    Attributes:
        cell: of all layers.
        residual: layers from the second on add their input to their output.
        mask: [B, S] bool, True = valid.
        input_masks: for each layer its dropout mask [B, 1 or T, I], or None.
        recurrent_masks: for each layer its dropout mask [B, H], or None.
    """

    cell: type[Cell]
    residual: bool
    mask: Tensor
    input_masks: Sequence[Tensor | None]
    recurrent_masks: Sequence[Tensor | None]


class _Layer:
    """One recurrent layer over T steps: its weights, and what its backward pass needs.

    An additive cell's gates are one product over its input and its state side by side; others need the two shares.
    """

    def __init__(
        self,
        cell: type[Cell],
        weights: Sequence[Tensor],
        given: Tensor | None,
        state: State,
        masks: tuple[Tensor | None, Tensor | None],
        num_steps: int,
        *,
        residual: bool,
    ) -> None:
        """weights: [G·H, I], [G·H, H], [G·H], [G·H]; given [T, B, G·H], a share of the gates that is there already."""
        w_in, w_hh, b_in, b_hh = weights
        num_rows, gates_dim = state[0].shape[0], w_in.shape[0]
        self.cell = cell
        self.input_dim = w_in.shape[1]
        self.w_in, self.w_hh = w_in, w_hh
        self.w_both = torch.cat((w_in, w_hh), dim=1) if cell.is_additive else None  # [G·H, I + H]
        bias = b_in + b_hh if cell.is_additive else b_in
        if given is None:
            self.gates = bias.expand(num_steps, num_rows, gates_dim).contiguous()
        else:
            self.gates = given + bias
        self.b_hh = b_hh
        self.hidden = None if cell.is_additive else torch.empty_like(self.gates)
        self.x = state[0].new_empty(num_steps, num_rows, self.input_dim + w_hh.shape[1])  # inputs, and h before
        self.states = tuple(part.new_empty(num_steps + 1, *part.shape) for part in state)
        for kept, part in zip(self.states, state, strict=True):
            kept[0] = part
        self.input_mask, self.recurrent_mask = masks
        self.residual = residual

    def mask_at(self, t: int) -> Tensor | None:
        return None if self.input_mask is None else self.input_mask[:, t % self.input_mask.shape[1]]

    def step(self, t: int, x: Tensor) -> Tensor:
        """x [B, I] -> the layer's output [B, H]: h, and x behind its mask where it is residual."""
        before = tuple(part[t] for part in self.states)
        row = self.x[t]
        _put(row[:, : self.input_dim], x, self.mask_at(t))
        _put(row[:, self.input_dim :], before[0], self.recurrent_mask)
        if self.w_both is not None:
            after = self.cell.activate_sum_(self.gates[t].addmm_(row, self.w_both.t()), before)
        else:
            assert self.hidden is not None
            self.gates[t].addmm_(row[:, : self.input_dim], self.w_in.t())
            torch.addmm(self.b_hh, row[:, self.input_dim :], self.w_hh.t(), out=self.hidden[t])
            after = self.cell.forward_(self.gates[t], self.hidden[t], before)
        for kept, part in zip(self.states, after, strict=True):
            kept[t + 1] = part
        h = self.states[0][t + 1]
        return h + row[:, : self.input_dim] if self.residual else h

    def begin_backward(self) -> None:
        self.grad_in = self.gates.clone()  # the cell writes gradients over its gates
        self.grad_hh = self.grad_in if self.w_both is not None else torch.empty_like(self.gates)
        self.grad_state: State = tuple(torch.zeros_like(part[0]) for part in self.states)

    def step_back(self, t: int, grad: Tensor) -> Tensor:
        """Gradient of the output [B, H] -> gradient of x [B, I]; that of the state before stays here."""
        before, after = tuple(part[t] for part in self.states), tuple(part[t + 1] for part in self.states)
        grads = (self.grad_state[0] + grad, *self.grad_state[1:])
        hidden = self.grad_in[t] if self.hidden is None else self.hidden[t]
        passed = self.cell.backward_(grads, self.grad_in[t], hidden, before, after, self.grad_hh[t])
        if self.w_both is not None:
            both = self.grad_in[t] @ self.w_both  # [B, I + H]
            grad_x, grad_h = both[:, : self.input_dim], both[:, self.input_dim :]
        else:
            grad_x, grad_h = self.grad_in[t] @ self.w_in, self.grad_hh[t] @ self.w_hh
        if self.recurrent_mask is not None:
            grad_h = grad_h * self.recurrent_mask
        self.grad_state = (passed[0] + grad_h, *passed[1:])
        if self.residual:
            grad_x = grad_x + grad
        mask = self.mask_at(t)
        return grad_x if mask is None else grad_x * mask

    def weight_grads(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of [G·H, I], [G·H, H], [G·H], [G·H], over all T·B rows."""
        x, grad_in, grad_hh = self.x.flatten(0, 1), self.grad_in.flatten(0, 1), self.grad_hh.flatten(0, 1)
        bias_in = grad_in.sum(0)
        if self.w_both is not None:
            both = grad_in.t() @ x
            return both[:, : self.input_dim], both[:, self.input_dim :], bias_in, bias_in
        w_in, w_hh = grad_in.t() @ x[:, : self.input_dim], grad_hh.t() @ x[:, self.input_dim :]
        return w_in, w_hh, bias_in, grad_hh.sum(0)


def _put(target: Tensor, value: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        target.copy_(value)
    else:
        torch.mul(value, mask, out=target)


class FeedingDecoder(torch.autograd.Function):
    """All steps of the decoder: `apply(recurrence, gates, keys, values, w_out, b_out, feed, *rest) -> [T, B, F]`.

    gates [T, B, G·H] is the embeddings' share of the first layer's gates; keys [B, S, H] and values [B, S, M]; w_out
    [F, H + M] and b_out [F] the readout; feed [B, F] before the first step; then for each layer its weights [G·H, I],
    [G·H, H], [G·H], [G·H], and for each layer its state before the first step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        recurrence: Recurrence,
        gates: Tensor,
        keys: Tensor,
        values: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        feed: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        num_steps, num_rows, _ = gates.shape
        cell = recurrence.cell
        num_layers = len(recurrence.input_masks)
        layers = []
        for index in range(num_layers):
            first = 4 * num_layers + index * cell.num_states
            masks = (recurrence.input_masks[index], recurrence.recurrent_masks[index])
            weights, state = rest[4 * index : 4 * index + 4], rest[first : first + cell.num_states]
            given = gates if index == 0 else None
            residual = recurrence.residual and index > 0
            layers.append(_Layer(cell, weights, given, state, masks, num_steps, residual=residual))
        hidden_dim = layers[0].w_hh.shape[1]
        readouts = gates.new_empty(num_steps, num_rows, w_out.shape[0])
        found = gates.new_empty(num_steps, num_rows, w_out.shape[1])  # [T, B, H + M]: the top state and the context
        shares = keys.new_empty(num_rows, num_steps, keys.shape[1])  # [B, T, S]
        padding = ~recurrence.mask
        for t in range(num_steps):
            x = feed if t == 0 else readouts[t - 1]
            for layer in layers:
                x = layer.step(t, x)
            found[t, :, :hidden_dim] = x
            scores = torch.bmm(keys, x[:, :, None]).squeeze(2)  # [B, S]
            shares[:, t] = scores.masked_fill_(padding, float("-inf")).softmax(dim=1)
            found[t, :, hidden_dim:] = torch.bmm(shares[:, t, None], values).squeeze(1)
            torch.addmm(b_out, found[t], w_out.t(), out=readouts[t])
            readouts[t].tanh_()
        if any(ctx.needs_input_grad):
            ctx.layers, ctx.found, ctx.shares = layers, found, shares
            ctx.save_for_backward(keys, values, w_out, readouts)
        return readouts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        keys, values, w_out, readouts = ctx.saved_tensors
        layers, found, shares = ctx.layers, ctx.found, ctx.shares
        hidden_dim = layers[0].w_hh.shape[1]
        for layer in layers:
            layer.begin_backward()
        grad_found = torch.empty_like(found)
        grad_scores = torch.empty_like(shares)
        grad_out = torch.empty_like(readouts)  # before the tanh
        feed = torch.zeros_like(readouts[0])
        for t in reversed(range(readouts.shape[0])):
            torch.ops.aten.tanh_backward.grad_input(grad[t] + feed, readouts[t], grad_input=grad_out[t])
            torch.mm(grad_out[t], w_out, out=grad_found[t])
            x = grad_found[t, :, :hidden_dim]
            grad_share = torch.bmm(values, grad_found[t, :, hidden_dim:, None]).squeeze(2)  # [B, S]
            grad_score = torch._softmax_backward_data(grad_share, shares[:, t], 1, shares.dtype)
            grad_scores[:, t] = grad_score
            x = x + torch.bmm(grad_score[:, None], keys).squeeze(1)
            for layer in reversed(layers):
                x = layer.step_back(t, x)
            feed = x
        tops, contexts = found[..., :hidden_dim].transpose(0, 1), grad_found[..., hidden_dim:].transpose(0, 1)
        grad_keys = grad_scores.transpose(1, 2) @ tops  # [B, S, H]
        grad_values = shares.transpose(1, 2) @ contexts  # [B, S, M]
        flat = grad_out.flatten(0, 1)
        grad_w_out, grad_b_out = flat.t() @ found.flatten(0, 1), flat.sum(0)
        grad_weights = [part for layer in layers for part in layer.weight_grads()]
        grad_states = [part for layer in layers for part in layer.grad_state]
        grad_gates = layers[0].grad_in
        return None, grad_gates, grad_keys, grad_values, grad_w_out, grad_b_out, feed, *grad_weights, *grad_states
