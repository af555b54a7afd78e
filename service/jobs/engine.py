"""Takes jobs from the queue and runs them, durably: a job goes on where it was, whatever ended the process before.

The workflow engine (dbos) keeps each finished stage in the database and begins an unfinished one again; that stage goes
on from its own files. It is one for a process, by its design: a second app in one process has no engine of its
own. It recovers the jobs of its own replica name, so that a name must be one process's only: a lock in the shared
folder sees to that.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any

from service.errors import JobsUnavailable
from service.jobs.failures import Failure, JobFailed, failure_of
from service.jobs.process import Interrupted, StageCancelled, Watcher
from service.jobs.promotion import Promoter
from service.jobs.run import RunFolder
from service.jobs.spec import JobSpec
from service.jobs.store import APPLICATION, APPLICATION_VERSION, QUEUE, WORKFLOW, JobStore
from service.logs import EventLog
from service.metrics import Metrics
from service.settings import Settings

PROCESS_STAGES = ("prepare", "tokenizer", "train", "evaluate")
_STOP_SECONDS = 15.0
_MAX_RECOVERIES = 100

log = EventLog("jobs")

_is_launched = threading.Lock()


def replica_lock(folder: Path, replica: str) -> Path:
    return folder / f".replica-{replica}.lock"


def take_replica(folder: Path, replica: str) -> BufferedWriter | None:
    """The open lock file of a replica's name; None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = replica_lock(folder, replica).open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


