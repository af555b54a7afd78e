"""Recurrent cells against `torch.nn` with the same weights, and against numerical gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.network.recurrent import CELLS, Cell, RecurrentLayer, State, last_valid, reverse_by_length

ORACLES: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
B, T, E, H = 3, 5, 4, 7
LENS = torch.tensor([5, 1, 3])

cells = pytest.mark.parametrize("kind", sorted(CELLS))
norms = pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer-norm"])


def make_cell(kind: str, *, layer_norm: bool = False) -> Cell:
    cell = CELLS[kind](E, H, layer_norm=layer_norm).double()
    with torch.no_grad():  # biases begin at 0 and gains at 1, where a mix-up would not show
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def random_state(cell: Cell, num_rows: int = B) -> State:
    return tuple(torch.randn(num_rows, H, dtype=torch.float64) for _ in range(cell.num_states))


def oracle_of(kind: str, *layer_cells: Cell) -> nn.RNNBase:
    oracle = ORACLES[kind](E, H, batch_first=True, bidirectional=len(layer_cells) == 2).double()
    with torch.no_grad():
        for cell, suffix in zip(layer_cells, ("_l0", "_l0_reverse"), strict=False):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(oracle, name + suffix).copy_(getattr(cell, name))
    return oracle


def torch_state(state: State) -> Tensor | tuple[Tensor, ...]:
    stacked = tuple(s[None] for s in state)
    return stacked if len(stacked) == 2 else stacked[0]


# one cell


@cells
def test_a_cell_equals_torch_with_the_same_weights(kind: str) -> None:
    cell, x = make_cell(kind), torch.randn(B, T, E, dtype=torch.float64)
    state = random_state(cell)
    expected, last = oracle_of(kind, cell)(x, torch_state(state))
    states = cell.unroll(x, state)
    torch.testing.assert_close(states[0], expected)
    torch.testing.assert_close(states[-1][:, -1], (last[1] if isinstance(last, tuple) else last)[0])


@cells
def test_the_gradients_of_a_cell_equal_those_of_torch(kind: str) -> None:
    cell = make_cell(kind)
    oracle = oracle_of(kind, cell)
    x = torch.randn(B, T, E, dtype=torch.float64)
    state = random_state(cell)
    weights = torch.randn(B, T, H, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (cell.unroll(ours, state)[0] * weights).sum().backward()
    (oracle(theirs, torch_state(state))[0] * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        torch.testing.assert_close(getattr(cell, name).grad, getattr(oracle, name + "_l0").grad, msg=name)


@cells
@norms
@pytest.mark.parametrize("has_mask", [False, True], ids=["unmasked", "masked"])
def test_the_gradients_of_an_unrolled_cell_are_the_numerical_ones(kind: str, layer_norm: bool, has_mask: bool) -> None:
    cell = CELLS[kind](2, 3, layer_norm=layer_norm).double()
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(cell.num_states)]
    mask = torch.tensor([[2.0, 0.0, 2.0], [0.0, 2.0, 2.0]], dtype=torch.float64) if has_mask else None
    names = [name for name, _ in cell.named_parameters()]

    def unrolled(x: Tensor, *rest: Tensor) -> State:
        given = dict(zip(names, rest[cell.num_states :], strict=True))
        first = rest[: cell.num_states]

        class Call(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell = cell

            def forward(self) -> State:
                return self.cell.unroll(x, first, mask)

        result: State = torch.func.functional_call(Call(), {f"cell.{name}": w for name, w in given.items()}, ())
        return result

    assert torch.autograd.gradcheck(unrolled, (x, *state, *cell.parameters()))


@cells
@norms
@pytest.mark.parametrize("has_mask", [False, True], ids=["unmasked", "masked"])
def test_single_steps_equal_the_unrolled_cell(kind: str, layer_norm: bool, has_mask: bool) -> None:
    cell, x = make_cell(kind, layer_norm=layer_norm), torch.randn(B, T, E, dtype=torch.float64)
    first = state = random_state(cell)
    mask = torch.randint(0, 2, (B, H)).double() * 2 if has_mask else None
    unrolled = cell.unroll(x, first, mask)
    for t in range(T):
        state = cell.step(cell.input_gates(x[:, t]), state, mask)
        for part, all_steps in zip(state, unrolled, strict=True):
            torch.testing.assert_close(part, all_steps[:, t])


@cells
def test_unrolling_without_gradients_gives_the_same_states(kind: str) -> None:
    cell, x = make_cell(kind), torch.randn(B, T, E, dtype=torch.float64)
    state = random_state(cell)
    with torch.no_grad():
        quiet = cell.unroll(x, state)
    for ours, theirs in zip(quiet, cell.unroll(x, state), strict=True):
        assert torch.equal(ours, theirs)


@cells
def test_unrolling_changes_neither_input_nor_state(kind: str) -> None:
    cell, x = make_cell(kind), torch.randn(B, T, E, dtype=torch.float64)
    state = random_state(cell)
    before = [x.clone(), *(s.clone() for s in state)]
    sum(part.sum() for part in cell.unroll(x, state)).backward()  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(before, [x, *state], strict=True))


def test_an_lstm_remembers_at_first() -> None:
    cell = CELLS["lstm"](E, H)
    assert torch.equal(cell.bias_ih[H : 2 * H], torch.ones(H))


@cells
def test_recurrent_weights_begin_orthogonal(kind: str) -> None:
    cell = CELLS[kind](E, H)
    for gate in cell.weight_hh.chunk(cell.num_gates):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(H))


@cells
def test_layer_norm_of_the_first_states_zeros_does_not_blow_gradients_up(kind: str) -> None:
    torch.manual_seed(0)
    norms = {}
    for layer_norm in (False, True):
        cell = CELLS[kind](E, 64, layer_norm=layer_norm)
        cell.unroll(torch.randn(B, T, E), cell.initial_state(B))[0].sum().backward()
        norms[layer_norm] = float(cell.bias_hh.grad.norm())
    assert norms[True] < 10 * norms[False]


# lengths


def test_reversing_by_length_turns_the_valid_part_and_leaves_padding() -> None:
    x = torch.tensor([[1, 2, 3, 4, 5], [1, 8, 8, 8, 8], [1, 2, 3, 9, 9]])
    expected = torch.tensor([[5, 4, 3, 2, 1], [1, 8, 8, 8, 8], [3, 2, 1, 9, 9]])
    assert torch.equal(reverse_by_length(x, LENS), expected)


def test_reversing_twice_changes_nothing() -> None:
    x = torch.randn(B, T, E)
    assert torch.equal(reverse_by_length(reverse_by_length(x, LENS), LENS), x)


def test_the_last_valid_state_is_that_at_the_length() -> None:
    h = torch.arange(B * T).view(B, T, 1).expand(-1, -1, H)
    (last,) = last_valid((h,), LENS)
    assert last[:, 0].tolist() == [4, 5, 12]
    assert last.shape == (B, H)


# a layer


@cells
@pytest.mark.parametrize("num_directions", [1, 2])
def test_a_layer_equals_torch_on_packed_sequences(kind: str, num_directions: int) -> None:
    layer = RecurrentLayer(kind, E, H, num_directions=num_directions).double()
    oracle = oracle_of(kind, *layer.cells)
    x = torch.randn(B, T, E, dtype=torch.float64)
    packed, last = oracle(pack_padded_sequence(x, LENS, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    outputs, last_states = layer(x, LENS)
    valid = torch.arange(T) < LENS[:, None]
    torch.testing.assert_close(outputs[valid], expected[valid])
    for ours, theirs in zip(last_states, last if isinstance(last, tuple) else (last,), strict=True):
        torch.testing.assert_close(ours, theirs.transpose(0, 1).flatten(1))


@cells
@norms
@pytest.mark.parametrize("num_directions", [1, 2])
def test_padding_changes_nothing_in_a_layer(kind: str, layer_norm: bool, num_directions: int) -> None:
    layer = RecurrentLayer(kind, E, H, num_directions=num_directions, layer_norm=layer_norm).double()
    x = torch.randn(B, T, E, dtype=torch.float64)
    outputs, last_states = layer(x, LENS)
    for row, length in enumerate(LENS.tolist()):
        alone, alone_last = layer(x[row : row + 1, :length], LENS[row : row + 1])
        torch.testing.assert_close(outputs[row, :length], alone[0])
        for ours, theirs in zip(last_states, alone_last, strict=True):
            torch.testing.assert_close(ours[row], theirs[0])
