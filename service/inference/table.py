"""A table of live rows with those who wait for a place in it, and whose turn it is where there are two.

An engine has two tables over one network. Requests of a few sentences stand in the *express* table, long lists in the
*bulk* table, and the engine steps one after the other, so that a single text does not pay for a list of 1,000 with
every step. Both get time by weight while both have work, and all of it while the other has none:

    weights 2 and 1; a step costs express 1 ms, bulk 6 ms
    time had      0, 0   express   1, 0   bulk   1, 6   express … 12 times   13, 6   bulk   13, 12 …

A request's answer does not depend on the table it stands in: no row depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.inference.scheduler import EngineRequest, Scheduler, Ticket

if TYPE_CHECKING:
    from model.decoding.search import SegmentResult
    from model.decoding.stepper import StepDecoder

MAX_EXPRESS_SEGMENTS = 16  # of a request in the express table
EXPRESS_WEIGHT, BULK_WEIGHT = 2.0, 1.0
# Source tokens that a list's sentences are encoded in at a time: all live rows stand still meanwhile.
BULK_ENCODE_TOKENS = 1024


@dataclass(eq=False)
class Table:
    """Live rows, and the requests that have segments to admit to them.

    Attributes:
        decoder: None until the table has work.
        live: the segments in the decoder, by its handle.
        weight: of the time that it gets.
        had: time it has had, in seconds by its weight.
    """

    scheduler: Scheduler
    weight: float
    decoder: StepDecoder | None = None
    live: dict[int, Ticket] = field(default_factory=dict)
    had: float = 0.0

    @property
    def stepper(self) -> StepDecoder:
        assert self.decoder is not None, "it has work"
        return self.decoder

    @property
    def has_work(self) -> bool:
        return bool(self.live) or self.scheduler.has_requests

    @property
    def num_live_rows(self) -> int:
        return 0 if self.decoder is None else self.decoder.num_rows

    @property
    def requests(self) -> set[EngineRequest]:
        return {ticket.request for ticket in self.live.values()} | set(self.scheduler.requests)

    def drop(self, request: EngineRequest) -> int:
        """Takes a request out of the queue and the table; returns how many of its segments were still waiting."""
        num_waiting = self.scheduler.remove(request)
        for handle in self._handles(request):
            self.stepper.cancel(handle)
            del self.live[handle]
        return num_waiting

    def cut(self, request: EngineRequest) -> None:
        """Live segments of a request end with the best they have so far, if any."""
        for handle in self._handles(request):
            ticket, result = self.live.pop(handle), self.stepper.cut(handle)
            if result is not None:
                request.results[ticket.index] = result

    def agreed_ids(self, request: EngineRequest, results: Sequence[SegmentResult | None]) -> list[int]:
        """Tokens that the first segment without a result is sure to start with."""
        if None not in results:
            return []
        index = results.index(None)
        for handle, ticket in self.live.items():
            if ticket.request is request and ticket.index == index:
                return self.stepper.agreed_ids(handle)
        return []

    def _handles(self, request: EngineRequest) -> list[int]:
        return [handle for handle, ticket in self.live.items() if ticket.request is request]


def new_tables(max_rows: int) -> tuple[Table, Table]:
    """Express and bulk."""
    return (
        Table(Scheduler(max_rows=max_rows), EXPRESS_WEIGHT),
        Table(Scheduler(max_rows=max_rows, max_encode_tokens=BULK_ENCODE_TOKENS), BULK_WEIGHT),
    )


def next_table(tables: Sequence[Table]) -> Table | None:
    """Whose turn it is: of those with work the one that has had the least time. Those without it save none up."""
    working = [table for table in tables if table.has_work]
    if not working:
        return None
    chosen = min(working, key=lambda table: table.had)
    for table in tables:
        if table not in working:
            table.had = max(table.had, chosen.had)
    return chosen