class Engine:
    """Runs the jobs of one replica.

    Args:
        store: for questions about a job while it runs.
        promoter: the last stage, which the serving process does itself.
    """

    def __init__(self, settings: Settings, metrics: Metrics, store: JobStore, promoter: Promoter) -> None:
        self._settings = settings
        self._metrics = metrics
        self._store = store
        self._promoter = promoter
        self._folder = settings.data_path / "jobs"
        self._closing = threading.Event()
        self._live = 0
        self._idle = threading.Condition()
        self._lock: BufferedWriter | None = None
        self._has_launched = False

    def launch(self) -> None:
        """Begins to take jobs; those that this replica left unfinished first.

        Raises:
            JobsUnavailable: another process has this replica's name, or this process has an engine already.
        """
        self._lock = take_replica(self._folder, self._settings.replica)
        if self._lock is None:
            raise JobsUnavailable(
                f"another process is the replica {self._settings.replica!r}: give each its own RECURRA_REPLICA"
            )
        if not _is_launched.acquire(blocking=False):
            self._lock.close()
            raise JobsUnavailable("another app of this process runs jobs already")
        self._has_launched = True
        self._launch()
        log.info("jobs_started", replica=self._settings.replica, concurrency=self._settings.jobs_concurrency)

    def _launch(self) -> None:
        from dbos import DBOS, DBOSPortableJSONSerializer

        _send_logs_to_ours()
        DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": self._settings.jobs_url,
                "executor_id": self._settings.replica,
                "application_version": APPLICATION_VERSION,
                "serializer": DBOSPortableJSONSerializer(),
                "use_listen_notify": False,  # nobody waits for a message
                "log_level": "WARNING",
                "enable_otlp": False,
            }
        )

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=_MAX_RECOVERIES)
        def train(spec: dict[str, Any]) -> dict[str, Any]:
            job_id = DBOS.workflow_id
            assert job_id is not None
            return self._run(RunFolder(self._folder / job_id), JobSpec.from_json(spec))

        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=self._settings.jobs_concurrency, on_conflict="always_update")

    def close(self) -> None:
        """Stops the trainers, which save their state, and lets go of the queue; the jobs go on at the next start."""
        self._closing.set()
        if not self._has_launched:
            return
        from dbos import DBOS

        deadline = time.monotonic() + _STOP_SECONDS
        with self._idle:
            self._idle.wait_for(lambda: self._live == 0, timeout=_STOP_SECONDS)
        DBOS.destroy(destroy_registry=True)
        log.info("jobs_stopped", seconds=_STOP_SECONDS - (deadline - time.monotonic()))
        assert self._lock is not None
        self._lock.close()
        self._has_launched = False
        _is_launched.release()

    # -- one job -----------------------------------------------------------------------------------------------------

    def _run(self, run: RunFolder, spec: JobSpec) -> dict[str, Any]:
        """The workflow: what it does outside of steps is done again after a restart, and changes nothing then."""
        from dbos import DBOS

        run.create(spec)
        for stage in PROCESS_STAGES:
            DBOS.run_step({"name": stage}, self._step, run, stage, partial(self._work, run, spec, stage))
        result = DBOS.run_step({"name": "promote"}, self._step, run, "promote", partial(self._decide, run, spec))
        run.forget_intermediate()
        return result

    def _step(self, run: RunFolder, stage: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        from dbos import error

        with self._idle:
            self._live += 1
        try:
            run.tell("stage", stage=stage, replica=self._settings.replica)
            return work()
        except StageCancelled:
            run.tell("cancelled", stage=stage)
            log.info("job_cancelled", job=run.id, stage=stage)
            raise error.DBOSWorkflowCancelledError(run.id) from None  # not recorded: a resume begins with this stage
        except JobFailed as exc:
            run.tell("failed", stage=stage, **exc.failure.to_json())
            log.warning("job_failed", job=run.id, stage=stage, code=exc.failure.code)
            raise
        except OSError as exc:
            raise JobFailed(failure_of(exc)) from exc
        finally:
            with self._idle:
                self._live -= 1
                self._idle.notify_all()

    def _work(self, run: RunFolder, spec: JobSpec, stage: str) -> dict[str, Any]:
        watcher = Watcher(
            run,
            self._settings,
            closing=self._closing,
            is_cancelled=lambda: self._store.is_cancelled(run.id),
            on_event=TokenCounter(self._metrics, spec.model).hear,
        )
        watcher.run_stage(stage)
        return {"stage": stage}

    def _decide(self, run: RunFolder, spec: JobSpec) -> dict[str, Any]:
        if self._closing.is_set():
            raise Interrupted
        evaluation = self._evaluation(run)
        if self._promoter.is_stale(spec, evaluation):  # somebody else promoted meanwhile: compare with that one
            self._work(run, spec, "evaluate")
            evaluation = self._evaluation(run)
        result = self._promoter.promote(run, spec, evaluation)
        run.tell("finished", **{name: result[name] for name in ("version", "promoted", "reason")})
        log.info("job_finished", job=run.id, model=spec.model, version=result["version"], promoted=result["promoted"])
        return result

    @staticmethod
    def _evaluation(run: RunFolder) -> dict[str, Any]:
        evaluation = run.read_evaluation()
        if evaluation is None:
            raise JobFailed(Failure(code="worker_failed", detail="the run's evaluation.json is gone"))
        return evaluation


class TokenCounter:
    """Turns a run's progress into metrics."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._seconds: float | None = None

    def hear(self, event: dict[str, Any]) -> None:
        if event.get("event") not in ("progress", "evaluation") or event.get("loss") is None:
            return
        self._metrics.training_loss.labels(self._model).set(event["loss"])
        if self._seconds is not None:
            num_tokens = event["tokens_per_second"] * max(0.0, event["seconds"] - self._seconds)
            self._metrics.training_tokens.labels(self._model).inc(num_tokens)
        self._seconds = event["seconds"]


class _OurHandler(logging.Handler):
    """The engine's warnings as events of ours, without its tracebacks: they would repeat what a job's log has."""

    def emit(self, record: logging.LogRecord) -> None:
        log.warning("jobs_engine", message=record.getMessage().splitlines()[0])


def _send_logs_to_ours() -> None:
    """Before the engine is made: it adds a handler of its own only where there is none."""
    logger = logging.getLogger("dbos")
    logger.propagate = False
    logger.handlers = [_OurHandler()]
