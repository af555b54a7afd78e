"""The one decoding loop: it owns the live rows of all requests and extends every one of them by a token a step.

Segments join and leave between steps, whatever their search and width. Not thread-safe: one thread owns a StepDecoder.

Shape letters: B segments that join together, N live rows, R segments of one width, K beam width, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data.vocab import BOS_ID, PAD_ID
from model.decoding.beam import BeamSearch, handles_of
from model.decoding.search import SearchOptions, SegmentResult
from model.network.decoder import Memory
from model.network.recurrent import State
from model.network.seq2seq import Seq2Seq

_SRC_MULTIPLE = 16  # source lengths in a memory are padded to its multiples, so that few widths occur


@dataclass
class _Lane:
    """The segments of one beam width: their search, their sources, and the state of their rows."""

    search: BeamSearch
    memory: Memory
    state: State  # tensors [R·K, ...]
    ids: Tensor  # [R·K] int64, the last token of each row


class StepDecoder:
    """Live rows of many segments over one network.

    Args:
        network: in evaluation mode; only `encode` and `step` are called.
        max_rows: rows that may be alive at once. A segment takes k of them.
    """

    def __init__(self, network: Seq2Seq, *, max_rows: int = 512) -> None:
        self._network = network
        self._device = next(network.parameters()).device
        self.max_rows = max_rows
        self._lanes: dict[int, _Lane] = {}
        self._next_handle = 0
        self._widths: dict[int, int] = {}  # handle -> k

    @property
    def num_rows(self) -> int:
        """N, the rows that the next step will extend."""
        return sum(lane.search.num_rows for lane in self._lanes.values())

    @property
    def num_segments(self) -> int:
        return len(self._widths)

    def can_add(self, options: SearchOptions) -> bool:
        """Whether there is room for one more segment; an idle decoder takes any."""
        return self.num_rows + options.k <= self.max_rows or not self._widths

    @torch.inference_mode()
    def add(self, segments: Sequence[tuple[Sequence[int], SearchOptions]]) -> list[int]:
        """Encodes segments as one batch and makes their rows live.

        Args:
            segments: source ids (ended by `<eos>`, not empty) and options of each. Segments of like length waste least.

        Returns:
            A handle for each, in order.
        """
        if not segments:
            return []
        lens = [len(ids) for ids, _ in segments]
        width = -(-max(lens) // _SRC_MULTIPLE) * _SRC_MULTIPLE
        src_ids = torch.tensor([[*ids, *[PAD_ID] * (width - len(ids))] for ids, _ in segments], device=self._device)
        memory, state = self._network.encode(src_ids, torch.tensor(lens, device=self._device))
        handles = list(range(self._next_handle, self._next_handle + len(segments)))
        self._next_handle += len(segments)
        for k in sorted({options.k for _, options in segments}):
            chosen = [i for i, (_, options) in enumerate(segments) if options.k == k]
            lane = self._join(k, chosen, memory, state)
            for i in chosen:
                lane.search.add(handles[i], segments[i][1], lens[i])
                self._widths[handles[i]] = k
        return handles

    def _join(self, k: int, chosen: list[int], memory: Memory, state: State) -> _Lane:
        """Appends encoded segments to the lane of their width; the search hears of them next."""
        index = torch.tensor(chosen, device=self._device)
        arrived = _select(memory, index, k)
        rows = tuple(part[index].repeat_interleave(k, dim=0) for part in state)
        ids = torch.full((len(chosen) * k,), BOS_ID, dtype=torch.int64, device=self._device)
        lane = self._lanes.get(k)
        if lane is None:
            lane = _Lane(BeamSearch(k, self._device), arrived, rows, ids)
            self._lanes[k] = lane
            return lane
        lane.memory = _concatenate(lane.memory, arrived)
        lane.state = tuple(torch.cat(parts) for parts in zip(lane.state, rows, strict=True))
        lane.ids = torch.cat((lane.ids, ids))
        return lane

    @torch.inference_mode()
    def step(self) -> list[tuple[int, SegmentResult]]:
        """One network step for every live row.

        Returns:
            The segments that are done, by handle; they have left.
        """
        if not self._lanes:
            return []
        lanes = list(self._lanes.values())
        ids = torch.cat([lane.ids for lane in lanes]) if len(lanes) > 1 else lanes[0].ids
        state = tuple(torch.cat(parts) for parts in zip(*(lane.state for lane in lanes), strict=True))
        log_probs, state = self._network.step(ids, state, [lane.memory for lane in lanes])
        done: list[tuple[int, SegmentResult]] = []
        start = 0
        for lane in lanes:
            end = start + lane.search.num_rows
            parents, lane.ids, finished = lane.search.absorb(log_probs[start:end])
            lane.state = tuple(part[start:end][parents] for part in state)
            start = end
            done.extend(finished)
        self._leave(handles_of(done))
        return done

    @torch.inference_mode()
    def cancel(self, handle: int) -> None:
        """Frees a segment's rows at once. One that is done or unknown is none of our business any more."""
        if handle in self._widths:
            self._leave({handle})

    def _leave(self, handles: set[int]) -> None:
        for k in {self._widths.pop(handle) for handle in handles}:
            lane = self._lanes[k]
            keep = lane.search.remove(handles)
            if lane.search.num_segments == 0:
                del self._lanes[k]
            elif keep is not None:
                rows = (keep[:, None] * k + torch.arange(k, device=self._device)).flatten()
                lane.memory = _select(lane.memory, keep, k)
                lane.state = tuple(part[rows] for part in lane.state)
                lane.ids = lane.ids[rows]


def _select(memory: Memory, index: Tensor, rows_each: int) -> Memory:
    """The entries of `index` [R'] int64, each with `rows_each` rows."""
    return Memory(
        None if memory.keys is None else memory.keys[index],
        None if memory.values is None else memory.values[index],
        memory.mask[index],
        None if memory.context is None else memory.context[index],
        rows_each,
    )


def _concatenate(first: Memory, second: Memory) -> Memory:
    """Entries of both, padded to the wider source."""
    width = max(first.mask.shape[1], second.mask.shape[1])

    def joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat((_widen(a, width), _widen(b, width)))

    mask = torch.cat((_widen(first.mask, width), _widen(second.mask, width)))
    context = None if first.context is None or second.context is None else torch.cat((first.context, second.context))
    keys, values = joined(first.keys, second.keys), joined(first.values, second.values)
    return Memory(keys, values, mask, context, first.rows_each)


def _widen(x: Tensor, width: int) -> Tensor:
    """x [R, S, ...] padded with zeros (False) to [R, width, ...]."""
    if x.shape[1] == width:
        return x
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, width - x.shape[1]))
