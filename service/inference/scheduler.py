"""Which waiting sentence gets the next free rows. Plain bookkeeping: touches no tensor, no thread and no clock.

Fair by request: the next place goes to the request that holds the fewest rows, the older one first. A list of 1,000
texts takes the whole table while it is alone, and half of it once a second list is there. The last eighth of the table
is kept for requests that hold nothing yet, so that a single text starts at the next step:

    max_rows 40, k 5; a list A of 1,000 is alone: takes 7 places (35 rows), leaves 5 rows
    a single text B arrives: holds nothing, so it takes the 5 rows at once
    A's places free up again: A is next, for nobody else waits

Where the request that is next does not fit, nobody else is let past it: a wide beam would else wait for ever behind
narrow ones.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.decoding.search import SearchOptions, SegmentResult

# Padded source tokens that one round of admissions may encode: live rows stand still meanwhile.
MAX_ENCODE_TOKENS = 4096
# Where few rows are live, a step is cheaper than an encoder batch: newcomers wait this many steps for one another, or
# until they bring a quarter of the live rows. Where many are live the wait would be long, and they come at once.
_MAX_ROUNDS = 8
_FEW_ROWS = 160
_NEWCOMER_SHARE = 8  # 1/8 of the table
_REFILL_SHARE = (
    8  # a request's next sentences wait for this much room: encoding one costs nearly as much as encoding ten
)


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where a request's time in the engine went; the three add up to all of it.

    Attributes:
        queue_seconds: until its first segment was admitted.
        encode_seconds: encoder batches that carried its segments.
        decode_seconds: the rest: steps, and the wait of its later segments for a place.
    """

    queue_seconds: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a request comes to: a result for each of its segments, in order."""

    results: list[SegmentResult]
    timings: Timings


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a request is.

    Attributes:
        results: of its segments; None for those that are not done.
        agreed_ids: tokens that the first of these is sure to start with.
    """

    results: list[SegmentResult | None]
    agreed_ids: list[int]


@dataclass(eq=False)
class EngineRequest:
    """One caller's call on its way through the engine.

    Attributes:
        segments: source ids and options of each sentence.
        waiting: indices of segments not yet admitted, longest first: neighbours in an encoder batch are of like length,
            and no long one is left to run alone at the end.
        num_rows: rows that it holds in the decoder.
        results: by segment, as they come.
        deadline: the moment at which the best so far is the answer; None for never.
        on_progress: called in the engine's thread after each step, for a caller who wants to see the text grow.
    """

    segments: Sequence[tuple[list[int], SearchOptions]]
    submitted_at: float
    deadline: float | None = None
    on_progress: Callable[[Progress], None] | None = None
    future: Future[Outcome] = field(default_factory=Future)
    waiting: deque[int] = field(default_factory=deque)
    results: dict[int, SegmentResult] = field(default_factory=dict)
    num_rows: int = 0
    encode_seconds: float = 0.0
    admitted_at: float | None = None
    has_stepped: bool = False

    def __post_init__(self) -> None:
        by_length = sorted(range(len(self.segments)), key=lambda i: len(self.segments[i][0]), reverse=True)
        self.waiting = deque(by_length)

    @property
    def is_complete(self) -> bool:
        return len(self.results) == len(self.segments)

    def outcome(self, now: float) -> Outcome:
        """Of a complete request."""
        admitted_at = self.submitted_at if self.admitted_at is None else self.admitted_at
        timings = Timings(
            queue_seconds=admitted_at - self.submitted_at,
            encode_seconds=self.encode_seconds,
            decode_seconds=now - admitted_at - self.encode_seconds,
        )
        return Outcome(results=[self.results[i] for i in range(len(self.segments))], timings=timings)


@dataclass(frozen=True)
class Ticket:
    """One segment that is admitted."""

    request: EngineRequest
    index: int

    @property
    def src_ids(self) -> list[int]:
        return self.request.segments[self.index][0]

    @property
    def options(self) -> SearchOptions:
        return self.request.segments[self.index][1]


