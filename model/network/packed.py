"""Affine maps packed for decoding, one class a precision. Knows neither cells nor attention.

Each keeps a promise that `torch.nn.Linear` does not make: **what it computes for a row does not depend on the rows
beside it**. That is what makes a request's answer the same at any load. How each keeps it, found by comparing bit for
bit every number of rows from 1 to 200 with 320 (tests/model/network/test_packed.py does so on the machine it runs on):

    fp32   the kernels for 1, 2, 3, 5, 7 and 9 rows add in another order than those for whole blocks of eight, so rows
           are padded to the next multiple of eight
    bf16   one kernel for every number of rows, but for products so small that torch does not hand them to it: there
           rows are padded until it does
    int8   sums of whole numbers are exact in any order; and the inputs' scale is fixed in advance, not taken from the
           batch, which is possible because states, contexts and readouts of a recurrent network are bounded

On a GPU the library chooses kernels by the number of rows, and no such promise is made.

Shape letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from model.errors import InvalidValue

_ROW_MULTIPLE = 8
_HALF_UP = torch.tensor(128.5)  # the zero point, and what makes cutting off a rounding
_FLOAT_OUT = (1.0, 0, torch.float32)
_SMALLEST_PRODUCT = 16**3  # N·I·O up to which torch multiplies bf16 with a kernel of its own


def padded_rows(num_rows: int) -> int:
    """The next number of rows that products are made for.

    oneDNN compiles a kernel for each number of rows that it meets, which takes 0.3 to 9 ms (a product of 300 rows takes
    3 ms) and is kept; rows are filled up, so that few numbers occur and soon all of them are compiled.
    """
    for limit, multiple in ((4, 1), (16, 4), (64, 8), (128, 16), (320, 32), (1024, 64)):
        if num_rows <= limit:
            return -(-num_rows // multiple) * multiple
    return -(-num_rows // 256) * 256


class PackedLinear:
    """x Wᵀ + b, for inputs that are prepared once for all the products that they meet.

    Args:
        weight: [O, I].
        bias: [O] or None.
        bound: no input is larger than this in absolute value; only `int8` makes use of it. Inputs that stand side by
            side in one product are prepared with one bound.
    """

    precision: ClassVar[str]

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        raise NotImplementedError

    @staticmethod
    def prepare(x: Tensor, bound: float = 1.0) -> Tensor:
        """Inputs x [..., I] float32 as the products take them."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Prepared x [N, I] -> [N, O] float32."""
        raise NotImplementedError

    def add_to_(self, y: Tensor, x: Tensor) -> Tensor:
        """Adds the product with the prepared x [N, I] to y [N, O] float32, which is contiguous."""
        return y.add_(self(x))


class Fp32Linear(PackedLinear):
    precision = "fp32"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        self._weight = weight.detach().float().contiguous()
        self._bias = None if bias is None else bias.detach().float()

    @staticmethod
    def prepare(x: Tensor, bound: float = 1.0) -> Tensor:
        return x

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = x.shape[0]
        num_missing = -num_rows % _ROW_MULTIPLE
        if not num_missing:
            return F.linear(x, self._weight, self._bias)
        return F.linear(F.pad(x, (0, 0, 0, num_missing)), self._weight, self._bias)[:num_rows]


class Bf16Linear(PackedLinear):
    precision = "bf16"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        self._weight = weight.detach().bfloat16().contiguous()
        self._min_rows = _SMALLEST_PRODUCT // max(1, weight.numel()) + 1
        self._bias = None if bias is None else bias.detach().float()

    @staticmethod
    def prepare(x: Tensor, bound: float = 1.0) -> Tensor:
        return x.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = x.shape[0]
        if num_rows < self._min_rows:
            x = F.pad(x, (0, 0, 0, self._min_rows - num_rows))
        y = F.linear(x, self._weight)[:num_rows].float()
        return y if self._bias is None else y.add_(self._bias)


class Int8Linear(PackedLinear):
    """Weights of eight bits with a scale an output, inputs of eight bits with one scale for all (Jacob et al. 2018).

    An input x in [-bound, bound] is stored as round(127 x / bound) + 128; products are summed in 32 bits.
    """

    precision = "int8"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        weight = weight.detach().float()
        largest = weight.abs().amax(dim=1)  # [O]
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        quantized = (weight / scale[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(quantized, None)
        zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
        self._weights = (bound / 127, 128, packed, scale, zero_points)
        self._bias = None if bias is None else bias.detach().float()

    @staticmethod
    def prepare(x: Tensor, bound: float = 1.0) -> Tensor:
        # By way of 32 bits, where every value fits: torch's conversion to eight takes two to four times as long.
        return torch.add(_HALF_UP, x, alpha=127 / bound).to(torch.int32).to(torch.uint8)

    def __call__(self, x: Tensor) -> Tensor:
        num_rows, num_missing = x.shape[0], padded_rows(x.shape[0]) - x.shape[0]
        if num_missing:
            x = F.pad(x, (0, 0, 0, num_missing))
        y: Tensor = torch.ops.onednn.qlinear_pointwise(x, *self._weights, self._bias, *_FLOAT_OUT, "none", [], "none")
        return y[:num_rows]

    def add_to_(self, y: Tensor, x: Tensor) -> Tensor:
        if padded_rows(x.shape[0]) != x.shape[0]:
            return y.add_(self(x))
        torch.ops.onednn.qlinear_pointwise.binary(
            x, *self._weights, y, self._bias, *_FLOAT_OUT, 1.0, 0, "sum", 1.0, "none", [], "none"
        )
        return y


PACKED: dict[str, type[PackedLinear]] = {cls.precision: cls for cls in (Fp32Linear, Bf16Linear, Int8Linear)}


def check_precision(precision: str, device: torch.device | str) -> None:
    """Raises InvalidValue for a precision that there is none of, or none of on that device."""
    device = torch.device(device)
    allowed = [name for name in PACKED if name != "int8" or device.type == "cpu"]
    if precision not in allowed:
        raise InvalidValue("precision", precision, "one of " + ", ".join(allowed) + f" on {device.type}")
