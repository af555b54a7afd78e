"""The thread that owns every torch call of one served model. Knows token ids only: no text, no HTTP.

A request's segments come in through a bounded queue, its answer goes out as a future. One turn of the thread is

    collect    requests that arrived, and those whose caller went away: their rows are free before the next step;
               those whose time is up are answered with the best so far
    admit      waiting segments that the scheduler finds room for, encoded in batches of like length
    step       one network step for every live row of a table: see table.py

so a request never waits for another to end, only for the steps that are due before its own.

Shutdown, in this order: `begin_drain` (new requests are refused; what was accepted goes on), `close` waits until the
thread has finished all of it or the time is up, then fails what is left and ends the thread. The thread is a daemon: a
step that hangs in a driver cannot keep the process alive.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal

from model.decoding.search import Hypothesis, SegmentResult
from model.errors import RecurraError
from service.errors import DeadlinePassed, Draining, EngineFailure, LimitExceeded, ModelFailed, ModelLoading, QueueFull
from service.inference.scheduler import EngineRequest, Outcome, Progress, Ticket
from service.inference.table import MAX_EXPRESS_SEGMENTS, Table, new_tables, next_table
from service.logs import EventLog
from service.metrics import Metrics

if TYPE_CHECKING:
    from model.decoding.search import SearchOptions
    from model.decoding.stepper import StepDecoder
    from model.translator import Translator

EngineState = Literal["loading", "ready", "failed", "draining", "stopped"]

_MAX_RETRY_AFTER_SECONDS = 30.0
_MEMORY_SECONDS = 1.0  # between two looks at the device's memory
_ABORT_SECONDS = 5.0  # for the step that is running when the time to drain is up

# The result of a sentence that was not begun when its request's time was up.
_NOTHING_YET = SegmentResult(
    hypotheses=(Hypothesis(token_ids=(), log_prob=0.0, score=0.0, finish="deadline"),), num_steps=0
)

log = EventLog("engine")


class Engine:
    """Continuous batching over one model.

    Args:
        name: of the model, for logs.
        load: makes the model, warmed up; called once, in the engine's thread.
        max_rows: live rows in one step.
        max_queued_segments: segments that may wait for a place.
        metrics: where steps and waits are counted.
        clock: seconds, monotonic; a test gives its own.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Translator],
        *,
        max_rows: int,
        max_queued_segments: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.translator: Translator | None = None
        self.cause = ""
        self._load = load
        self._max_queued_segments = max_queued_segments
        self._metrics = metrics
        self._clock = clock
        self._max_rows = max_rows
        self._tables = new_tables(max_rows)
        self._timed: list[EngineRequest] = []  # those with a deadline
        self._watched: list[EngineRequest] = []  # those whose caller sees the text grow
        self._num_live_rows = 0
        self._memory_due = 0.0
        # Shared with callers, under the condition's lock.
        self._changed = threading.Condition()
        self._state: EngineState = "loading"
        self._arrived: deque[EngineRequest] = deque()
        self._cancelled: deque[EngineRequest] = deque()
        self._num_waiting = 0
        self._is_aborted = False
        self._has_loaded = threading.Event()
        self._segments_per_second = 0.0
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    # -- any thread --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def num_waiting(self) -> int:
        """Segments that wait for a place."""
        return self._num_waiting

    @property
    def num_live_rows(self) -> int:
        return self._num_live_rows

    def start(self) -> None:
        """Starts the thread, which loads the model first; `state` tells how that went."""
        self._thread.start()

    def wait_until_loaded(self, timeout_seconds: float | None = None) -> bool:
        """Whether loading has ended, well or not, within the time."""
        return self._has_loaded.wait(timeout_seconds)

    def submit(
        self,
        segments: Sequence[tuple[list[int], SearchOptions]],
        *,
        deadline_seconds: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Future[Outcome]:
        """Queues a request. Cancelling its future frees its rows before the next step.

        Args:
            segments: source ids and options of each.
            deadline_seconds: from now; then the best so far is the answer, or `DeadlinePassed` where there is nothing.
            on_progress: called in the engine's thread after every step; it must be quick and may not raise.

        Raises:
            LimitExceeded: more segments than the queue could ever hold.
            Unavailable: still loading, failed, draining, or the queue is full. Nothing was started.
        """
        now = self._clock()
        deadline = None if deadline_seconds is None else now + deadline_seconds
        request = EngineRequest(segments, now, deadline=deadline, on_progress=on_progress)
        with self._changed:
            self.check_open(len(segments))
            self._arrived.append(request)
            self._num_waiting += len(segments)
            self._changed.notify()
        request.future.add_done_callback(lambda future: self._forget(request) if future.cancelled() else None)
        return request.future

    def begin_drain(self) -> None:
        """Refuses new requests from now on; those accepted go on."""
        with self._changed:
            if self._state in ("loading", "ready"):
                self._state = "draining"
            self._changed.notify()

    def close(self, timeout_seconds: float | None) -> None:
        """Ends the thread: after its work, or at the time limit, when requests left over fail with `Draining`."""
        self.begin_drain()
        if self._thread.ident is None:
            return
        self._thread.join(timeout_seconds)
        with self._changed:
            self._is_aborted = True
            self._changed.notify()
        self._thread.join(_ABORT_SECONDS)

    def free(self) -> None:
        """Lets go of the model, once the thread has ended: its memory does not wait for the garbage collector."""
        if not self._thread.is_alive():
            self.translator = None
            for table in self._tables:
                table.decoder = None

    def check_open(self, num_segments: int = 0) -> None:
        """Raises what `submit` would raise for a request of so many segments."""
        if self._state == "loading":
            raise ModelLoading(f"the model {self.name} is being loaded; GET /health/ready tells when it is ready")
        if self._state == "failed":
            raise ModelFailed(f"the model {self.name} could not be loaded: {self.cause}", retry_after_seconds=30)
        if self._state != "ready":
            raise Draining("the server is shutting down")
        if num_segments > self._max_queued_segments:
            raise LimitExceeded(
                "text", num_segments, self._max_queued_segments, "sentences", "RECURRA_MAX_QUEUED_SEGMENTS"
            )
        if self._num_waiting + num_segments > self._max_queued_segments:
            raise QueueFull(
                f"{self._num_waiting:,} sentences are waiting; allowed is at most {self._max_queued_segments:,}"
                " (RECURRA_MAX_QUEUED_SEGMENTS)",
                retry_after_seconds=min(
                    self._num_waiting / max(self._segments_per_second, 1.0), _MAX_RETRY_AFTER_SECONDS
                ),
            )

    def _forget(self, request: EngineRequest) -> None:
        with self._changed:
            self._cancelled.append(request)
            self._changed.notify()

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        is_ready = self._make_ready()
        self._has_loaded.set()
        if not is_ready:
            return
        try:
            while self._collect():
                self._take_turn()
        except Exception as exc:  # our own mistake, or a device that is lost: nobody may be left waiting for an answer
            log.exception("engine_failed", exc, model=self.name)
            self._give_up(f"the engine stopped: {type(exc).__name__}")
            return
        with self._changed:
            self._state = "stopped"
        log.info("engine_stopped", model=self.name)

    def _make_ready(self) -> bool:
        started = self._clock()
        try:
            self.translator = self._load()
            self._tables[0].decoder = self._new_decoder()  # the other's, once it has work
        except Exception as exc:  # whatever a damaged checkpoint or a driver may raise: other models go on serving
            if isinstance(exc, RecurraError):
                log.warning("model_failed", model=self.name, cause=str(exc))
            else:
                log.exception("model_failed", exc, model=self.name)
            self._give_up(str(exc) if isinstance(exc, RecurraError) else f"{type(exc).__name__}: {exc}")
            return False
        with self._changed:
            if self._state == "loading":
                self._state = "ready"
        seconds = self._clock() - started
        facts = {"device": self.translator.device, "precision": self.translator.precision}
        log.info("model_ready", model=self.name, version=self.translator.version, seconds=seconds, **facts)
        self._measure_memory(self._clock())
        return True

    def _give_up(self, cause: str) -> None:
        with self._changed:
            self.cause, self._state = cause, "failed"
            requests = {*self._arrived, *self._all_requests()}
            self._arrived.clear()
            for table in self._tables:
                table.live.clear()
            self._num_waiting = self._num_live_rows = 0
        for request in requests:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(EngineFailure(cause))

    def _collect(self) -> bool:
        """Waits for something to do; takes in arrivals and drops the cancelled. False when the thread shall end."""
        with self._changed:
            while not (self._arrived or self._cancelled or self._is_aborted or self._has_work):
                if self._state == "draining":
                    return False
                self._changed.wait()
            arrived, cancelled = list(self._arrived), list(self._cancelled)
            self._arrived.clear()
            self._cancelled.clear()
        for request in arrived:
            self._table_of(request).scheduler.add(request)
            if request.deadline is not None:
                self._timed.append(request)
            if request.on_progress is not None:
                self._watched.append(request)
        for request in cancelled:
            self._drop(request)
        if self._timed:
            self._answer_overdue(self._clock())
        if self._is_aborted:
            self._fail(self._all_requests(), Draining("the server shut down before the translation was done"))
            return False
        return True

    def _take_turn(self) -> None:
        table = next_table(self._tables)
        if table is None:
            return
        started = self._clock()
        if table.decoder is None:
            table.decoder = self._new_decoder()
        self._admit(table)
        if table.live:
            self._step(table)
        table.had += (self._clock() - started) / table.weight

    def _admit(self, table: Table) -> None:
        groups = table.scheduler.admit(table.num_live_rows)
        for position, tickets in enumerate(groups):
            self._count_waiting(-len(tickets))
            started = self._clock()
            try:
                handles = table.stepper.add([(ticket.src_ids, ticket.options) for ticket in tickets])
            except Exception as exc:  # out of memory, most likely: those admitted now fail, those alive go on
                log.exception("encode_failed", exc, model=self.name, num_segments=len(tickets))
                later = [ticket for group in groups[position + 1 :] for ticket in group]
                self._count_waiting(-len(later))
                self._fail_admission(table, [*tickets, *later])
                return
            table.live.update(zip(handles, tickets, strict=True))
            self._count_rows()
            self._note_admission(tickets, started)

    def _note_admission(self, tickets: list[Ticket], started: float) -> None:
        seconds = self._clock() - started
        for request in {ticket.request for ticket in tickets}:
            if request.admitted_at is None:
                request.admitted_at = started
            request.encode_seconds += seconds

    def _step(self, table: Table) -> None:
        metrics, started = self._metrics, self._clock()
        metrics.step_rows.observe(table.num_live_rows)
        try:
            finished = table.stepper.step()
        except Exception as exc:
            log.exception("step_failed", exc, model=self.name, num_segments=len(table.live))
            self._start_over(table)
            return
        now = self._clock()
        metrics.step_seconds.observe(now - started)
        for request in {ticket.request for ticket in table.live.values() if not ticket.request.has_stepped}:
            request.has_stepped = True
            metrics.time_to_first_token_seconds.observe(now - request.submitted_at)
        for handle, result in finished:
            self._finish_segment(table.live.pop(handle), result, now)
        self._count_rows()
        if self._watched:
            self._report_progress()
        if now >= self._memory_due:
            self._measure_memory(now)

    def _finish_segment(self, ticket: Ticket, result: SegmentResult, now: float) -> None:
        request = ticket.request
        request.results[ticket.index] = result
        request.num_rows -= ticket.options.num_rows
        self._finish_if_complete(request, now)

    def _finish_if_complete(self, request: EngineRequest, now: float) -> None:
        if request.is_complete:
            outcome = request.outcome(now)
            self._note_rate(len(request.segments), now - request.submitted_at)
            self._metrics.queue_seconds.observe(outcome.timings.queue_seconds)
            self._metrics.encode_seconds.observe(outcome.timings.encode_seconds)
            self._metrics.decode_seconds.observe(outcome.timings.decode_seconds)
            if request.future.set_running_or_notify_cancel():  # a cancel that came before this line wins
                request.future.set_result(outcome)

    def _answer_overdue(self, now: float) -> None:
        """Requests whose time is up get the best so far of each sentence; an empty one where nothing was begun."""
        overdue = [request for request in self._timed if request.deadline is not None and request.deadline <= now]
        self._timed = [request for request in self._timed if request not in overdue and not request.future.done()]
        for request in overdue:
            if request.future.done():
                continue
            self._table_of(request).cut(request)
            if not request.results:
                self._fail([request], DeadlinePassed("the deadline passed before the first token"))
                continue
            self._drop(request)
            for index in range(len(request.segments)):
                request.results.setdefault(index, _NOTHING_YET)
            self._finish_if_complete(request, now)

    def _report_progress(self) -> None:
        self._watched = [request for request in self._watched if not request.future.done()]
        for request in self._watched:
            assert request.on_progress is not None
            results = [request.results.get(i) for i in range(len(request.segments))]
            agreed_ids = self._table_of(request).agreed_ids(request, results)
            request.on_progress(Progress(results=results, agreed_ids=agreed_ids))

    def _drop(self, request: EngineRequest) -> None:
        """Takes a request out of the queue and the table."""
        self._count_waiting(-self._table_of(request).drop(request))
        request.num_rows = 0
        self._count_rows()

    def _fail(self, requests: Iterable[EngineRequest], error: RecurraError) -> None:
        for request in requests:
            self._drop(request)
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)

    def _fail_admission(self, table: Table, tickets: list[Ticket]) -> None:
        self._fail({ticket.request for ticket in tickets}, EngineFailure("a sentence could not be encoded"))
        if table.stepper.num_segments != len(table.live):  # the failure left rows behind that belong to nobody
            self._start_over(table)

    def _start_over(self, table: Table) -> None:
        """After a failed step nothing in the table can be trusted: live requests fail, new rows take its place."""
        table.decoder = self._new_decoder()
        requests = {ticket.request for ticket in table.live.values()}
        table.live.clear()
        self._fail(requests, EngineFailure("a decode step failed"))

    def _new_decoder(self) -> StepDecoder:
        assert self.translator is not None
        return self.translator.decoder(max_rows=self._max_rows)

    def _table_of(self, request: EngineRequest) -> Table:
        express, bulk = self._tables
        return express if len(request.segments) <= MAX_EXPRESS_SEGMENTS else bulk

    @property
    def _has_work(self) -> bool:
        return any(table.has_work for table in self._tables)

    def _all_requests(self) -> set[EngineRequest]:
        return set().union(*(table.requests for table in self._tables))

    def _count_rows(self) -> None:
        self._num_live_rows = sum(table.num_live_rows for table in self._tables)

    def _count_waiting(self, change: int) -> None:
        with self._changed:
            self._num_waiting += change

    def _note_rate(self, num_segments: int, seconds: float) -> None:
        """A running mean for Retry-After; a guess is enough there."""
        rate = num_segments / max(seconds, 1e-3)
        self._segments_per_second = 0.8 * self._segments_per_second + 0.2 * rate

    def _measure_memory(self, now: float) -> None:
        self._memory_due = now + _MEMORY_SECONDS
        if self.translator is not None and self.translator.device.startswith("cuda"):
            import torch

            self._metrics.device_memory_bytes.labels("cuda").set(torch.cuda.memory_allocated())
