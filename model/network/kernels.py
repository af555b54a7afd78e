"""Python's side of kernels.cpp: whether it is there, an affine map packed for it, and work for it. Knows neither cells'
maths nor attention.

The library is built when the package is installed, where there is a C++ compiler. It is used where the processor has
AVX-512 VNNI; where either is missing, the packed network of torch's own operations takes its place, which is slower.
Its threads are those of torch: both use one OpenMP runtime.

Operations are written down in a `Work` and done together by its `run`. Writing one down keeps the interpreter's lock,
`run` gives it up: once for a whole step, however many operations that has, because another thread may have it for long
before it comes back.

Shape letters: N rows, I inputs, O outputs, G gates, M rows of the state before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.network.token_scores import BLOCK

LANES = 16  # outputs come in multiples of it, inputs in multiples of four
_MAX_PARTS = 3


class _Inputs(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p * _MAX_PARTS),
        ("stride", ctypes.c_int64 * _MAX_PARTS),
        ("is_parents", ctypes.c_int32 * _MAX_PARTS),
    )


class _Affine(ctypes.Structure):
    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("init", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_panels", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
        ("num_parts", ctypes.c_int64),
        ("groups", ctypes.c_int64 * _MAX_PARTS),
        ("num_groups", ctypes.c_int64),
    )


_POINTER, _COUNT, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_LONG_CALLS: dict[str, tuple[Any, ...]] = {
    "recurra_run": (_POINTER, _INT),
    "recurra_quantize": (_POINTER, _COUNT, _POINTER, _COUNT, _COUNT, _FLOAT),
}
_SHORT_CALLS: dict[str, tuple[Any, ...]] = {
    "recurra_new_work": (_POINTER, _COUNT, _COUNT),
    "recurra_drop_work": (_POINTER,),
    "recurra_product": (
        *(_POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _COUNT),
        *(_POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "recurra_logits": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "recurra_cell": (
        *(_POINTER, _POINTER, _INT, _COUNT, _POINTER, _POINTER, _POINTER, _COUNT),
        *(_POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "recurra_read": (
        *(_POINTER, _POINTER, _INT, _COUNT, _COUNT, _INT, _POINTER, _POINTER),
        *(_POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "recurra_attend": (
        *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT, _COUNT, _COUNT),
        *(_POINTER, _FLOAT, _POINTER),
    ),
    "recurra_best": (
        *(_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _POINTER, _COUNT, _COUNT, _COUNT),
        *(_POINTER, _POINTER, _POINTER, _INT),
    ),
}


class _Library(NamedTuple):
    """One library twice.

    Attributes:
        long: gives up the interpreter's lock while it is at work.
        short: keeps it.
    """

    long: Any
    short: Any


@cache
def library() -> _Library | None:
    """The library; None where it was not built or the processor cannot run it."""
    for path in sorted(Path(__file__).parent.glob("_kernels*.so")):
        try:
            found = _Library(ctypes.CDLL(str(path)), ctypes.PyDLL(str(path)))
            _declare(found.long, _LONG_CALLS)
            _declare(found.short, _SHORT_CALLS)
        except (OSError, AttributeError):  # not for this machine, or of another version of this file
            continue
        found.short.recurra_new_work.restype = _POINTER
        return found if found.short.recurra_is_supported() else None
    return None


def _declare(found: Any, calls: dict[str, tuple[Any, ...]]) -> None:
    for name, arguments in calls.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None


def _library() -> _Library:
    found = library()
    assert found is not None, "whoever packs for the kernels has asked whether they are there"
    return found


def quantize(x: Tensor, bound: float = 1.0) -> Tensor:
    """x [N, I] float32 within -bound and bound, whose rows are contiguous -> [N, I] uint8."""
    num_rows, size = x.shape
    out = torch.empty(num_rows, size, dtype=torch.uint8)
    _library().long.recurra_quantize(x.data_ptr(), x.stride(0), out.data_ptr(), num_rows, size, 127 / bound)
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
        num_sums: where the outputs are those of a cell, [num_sums · H], how many sums a unit has.
        sums_of_parts: of a cell, the sums that each part has a share in; in every other the part's weights are zeros.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        parts: Sequence[tuple[int, float]] = (),
        num_sums: int = 0,
        sums_of_parts: Sequence[Sequence[int]] = (),
    ) -> None:
        weight = weight.detach().float()
        num_outputs, num_inputs = weight.shape
        parts = parts or [(num_inputs, 1.0)]
        widths = [width for width, _ in parts]
        assert sum(widths) == num_inputs and len(parts) <= _MAX_PARTS and not any(width % 4 for width in widths)
        assert num_outputs % (LANES * max(1, num_sums)) == 0
        # Bytes stand for shares of their bound: the weights take it in.
        weight = weight * torch.cat([torch.full((width,), bound) for width, bound in parts])
        largest = weight.abs().amax(dim=1)
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        per_panel = num_sums or BLOCK // LANES
        order = _order(num_outputs, num_sums)  # which output stands where; -1 for none
        is_there = order >= 0
        quantized = torch.where(is_there[:, None], (weight / scale[:, None]).round().to(torch.int8)[order], 0)
        sums_of_parts = sums_of_parts or [range(per_panel)] * len(parts)
        panels = torch.cat(
            [
                part.reshape(-1, per_panel, LANES, part.shape[1] // 4, 4)[:, list(sums)]
                .permute(0, 3, 1, 2, 4)
                .flatten(1)
                for part, sums in zip(quantized.split(widths, dim=1), sums_of_parts, strict=True)
            ],
            dim=1,
        )
        bias = torch.zeros(num_outputs) if bias is None else bias.detach().float()
        self._kept = (
            panels.contiguous(),
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
            len(parts),
            (_COUNT * _MAX_PARTS)(*groups),
            sum(groups),
        )
        self.address = ctypes.addressof(self._struct)


def _order(num_outputs: int, num_sums: int) -> Tensor:
    """[·] int64: the output that stands at each place of the panels."""
    if num_sums:
        return torch.arange(num_outputs).view(num_sums, -1, LANES).transpose(0, 1).flatten()
    order = torch.arange(-(-num_outputs // BLOCK) * BLOCK)
    return torch.where(order < num_outputs, order, -1)


class Input(NamedTuple):
    """An input in bytes: [N, ·] of the rows themselves, or [M, ·] of the rows that they go on from."""

    data: Tensor
    is_parents: bool = False


@dataclass(frozen=True, eq=False)
class ScatteredMemory:
    """What attention looks up of R sources, each where it lies: nobody copies it into a table.

    Attributes:
        keys, values: [R] int64, the addresses of bfloat16 [·, A] and [·, M]: half the memory to be read in every step.
        lens: [R] int64, tokens of each.
        width: S, of the attention that comes back; no source is longer.
        rows_each: K.
        kept: what the addresses point into.
    """

    keys: np.ndarray
    values: np.ndarray
    lens: np.ndarray
    width: int
    rows_each: int
    kept: Sequence[object]

    @property
    def num_rows(self) -> int:
        return len(self.lens) * self.rows_each


class Work:
    """Operations over N rows that wait to be done together. Of one thread; what they return is filled by `run`.

    Args:
        num_rows: N.
        parents: [N] int64 from -1 to M - 1: the row of the state before that each goes on from; there is no such row
            where it is -1, and what is returned for it is left as it comes. None where each goes on from itself.
        num_states: M.
    """

    def __init__(self, num_rows: int, parents: Tensor | None = None, num_states: int = 0) -> None:
        self._library = _library()
        self._kept: list[object] = [parents]  # until it is done
        self._num_rows = num_rows
        self._address = self._library.short.recurra_new_work(_address(parents), num_rows, num_states)

    def __del__(self) -> None:
        self._library.short.recurra_drop_work(self._address)

    def run(self) -> None:
        """Does what was written down so far, in order."""
        self._library.long.recurra_run(self._address, torch.get_num_threads())
        del self._kept[1:]

    def product(
        self, affine: Affine, x: Sequence[Input], *, added: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """Inputs that stand side by side -> [N, O] float32.

        Args:
            added: [N, O] that are added, with ids [N] int64 rows of a table [·, O].
        """
        out = torch.empty(self._num_rows, affine.num_outputs)
        self._product(affine, 0, x, added, ids, floats=out)
        return out

    def product_into(self, out: Tensor, places: Tensor, affine: Affine, x: Sequence[Input]) -> None:
        """`product` whose row n goes to row places[n] of out [·, O] float32 or bfloat16, places [N] int64."""
        if out.dtype == torch.bfloat16:
            self._product(affine, 0, x, halves=out, places=places)
        else:
            self._product(affine, 0, x, floats=out, places=places)

    def tanh(
        self, affine: Affine, x: Sequence[Input], *, added: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """tanh of `product` over `TANH_FACTOR` (native_cell.py), as bytes [N, O] with bound 1."""
        out = torch.empty(self._num_rows, affine.num_outputs, dtype=torch.uint8)
        self._product(affine, 1, x, added, ids, bytes_=out)
        return out

    def _product(
        self,
        affine: Affine,
        finish: int,
        x: Sequence[Input],
        added: Tensor | None = None,
        ids: Tensor | None = None,
        *,
        floats: Tensor | None = None,
        halves: Tensor | None = None,
        places: Tensor | None = None,
        bytes_: Tensor | None = None,
    ) -> None:
        self._kept += [affine, *x, added, ids, floats, halves, places, bytes_]
        self._library.short.recurra_product(
            self._address,
            affine.address,
            finish,
            _beside(x),
            _address(added),
            _address(ids),
            0 if added is None else added.stride(0),
            _address(floats),
            _address(halves),
            _address(places),
            _address(bytes_),
        )

    def logits(self, affine: Affine, x: Sequence[Input]) -> tuple[Tensor, Tensor, Tensor]:
        """`product` as logits of V = O tokens, a multiple of 64.

        Returns:
            The logits [N, V], the logarithm of each row's sum of exponentials [N], and the largest of each 64
            neighbours [N, V / 64].
        """
        logits, log_norms = torch.empty(self._num_rows, affine.num_outputs), torch.empty(self._num_rows)
        peaks, masses = torch.empty(2, self._num_rows, affine.num_panels).unbind()
        self._kept += [affine, *x, logits, log_norms, peaks]
        self._library.short.recurra_logits(
            self._address,
            affine.address,
            _beside(x),
            logits.data_ptr(),
            peaks.data_ptr(),
            masses.data_ptr(),
            log_norms.data_ptr(),
        )
        return logits, log_norms, peaks

    def cell(
        self,
        affine: Affine,
        kind: int,
        x: Sequence[Input],
        added: Tensor | None,
        ids: Tensor | None,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        h: Tensor,
        floats: Tensor | None,
    ) -> None:
        """The gates of a cell and what becomes of them; see native_cell.py. Fills `after`, `h` and `floats`."""
        self._kept += [affine, *x, added, ids, *before, *after, h, floats]
        self._library.short.recurra_cell(
            self._address,
            affine.address,
            kind,
            h.shape[1],
            _beside(x),
            _address(added),
            _address(ids),
            0 if added is None else added.stride(0),
            before[0].data_ptr() if before else None,
            after[0].data_ptr() if after else None,
            h.data_ptr(),
            _address(floats),
        )

    def attend(self, queries: Tensor, memory: ScatteredMemory, contexts: Tensor, first: int, bound: float) -> Tensor:
        """Dot-product attention of K neighbouring rows a source: score = qᵀ k, softmax, weighted sum of the values.

        Args:
            queries: [N, A].
            memory: R sources.
            contexts: [N, M] uint8; those of the R · K rows are filled with the context over `bound`.
            first: the first of these rows.

        Returns:
            Their weights [R · K, S].
        """
        num_entries = len(memory.lens)
        weights = torch.empty(memory.num_rows, memory.width)
        self._kept += [queries, memory, contexts, weights]
        self._library.short.recurra_attend(
            self._address,
            queries.data_ptr(),
            memory.keys.ctypes.data,
            memory.values.ctypes.data,
            memory.lens.ctypes.data,
            num_entries,
            first,
            memory.rows_each,
            memory.width,
            queries.shape[1],
            contexts.shape[1],
            contexts.data_ptr(),
            127 / bound,
            weights.data_ptr(),
        )
        return weights

    def read(self, *arguments: Any, kept: Sequence[object]) -> None:
        """`recurra_read` with these arguments, which point into what is kept."""
        self._kept += kept
        self._library.short.recurra_read(self._address, *arguments)


def best_few(
    logits: Tensor, peaks: Tensor, log_norms: Tensor | None, num_forbidden: int, totals: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best k continuations of each of R segments of K rows, ties by row and token.

    It is over so soon that it keeps the interpreter's lock: waiting to have it back would take longer.

    Args:
        logits: [R·K, V] float32, V a multiple of 64.
        peaks: [R·K, V / 64], the largest of each 64.
        log_norms: [R·K], which are subtracted; None for nothing.
        num_forbidden: the first so many tokens, less than 64, may not come.
        totals: [R, K], which are added then; -inf for a row that is not there. None for zeros, and K = 1.

    Returns:
        Values [R, k] best first, rows [R, k] within the segment and tokens [R, k], both int64; -inf where there are no
        more.
    """
    num_segments, rows_each = (len(logits), 1) if totals is None else totals.shape
    logits, peaks = logits.contiguous(), peaks.contiguous()
    values = torch.empty(num_segments, k)
    rows, tokens = torch.empty(2, num_segments, k, dtype=torch.int64).unbind()
    _library().short.recurra_best(
        logits.data_ptr(),
        peaks.data_ptr(),
        _address(log_norms),
        logits.shape[1],
        num_forbidden,
        _address(totals),
        num_segments,
        rows_each,
        k,
        values.data_ptr(),
        rows.data_ptr(),
        tokens.data_ptr(),
        torch.get_num_threads(),
    )
    return values, rows, tokens


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _beside(x: Sequence[Input]) -> Any:
    inputs = _Inputs()
    for i, (data, is_parents) in enumerate(x):
        inputs.data[i] = data.data_ptr()
        inputs.stride[i] = data.stride(0)
        inputs.is_parents[i] = is_parents
    return ctypes.byref(inputs)
