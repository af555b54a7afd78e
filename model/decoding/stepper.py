"""The one decoding loop: it owns the live rows of all requests and extends every one of them by a token a step.

Segments join and leave between steps, whatever their search and width. Not thread-safe: one thread owns a StepDecoder.

Segments of one kind, number of rows and width of source stand together in a *lane*; all lanes' rows stand one lane
after the other in one state, which one network step extends:

    lanes   greedy, 1 row, 16 wide     beam, 5 rows, 16 wide      exact, 5 rows, 32 wide
    rows    0 1 2                      3 4 5 6 7 | 8 9 10 11 12   13 14 15 16 17

A segment goes through *stages*: `exact` begins as a beam, and an explanation ends with a walk through the result.
Between two stages it changes lanes.

Rows are not moved when a search wants them elsewhere: each says which row of the last step's state it goes on from, and
the next step looks there. Rows that are dead, as four of five are in a beam's first step, cost next to nothing.

Shape letters: N live rows, M rows of the state, R segments of a lane, K rows a segment, S source length, P parked
states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.data.vocab import BOS_ID, PAD_ID
from model.decoding.beam import BeamSearch
from model.decoding.exact import ExactSearch
from model.decoding.greedy import GreedySearch
from model.decoding.lane import Absorbed, LaneSearch, LiveSegment
from model.decoding.sampling import SamplingSearch
from model.decoding.scoring import ForcedSearch
from model.decoding.search import Finish, SearchOptions, SegmentResult
from model.decoding.sources import SourceList, SourceTable, width_for
from model.network.decoder import Memory
from model.network.inference import InferenceNetwork
from model.network.recurrent import State

# Segments encoded as one batch: a larger one does not stay in the processor's caches, and takes a fifth longer a token.
_ENCODE_SEGMENTS = 128

_MAX_SPARE_TABLES = 8

STAGES: dict[str, type[LaneSearch]] = {
    "greedy": GreedySearch,
    "beam": BeamSearch,
    "sample": SamplingSearch,
    "exact": ExactSearch,
    "forced": ForcedSearch,
}


class _LaneKey(NamedTuple):
    stage: str
    num_rows: int
    width: int
    has_coverage: bool


@dataclass(eq=False)
class _Lane:
    """Segments that are decoded alike: their search, their sources, and the states that wait for their turn."""

    key: _LaneKey
    search: LaneSearch
    sources: SourceTable | SourceList
    parked: list[Tensor] = field(default_factory=list)  # [P, ...] of each part of the state

    def park(self, state: Sequence[Tensor], rows: Sequence[int], slots: Sequence[int]) -> None:
        """Keeps the states of these rows [n] in these slots [n]."""
        if not slots:
            return
        needed = max(slots) + 1
        if not self.parked or self.parked[0].shape[0] < needed:
            old = self.parked or [part.new_empty(0, *part.shape[1:]) for part in state]
            self.parked = [torch.cat((part, part.new_zeros(needed, *part.shape[1:]))) for part in old]
        for kept, part in zip(self.parked, state, strict=True):
            kept[list(slots)] = part[list(rows)]


@dataclass(eq=False)
class _Journey:
    """A segment's way through its stages.

    Attributes:
        stages: those still to come.
        joined_at: steps of the decoder before it came.
        source, state: its memory and first state, where a later stage begins from them again.
    """

    segment: LiveSegment
    stages: list[str]
    source: Memory | None = None
    state: State | None = None
    joined_at: int = 0


class StepDecoder:
    """Live rows of many segments over one network.

    Args:
        network: packed; only `encode` and `step` are called.
        max_rows: rows that may be alive at once. A segment takes `options.num_rows` of them.
    """

    def __init__(self, network: InferenceNetwork, *, max_rows: int = 256) -> None:
        self._network = network
        self._device = network.device
        self.max_rows = max_rows
        self._lanes: dict[_LaneKey, _Lane] = {}
        self._spare_tables: dict[_LaneKey, SourceTable] = {}  # of lanes that may come again: graphs are over them
        self._state: State = ()  # tensors [M, ...]
        self._ids = np.zeros(0, dtype=np.int64)  # [N], the last token of each row
        # [N], the row of the state that each goes on from, -1 for a dead row; None where each goes on from itself.
        self._parents: np.ndarray | None = None
        self._next_handle = 0
        self._journeys: dict[int, _Journey] = {}
        self._num_rows = 0
        self._num_steps = 0

    @property
    def num_rows(self) -> int:
        """N, the rows that the next step will extend."""
        return self._num_rows

    @property
    def num_segments(self) -> int:
        return len(self._journeys)

    @torch.inference_mode()
    def add(self, segments: Sequence[tuple[Sequence[int], SearchOptions]]) -> list[int]:
        """Encodes segments and makes their rows live.

        Args:
            segments: source ids (ended by `<eos>`, not empty) and options of each.

        Returns:
            A handle for each, in order.
        """
        return [
            handle
            for start in range(0, len(segments), _ENCODE_SEGMENTS)
            for handle in self._add_batch(segments[start : start + _ENCODE_SEGMENTS])
        ]

    def _add_batch(self, segments: Sequence[tuple[Sequence[int], SearchOptions]]) -> list[int]:
        lens = [len(ids) for ids, _ in segments]
        width = width_for(max(lens))
        src_ids = torch.tensor([[*ids, *[PAD_ID] * (width - len(ids))] for ids, _ in segments], device=self._device)
        memory, state = self._network.encode(src_ids, lens)
        handles = list(range(self._next_handle, self._next_handle + len(segments)))
        self._next_handle += len(segments)
        journeys: list[_Journey] = []
        for i, (_, options) in enumerate(segments):
            first, *later = _stages(options)
            segment = LiveSegment(handles[i], options, options.length_limit(lens[i]), lens[i])
            journey = _Journey(segment, [first, *later])
            if later:
                journey.source, journey.state = _entry(memory, i), tuple(part[i : i + 1].clone() for part in state)
            journeys.append(journey)
            self._journeys[handles[i]] = journey
            journey.joined_at = self._num_steps
        self._join(journeys, memory, state)
        return handles

    def _join(self, journeys: Sequence[_Journey], memory: Memory, state: State) -> None:
        """Each journey enters its next stage, with the same entry of the memory and the state [R', ...]: the first of
        its rows goes on from there, and the others are dead until it has brought forth more."""
        arrivals: dict[_LaneKey, list[int]] = {}
        for i, journey in enumerate(journeys):
            arrivals.setdefault(_lane_key(journey.stages.pop(0), journey.segment), []).append(i)
        starts = self._starts()
        for key, entries in arrivals.items():
            lane = self._lanes.get(key)
            if lane is None:
                lane = _Lane(key, STAGES[key.stage](key.num_rows, self._device), self._sources(key))
                self._lanes[key] = lane
            segments = [journeys[i].segment for i in entries]
            lane.sources.add(memory, entries, [segment.num_src for segment in segments])
            lane.search.add(segments)
        if not self._num_rows:
            self._state = ()  # of nobody any more
        num_states = self._state[0].shape[0] if self._state else 0
        parents = self._all_parents()
        id_pieces: list[np.ndarray] = []
        parent_pieces: list[np.ndarray] = []
        for key, lane in self._lanes.items():
            start, end = starts.get(key, (0, 0))
            id_pieces.append(self._ids[start:end])
            parent_pieces.append(parents[start:end])
            if key in arrivals:
                first = np.full((len(arrivals[key]), key.num_rows), -1)
                first[:, : lane.search.num_first_rows] = np.array(arrivals[key])[:, None] + num_states
                parent_pieces.append(first.flatten())
                id_pieces.append(np.full(first.size, BOS_ID))
        self._state = tuple(torch.cat(pair) for pair in zip(self._state, state, strict=True)) if self._state else state
        self._ids, self._parents = np.concatenate(id_pieces), np.concatenate(parent_pieces)
        self._num_rows = len(self._ids)

    def _sources(self, key: _LaneKey) -> SourceTable | SourceList:
        if self._network.looks_up_anywhere:
            return SourceList(key.width, key.num_rows)
        return self._spare_tables.pop(key, None) or SourceTable(key.width, key.num_rows)

    def _all_parents(self) -> np.ndarray:
        return np.arange(self._num_rows) if self._parents is None else self._parents

    def _starts(self) -> dict[_LaneKey, tuple[int, int]]:
        """Where each lane's rows begin and end."""
        starts: dict[_LaneKey, tuple[int, int]] = {}
        start = 0
        for key, lane in self._lanes.items():
            starts[key] = (start, start + lane.search.num_rows)
            start += lane.search.num_rows
        return starts

    @torch.inference_mode()
    def step(self) -> list[tuple[int, SegmentResult]]:
        """One network step for every live row.

        Returns:
            The segments that are done, by handle; they have left.
        """
        if not self._lanes:
            return []
        lanes = list(self._lanes.values())
        memories = [lane.sources.memory() for lane in lanes]
        ids = torch.from_numpy(self._ids)
        parents = None if self._parents is None else torch.from_numpy(self._parents)
        scores, state, attention = self._network.step(ids, self._state, memories, parents)
        absorbed: list[Absorbed] = []
        start = 0
        for i, lane in enumerate(lanes):
            end = start + lane.search.num_rows
            absorbed.append(lane.search.absorb(scores.rows(start, end), attention[i] if attention else None))
            parked = absorbed[-1].parked
            if parked is not None:
                lane.park([part[start:end] for part in state], *parked)
            start = end
        self._state = state
        self._num_steps += 1
        return self._arrange(lanes, absorbed)

    def _arrange(self, lanes: Sequence[_Lane], absorbed: Sequence[Absorbed]) -> list[tuple[int, SegmentResult]]:
        """Rows take the places that their searches want, and segments that are done with their stage leave the lane."""
        ended: list[tuple[_Journey, SegmentResult]] = []
        moves: list[np.ndarray | None] = []
        ids: list[np.ndarray] = []
        for lane, step in zip(lanes, absorbed, strict=True):
            segments = lane.search.segments
            ended.extend((self._journeys[segments[at].handle], result) for at, result in step.done)
            rows, lane_ids = step.rows, step.ids
            if step.done:
                places = self._leave(lane, {at for at, _ in step.done})
                rows, lane_ids = (places if rows is None else rows[places]), lane_ids[places]
            moves.append(rows)
            ids.append(lane_ids)
        self._ids = np.concatenate(ids)
        self._num_rows = len(self._ids)
        self._follow(lanes, moves, [len(a.ids) for a in absorbed])
        self._drop_empty_lanes()
        return [(j.segment.handle, result) for j, result in ended if self._is_through(j, result)]

    def _leave(self, lane: _Lane, positions: set[int]) -> np.ndarray:
        """Segments leave a lane; the last ones take their places. Returns the rows that stay, in their new order."""
        order = _without(len(lane.search.segments), positions)
        lane.search.keep(order)
        lane.sources.keep(order)
        k = lane.key.num_rows
        rows = np.array(order, dtype=np.int64)[:, None] * k + np.arange(k)
        return rows.flatten()

    def _follow(self, lanes: Sequence[_Lane], moves: Sequence[np.ndarray | None], num_before: Sequence[int]) -> None:
        """Rows go on from where `moves` say, for each lane: rows of its own, slots of its parked states, or None."""
        if all(rows is None for rows in moves):
            self._parents = None
            return
        parents: list[np.ndarray] = []
        start = 0
        for lane, rows, num_rows in zip(lanes, moves, num_before, strict=True):
            if rows is None:
                rows = np.arange(num_rows)
            elif lane.search.parks:
                rows = self._unpark(lane, rows, start)
            parents.append(np.where(rows < 0, -1, rows + start))
            start += num_rows
        self._parents = np.concatenate(parents)

    def _unpark(self, lane: _Lane, slots: np.ndarray, start: int) -> np.ndarray:
        """Puts parked states where the lane's own stood, from a row of the state on; those are parked or not needed.
        Returns which of its rows each row goes on from."""
        at = (slots >= 0).nonzero()[0]
        if len(at):
            for part, kept in zip(self._state, lane.parked, strict=True):
                part[(at + start).tolist()] = kept[slots[at].tolist()]
        return np.where(slots >= 0, np.arange(len(slots)), -1)

    def _is_through(self, journey: _Journey, result: SegmentResult) -> bool:
        """Whether a segment that ended a stage has ended its last; else it enters the next."""
        if journey.stages and journey.stages[0] == "exact" and result.is_optimal:
            journey.stages.pop(0)  # the beam has proven it already
        if not journey.stages:
            del self._journeys[journey.segment.handle]
            return True
        assert journey.source is not None and journey.state is not None
        journey.segment = replace(journey.segment, best=result, num_tokens=0)
        self._join([journey], journey.source, journey.state)
        return False

    def _drop_empty_lanes(self) -> None:
        for key in [key for key, lane in self._lanes.items() if not lane.search.segments]:
            sources = self._lanes.pop(key).sources
            if self._network.is_graphed and isinstance(sources, SourceTable):
                self._spare_tables[key] = sources
        for key in list(self._spare_tables)[:-_MAX_SPARE_TABLES]:
            del self._spare_tables[key]

    def _find(self, handle: int) -> tuple[_Lane, int]:
        for lane in self._lanes.values():
            for position, segment in enumerate(lane.search.segments):
                if segment.handle == handle:
                    return lane, position
        raise AssertionError(f"segment {handle} is in no lane")

    @torch.inference_mode()
    def cancel(self, handle: int) -> None:
        """Frees a segment's rows at once. One that is done or unknown is none of our business any more."""
        if handle not in self._journeys:
            return
        del self._journeys[handle]
        lane, position = self._find(handle)
        start, end = self._starts()[lane.key]
        rows = self._leave(lane, {position})
        stay = np.concatenate((np.arange(start), rows + start, np.arange(end, self._num_rows)))
        self._ids, self._parents = self._ids[stay], self._all_parents()[stay]
        self._num_rows = len(self._ids)
        self._drop_empty_lanes()

    @torch.inference_mode()
    def cut(self, handle: int, finish: Finish = "deadline") -> SegmentResult | None:
        """The best that a segment has so far; it leaves. None where it has nothing yet."""
        journey = self._journeys.get(handle)
        if journey is None:
            return None
        lane, position = self._find(handle)
        has_stepped = journey.segment.best is not None or self._num_steps > journey.joined_at
        result = lane.search.cut(position, finish) if has_stepped else None
        self.cancel(handle)
        return result

    def agreed_ids(self, handle: int) -> list[int]:
        """Tokens that a live segment's translation is sure to start with."""
        journey = self._journeys.get(handle)
        if journey is None or self._num_steps == journey.joined_at or "exact" in journey.stages:
            return []  # a beam that exact search follows promises nothing
        lane, position = self._find(handle)
        return lane.search.agreed_ids(position)


def _stages(options: SearchOptions) -> list[str]:
    stages = ["beam", "exact"] if options.search == "exact" else [options.search]
    return [*stages, "forced"] if options.wants_attention else stages


def _lane_key(stage: str, segment: LiveSegment) -> _LaneKey:
    options = segment.options
    num_rows = 1 if stage == "forced" else options.num_rows
    return _LaneKey(stage, num_rows, width_for(segment.num_src), bool(options.coverage_penalty))


def _entry(memory: Memory, index: int) -> Memory:
    """One sentence's memory, for itself."""

    def one(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[index : index + 1].clone()

    values = one(memory.values)
    keys = values if memory.keys is memory.values else one(memory.keys)
    return Memory(keys, values, memory.mask[index : index + 1].clone(), one(memory.context))


def _without(num: int, gone: set[int]) -> list[int]:
    """Positions 0 to num - 1 without some, the last ones standing where those were: (5, {1, 2}) -> [0, 3, 4]."""
    order = list(range(num))
    for hole in sorted(gone, reverse=True):
        order[hole] = order[-1]
        order.pop()
    return order
