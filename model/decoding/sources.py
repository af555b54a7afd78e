"""The sources of a lane's segments: where they lie, or in a table that keeps one width for good.

The kernels look a source up wherever it lies (`SourceList`). Torch's operations want a table (`SourceTable`), which is
never copied for a step: a segment takes the next free entry when it joins; when one leaves, the last entry moves into
its place, so that the live entries always stand together at the start of the table and a step sees them as one view.
The width of a table is fixed, so what attention computes for a segment depends on its own length only, never on its
neighbours'. What stands in an entry behind its own source is finite and masked; nobody copies it.

Shape letters: R live entries, S the table's width, K rows an entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from model.network.decoder import Memory
from model.network.kernels import ScatteredMemory
from model.network.native_decoder import scattered_memory

_FIRST_CAPACITY = 8
_OF_TOKENS = (0, 1)  # keys and values; a mask is moved whole
_WIDTHS = (32, 64, 128, 256)


def width_for(num_src: int) -> int:
    """The narrowest table for a source of so many tokens."""
    for width in _WIDTHS:
        if num_src <= width:
            return width
    return -(-num_src // _WIDTHS[-1]) * _WIDTHS[-1]


class SourceList:
    """Memories of R segments where they lie. Interface and arguments are those of `SourceTable`."""

    def __init__(self, width: int, rows_each: int) -> None:
        nothing = np.empty(0, dtype=np.int64)
        self._memory = ScatteredMemory(nothing, nothing, nothing, width, rows_each, [])

    def add(self, memory: Memory, entries: Sequence[int], lens: Sequence[int]) -> None:
        have = self._memory
        new = scattered_memory(memory, np.array(entries), np.array(lens))
        keys, values, all_lens = (
            np.concatenate(pair) for pair in ((have.keys, new.keys), (have.values, new.values), (have.lens, new.lens))
        )
        kept = [*have.kept, *[memory] * len(entries)]
        self._memory = ScatteredMemory(keys, values, all_lens, have.width, have.rows_each, kept)

    def keep(self, order: Sequence[int]) -> None:
        have, at = self._memory, np.array(order, dtype=np.int64)
        kept = [have.kept[i] for i in order]
        self._memory = ScatteredMemory(have.keys[at], have.values[at], have.lens[at], have.width, have.rows_each, kept)

    def memory(self) -> ScatteredMemory:
        return self._memory


class SourceTable:
    """Memories of R segments.

    Args:
        width: S.
        rows_each: K.
    """

    def __init__(self, width: int, rows_each: int) -> None:
        self._width = width
        self._rows_each = rows_each
        self._lens: list[int] = []  # of the R sources
        self._parts: list[Tensor | None] = []  # keys, values, mask, context, with room for more entries
        self._live: Memory | None = None  # views of the live entries, until others are live

    def add(self, memory: Memory, entries: Sequence[int], lens: Sequence[int]) -> None:
        """Takes in these entries of a memory at least as wide, after all others; `lens` are their sources' lengths."""
        width = max(lens)
        arrived = [
            None if part is None else part if is_fixed else part[:, : self._width]
            for part, is_fixed in ((memory.keys, 0), (memory.values, 0), (memory.mask, 0), (memory.context, 1))
        ]
        if memory.keys is memory.values:
            arrived[0] = arrived[1]  # dot attention looks at the memory itself
        first = len(self._lens)
        self._lens.extend(lens)
        self._live = None
        self._make_room(arrived)
        is_whole = list(entries) == list(range(memory.num_entries))
        index = torch.tensor(entries, dtype=torch.int64, device=memory.mask.device)
        for i, (table, part) in enumerate(zip(self._parts, arrived, strict=True)):
            if table is None or part is None or (i == 0 and table is self._parts[1]):
                continue
            if i in _OF_TOKENS:
                table, part = table[:, :width], part[:, :width]
            table[first : len(self._lens)] = part if is_whole else part.index_select(0, index)

    def _make_room(self, like: Sequence[Tensor | None]) -> None:
        if not self._parts:
            self._parts = [None if part is None else part.new_empty(0, *part.shape[1:]) for part in like]
            if like[0] is not None and like[0] is like[1]:
                self._parts[0] = self._parts[1]
        capacity = next(part.shape[0] for part in self._parts if part is not None)
        if capacity >= len(self._lens):
            return
        capacity = max(_FIRST_CAPACITY, 2 * capacity, len(self._lens))
        is_shared = self._parts[0] is not None and self._parts[0] is self._parts[1]
        grown: list[Tensor | None] = []
        for part in self._parts:
            wider = None if part is None else part.new_zeros(capacity, *part.shape[1:])
            if part is not None and wider is not None:
                wider[: part.shape[0]] = part
            grown.append(wider)
        if is_shared:
            grown[0] = grown[1]
        self._parts = grown

    def keep(self, order: Sequence[int]) -> None:
        """Only these entries stay, in this order."""
        moved = [(to, at) for to, at in enumerate(order) if to != at]
        self._lens = [self._lens[at] for at in order]
        self._live = None
        if not moved:
            return
        to, at = ([pair[i] for pair in moved] for i in (0, 1))
        width = max(self._lens[i] for i in to)
        for i, part in enumerate(self._parts):
            if part is None or (i == 0 and part is self._parts[1]):
                continue
            entries = part[:, :width] if i in _OF_TOKENS else part
            entries[to] = entries[at]

    def memory(self) -> Memory:
        """The live entries, as views."""
        if self._live is None:
            table = _memory(self._parts, self._rows_each)
            live = _memory([None if part is None else part[: len(self._lens)] for part in self._parts], self._rows_each)
            self._live = replace(live, table=table)
        return self._live


def _memory(parts: Sequence[Tensor | None], rows_each: int) -> Memory:
    keys, values, mask, context = parts
    assert mask is not None
    return Memory(keys, values, mask, context, rows_each)
