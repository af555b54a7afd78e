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
_SMALLEST_PRODUCT = 16**3  # N·I·O up to which torch multiplies bf16 with a kernel of its own


class PackedLinear:
    """x [N, I] -> x Wᵀ + b [N, O], float32 in and out.

    Args:
        weight: [O, I].
        bias: [O] or None.
        bound: no input is larger than this in absolute value; only `int8` makes use of it.
    """

    precision: ClassVar[str]

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        raise NotImplementedError

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [N, I] -> [N, O], plus `add` [N, O] where given."""
        raise NotImplementedError


class Fp32Linear(PackedLinear):
    precision = "fp32"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        self._weight = weight.detach().float().contiguous()
        self._bias = None if bias is None else bias.detach().float()

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        num_rows = x.shape[0]
        num_missing = -num_rows % _ROW_MULTIPLE
        if num_missing:
            x = F.pad(x, (0, 0, 0, num_missing))
        y = F.linear(x, self._weight, self._bias)
        if num_missing:
            y = y[:num_rows]
        return y if add is None else y.add_(add)


class Bf16Linear(PackedLinear):
    precision = "bf16"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        self._weight = weight.detach().bfloat16().contiguous()
        self._min_rows = _SMALLEST_PRODUCT // max(1, weight.numel()) + 1
        self._bias = None if bias is None else bias.detach().float()

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        num_rows = x.shape[0]
        if num_rows < self._min_rows:
            x = F.pad(x, (0, 0, 0, self._min_rows - num_rows))
        y = F.linear(x.bfloat16(), self._weight)[:num_rows].float()
        if self._bias is not None:
            y += self._bias
        return y if add is None else y.add_(add)


class Int8Linear(PackedLinear):
    """Weights of eight bits with a scale an output, inputs of eight bits with one scale for all (Jacob et al. 2018).

    An input x in [-bound, bound] is stored as round(127 x / bound) + 128; products are summed in 32 bits.
    """

    precision = "int8"

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bound: float = 1.0) -> None:
        weight = weight.detach().float()
        largest = weight.abs().amax(dim=1)  # [O]
        self._scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        quantized = (weight / self._scale[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(quantized, None)
        self._zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
        self._bias = None if bias is None else bias.detach().float()
        self._input_scale = bound / 127
        self._half_up = torch.tensor(128.5)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        stored = torch.add(self._half_up, x, alpha=1 / self._input_scale).to(torch.uint8)
        weights = (self._input_scale, 128, self._weight, self._scale, self._zero_points)
        float_out = (1.0, 0, torch.float32)
        y: Tensor
        if add is None:
            y = torch.ops.onednn.qlinear_pointwise(stored, *weights, self._bias, *float_out, "none", [], "none")
        else:
            y = torch.ops.onednn.qlinear_pointwise.binary(
                stored, *weights, add, self._bias, *float_out, 1.0, 0, "add", 1.0, "none", [], "none"
            )
        return y


PACKED: dict[str, type[PackedLinear]] = {cls.precision: cls for cls in (Fp32Linear, Bf16Linear, Int8Linear)}


def check_precision(precision: str, device: torch.device | str) -> None:
    """Raises InvalidValue for a precision that there is none of, or none of on that device."""
    device = torch.device(device)
    allowed = [name for name in PACKED if name != "int8" or device.type == "cpu"]
    if precision not in allowed:
        raise InvalidValue("precision", precision, "one of " + ", ".join(allowed) + f" on {device.type}")
