"""Packed products: close to the exact ones, and no row depends on the rows beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.errors import InvalidValue
from model.network.packed import PACKED, check_precision

NUM_ROWS = 320
# Of gates over one state, over two side by side, a readout, and an output layer.
SHAPES = [(512, 1536), (1024, 2048), (1024, 512), (256, 6016), (16, 48)]
TOLERANCE = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.03}


@pytest.fixture(params=SHAPES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [320, I] within -1 and 1, weight [O, I], bias [O], add [320, O]."""
    torch.manual_seed(5)
    num_inputs, num_outputs = request.param
    x = torch.rand(NUM_ROWS, num_inputs) * 2 - 1
    weight = torch.randn(num_outputs, num_inputs) / num_inputs**0.5
    return x, weight, torch.randn(num_outputs), torch.randn(NUM_ROWS, num_outputs)


@pytest.mark.parametrize("precision", sorted(PACKED))
def test_a_row_is_computed_bit_for_bit_alike_among_any_number_of_rows(
    case: tuple[Tensor, Tensor, Tensor, Tensor], precision: str
) -> None:
    x, weight, bias, add = case
    linear = PACKED[precision](weight, bias)
    x = linear.prepare(x)
    whole, added = linear(x), linear.add_to_(add.clone(), x)
    for num_rows in (*range(1, 18), 31, 33, 64, 100, 128, 200):
        start = (37 * num_rows) % (NUM_ROWS - num_rows)
        rows = slice(start, start + num_rows)
        assert torch.equal(linear(x[rows].clone()), whole[rows])
        assert torch.equal(linear.add_to_(add[rows].clone(), x[rows].clone()), added[rows])


@pytest.mark.parametrize("precision", sorted(PACKED))
def test_products_are_near_the_exact_ones(case: tuple[Tensor, Tensor, Tensor, Tensor], precision: str) -> None:
    x, weight, bias, add = case
    exact = (x.double() @ weight.double().t() + bias + add).float()
    linear = PACKED[precision](weight, bias)
    torch.testing.assert_close(
        linear.add_to_(add.clone(), linear.prepare(x)), exact, atol=TOLERANCE[precision], rtol=0.02
    )


def test_inputs_up_to_the_bound_are_not_clipped_in_int8() -> None:
    x = torch.tensor([[3.0, -3.0], [1.5, 0.0]])
    weight = torch.eye(2)
    torch.testing.assert_close(
        PACKED["int8"](weight, None, bound=3.0)(PACKED["int8"].prepare(x, 3.0)), x, atol=0.02, rtol=0
    )


def test_int8_is_refused_where_there_is_none() -> None:
    with pytest.raises(InvalidValue, match="precision"):
        check_precision("int8", "cuda")