class Scheduler:
    """The requests that still have segments to admit.

    Args:
        max_rows: rows of the decoder's table.
        max_encode_tokens: source tokens admitted at a time; one segment is admitted however long it is.
    """

    def __init__(self, *, max_rows: int, max_encode_tokens: int = MAX_ENCODE_TOKENS) -> None:
        self.max_rows = max_rows
        self._max_encode_tokens = max_encode_tokens
        self._newcomer_rows = max_rows // _NEWCOMER_SHARE
        self._refill_rows = max_rows // _REFILL_SHARE
        self._requests: dict[EngineRequest, int] = {}  # in order of arrival, with its number
        self._num_arrived = 0
        self._num_rounds = 0  # steps that those who could be admitted have waited for one another

    def add(self, request: EngineRequest) -> None:
        self._num_arrived += 1
        self._requests[request] = self._num_arrived

    def remove(self, request: EngineRequest) -> int:
        """Forgets a request; returns how many of its segments were still waiting."""
        self._requests.pop(request, None)
        num_waiting = len(request.waiting)
        request.waiting.clear()
        return num_waiting

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def requests(self) -> list[EngineRequest]:
        return list(self._requests)

    def admit(self, num_live_rows: int) -> list[list[Ticket]]:
        """Takes the segments to admit now, in groups of like length that are worth an encoder batch each."""
        free = self.max_rows - num_live_rows
        queue = [(request.num_rows, number, request) for request, number in self._requests.items()]
        heapq.heapify(queue)
        if not queue or not self._is_worth_it(queue[0][2], free, num_live_rows):
            return []
        if queue[0][0] == 0 and self._shall_wait(num_live_rows):
            self._num_rounds += 1
            return []
        self._num_rounds = 0
        taken: list[Ticket] = []
        num_tokens = 0
        while queue:
            _, number, request = queue[0]
            ticket = Ticket(request, request.waiting[0])
            num_tokens += len(ticket.src_ids)
            if not self._fits(ticket, free) or (taken and num_tokens > self._max_encode_tokens):
                break
            request.waiting.popleft()
            request.num_rows += ticket.options.num_rows
            free -= ticket.options.num_rows
            taken.append(ticket)
            if request.waiting:
                heapq.heapreplace(queue, (request.num_rows, number, request))
            else:
                heapq.heappop(queue)
                del self._requests[request]
        return _groups(taken)

    def _shall_wait(self, num_live_rows: int) -> bool:
        """Whether newcomers wait for one another."""
        if not 0 < num_live_rows <= _FEW_ROWS or self._num_rounds >= _MAX_ROUNDS:
            return False
        return 4 * self._num_wanted_rows < num_live_rows

    @property
    def _num_wanted_rows(self) -> int:
        return sum(len(request.waiting) * request.segments[0][1].num_rows for request in self._requests)

    def _fits(self, ticket: Ticket, free: int) -> bool:
        kept_free = self._newcomer_rows if ticket.request.num_rows else 0
        return ticket.options.num_rows + kept_free <= free

    def _is_worth_it(self, first: EngineRequest, free: int, num_live_rows: int) -> bool:
        """Newcomers, an empty table and a last few are served at once; a refill waits until it is a batch."""
        if first.num_rows == 0 or num_live_rows == 0 or free - self._newcomer_rows >= self._refill_rows:
            return True
        return self._num_wanted_rows <= free - self._newcomer_rows


def _groups(tickets: list[Ticket]) -> list[list[Ticket]]:
    """Cuts tickets, sorted by length, where the longest of a group would be over twice its shortest (and 16 more)."""
    groups: list[list[Ticket]] = []
    for ticket in sorted(tickets, key=lambda ticket: len(ticket.src_ids)):
        if groups and len(ticket.src_ids) <= 2 * len(groups[-1][0].src_ids) + 16:
            groups[-1].append(ticket)
        else:
            groups.append([ticket])
    return groups
