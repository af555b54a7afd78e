"""Python's side of kernels.cpp: whether it is there, and an affine map packed for it. Knows neither cells' maths nor
attention.

The library is built when the package is installed, where there is a C++ compiler. It is used where the processor has
AVX-512 VNNI; where either is missing, the packed network of torch's own operations takes its place, which is slower.
Its threads are those of torch: both use one OpenMP runtime.

Shape letters: N rows, I inputs, O outputs, G gates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LANES = 16  # outputs come in multiples of it, inputs in multiples of four
_BLOCK = 64
_MAX_PARTS = 3


class _Inputs(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p * _MAX_PARTS), ("stride", ctypes.c_int64 * _MAX_PARTS))


class _Affine(ctypes.Structure):
    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("init", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_panels", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
        ("groups", ctypes.c_int64 * _MAX_PARTS),
        ("num_groups", ctypes.c_int64),
    )


_POINTER, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "recurra_quantize": (_POINTER, _COUNT, _POINTER, _COUNT, _COUNT, _FLOAT),
    "recurra_product": (
        *(_POINTER, _INT, _POINTER, _COUNT, _POINTER, _POINTER, _COUNT, _POINTER, _POINTER, _POINTER, _FLOAT, _INT),
    ),
    "recurra_logits": (_POINTER, _POINTER, _COUNT, _POINTER, _POINTER, _POINTER, _POINTER, _INT),
    "recurra_cell": (
        *(_POINTER, _INT, _COUNT, _POINTER, _COUNT, _POINTER, _POINTER, _COUNT),
        *(_POINTER, _POINTER, _POINTER, _POINTER, _FLOAT, _INT),
    ),
    "recurra_read": (
        *(_POINTER, _INT, _COUNT, _COUNT, _INT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _COUNT),
        *(_POINTER, _POINTER, _POINTER, _POINTER, _FLOAT, _INT),
    ),
    "recurra_attend": (
        *(_POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT, _COUNT),
        *(_POINTER, _FLOAT, _POINTER, _INT),
    ),
}


@cache
def library() -> Any:
    """The library; None where it was not built or the processor cannot run it."""
    for path in sorted(Path(__file__).parent.glob("_kernels*.so")):
        try:
            found = ctypes.CDLL(str(path))
        except OSError:
            continue
        if not found.recurra_is_supported():
            return None
        for name, arguments in _SIGNATURES.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, None
        return found
    return None


def quantize(x: Tensor, bound: float = 1.0) -> Tensor:
    """x [N, I] float32 within -bound and bound, whose rows are contiguous -> [N, I] uint8."""
    num_rows, size = x.shape
    out = torch.empty(num_rows, size, dtype=torch.uint8)
    library().recurra_quantize(x.data_ptr(), x.stride(0), out.data_ptr(), num_rows, size, 127 / bound)
    return out


def dequantize(x: Tensor, bound: float = 1.0) -> Tensor:
    """What bytes [N, I] stand for."""
    return x.float().sub_(128.0).mul_(bound / 127)


class Affine:
    """x Wᵀ + b in eight bits (Jacob et al. 2018): weights with a scale an output, inputs with one for all.

    Args:
        weight: [O, I]; O a multiple of 16.
        bias: [O] or None.
        parts: width, a multiple of four, and bound of each of the inputs that stand side by side, at most three; the
            widths add up to I.
        num_gates: G, where the outputs are the gates of a cell: [G · H].
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, parts: Sequence[tuple[int, float]] = (), num_gates: int = 0
    ) -> None:
        weight = weight.detach().float()
        num_outputs, num_inputs = weight.shape
        parts = parts or [(num_inputs, 1.0)]
        widths = [width for width, _ in parts]
        assert sum(widths) == num_inputs and len(parts) <= _MAX_PARTS and not any(width % 4 for width in widths)
        assert num_outputs % (LANES * max(1, num_gates)) == 0
        # Bytes stand for shares of their bound: the weights take it in.
        weight = weight * torch.cat([torch.full((width,), bound) for width, bound in parts])
        largest = weight.abs().amax(dim=1)
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        per_panel = num_gates or _BLOCK // LANES
        order = _order(num_outputs, num_gates)  # which output stands where; -1 for none
        is_there = order >= 0
        quantized = torch.where(is_there[:, None], (weight / scale[:, None]).round().to(torch.int8)[order], 0)
        panels = quantized.view(-1, per_panel, LANES, num_inputs // 4, 4).permute(0, 3, 1, 2, 4).contiguous()
        bias = torch.zeros(num_outputs) if bias is None else bias.detach().float()
        self._kept = (
            panels,
            -128 * quantized.sum(dim=1, dtype=torch.int32),
            torch.where(is_there, scale[order] / 127, 0.0),
            torch.where(is_there, bias[order], 0.0),
        )
        self.num_outputs, self.num_panels = num_outputs, len(order) // (per_panel * LANES)
        groups = [width // 4 for width in widths]
        self._struct = _Affine(
            *(tensor.data_ptr() for tensor in self._kept),
            self.num_panels,
            num_outputs,
            (_COUNT * _MAX_PARTS)(*groups),
            sum(groups),
        )
        self.address = ctypes.addressof(self._struct)

    def product(self, x: Sequence[Tensor], *, added: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """Inputs, bytes [N, ·] that stand side by side -> [N, O] float32.

        Args:
            added: [N, O] that are added, with ids [N] int64 rows of a table [·, O].
        """
        out = torch.empty(len(x[0]), self.num_outputs)
        self._call(0, x, added, ids, out.data_ptr(), None, None)
        return out

    def product_into(self, out: Tensor, rows: Tensor, x: Sequence[Tensor]) -> None:
        """`product` whose row n goes to row rows[n] of out [·, O] float32, rows [N] int64."""
        self._call(0, x, None, None, out.data_ptr(), rows.data_ptr(), None)

    def tanh(self, x: Sequence[Tensor], *, added: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """tanh of `product` over `TANH_FACTOR` (native_cell.py), as bytes [N, O] with bound 1."""
        out = torch.empty(len(x[0]), self.num_outputs, dtype=torch.uint8)
        self._call(1, x, added, ids, None, None, out.data_ptr())
        return out

    def _call(
        self,
        finish: int,
        x: Sequence[Tensor],
        added: Tensor | None,
        ids: Tensor | None,
        floats: int | None,
        rows: int | None,
        bytes_: int | None,
    ) -> None:
        library().recurra_product(
            self.address,
            finish,
            ctypes.byref(_beside(x)),
            len(x[0]),
            None if added is None else added.data_ptr(),
            None if ids is None else ids.data_ptr(),
            0 if added is None else added.stride(0),
            floats,
            rows,
            bytes_,
            127.0,
            torch.get_num_threads(),
        )

    def logits(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`product` as logits of V = O tokens, a multiple of 64.

        Returns:
            The logits [N, V], the logarithm of each row's sum of exponentials [N], and the largest of each 64
            neighbours [N, V / 64].
        """
        num_rows = len(x[0])
        logits, log_norms = torch.empty(num_rows, self.num_outputs), torch.empty(num_rows)
        peaks, masses = torch.empty(2, num_rows, self.num_panels).unbind()
        library().recurra_logits(
            self.address,
            ctypes.byref(_beside(x)),
            num_rows,
            logits.data_ptr(),
            peaks.data_ptr(),
            masses.data_ptr(),
            log_norms.data_ptr(),
            torch.get_num_threads(),
        )
        return logits, log_norms, peaks

    def cell(
        self,
        kind: int,
        x: Sequence[Tensor],
        added: Tensor | None,
        ids: Tensor | None,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        h: Tensor,
        floats: Tensor | None,
    ) -> None:
        """The gates of a cell and what becomes of them; see native_cell.py. Fills `after`, `h` and `floats`."""
        library().recurra_cell(
            self.address,
            kind,
            h.shape[1],
            ctypes.byref(_beside(x)),
            len(h),
            None if added is None else added.data_ptr(),
            None if ids is None else ids.data_ptr(),
            0 if added is None else added.stride(0),
            before[0].data_ptr() if before else None,
            after[0].data_ptr() if after else None,
            h.data_ptr(),
            None if floats is None else floats.data_ptr(),
            127.0,
            torch.get_num_threads(),
        )


def _beside(x: Sequence[Tensor]) -> _Inputs:
    """Made anew for each call: several threads may use one network."""
    inputs = _Inputs()
    for i, part in enumerate(x):
        inputs.data[i] = part.data_ptr()
        inputs.stride[i] = part.stride(0)
    return inputs


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, contexts: Tensor, bound: float) -> Tensor:
    """Dot-product attention of R · K queries, K an entry: score = qᵀ k, softmax, weighted sum of the values.

    Args:
        queries: [R · K, A].
        keys, values: [R, S, A] and [R, S, M].
        mask: [R, S], True for the first positions, which are valid.
        contexts: [R · K, M] uint8, filled with the context over `bound`.

    Returns:
        The weights [R · K, S].
    """
    num_entries, width, key_dim = keys.shape
    weights = torch.empty(len(queries), width)
    library().recurra_attend(
        queries.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        mask.data_ptr(),
        num_entries,
        len(queries) // num_entries,
        width,
        key_dim,
        values.shape[2],
        contexts.data_ptr(),
        127 / bound,
        weights.data_ptr(),
        torch.get_num_threads(),
    )
    return weights


def _order(num_outputs: int, num_gates: int) -> Tensor:
    """[·] int64: the output that stands at each place of the panels."""
    if num_gates:
        return torch.arange(num_outputs).view(num_gates, -1, LANES).transpose(0, 1).flatten()
    order = torch.arange(-(-num_outputs // _BLOCK) * _BLOCK)
    return torch.where(order < num_outputs, order, -1)
