"""Training jobs as the rest of the service sees them: one object an app, safe to call from any thread.

The database is opened at the first call that needs it. Where there is one with jobs in it already, that is soon after
the models are loaded, so that unfinished jobs go on by themselves; a service that never trains pays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from service.datasets.store import DatasetStore
from service.errors import JobConflict, JobsUnavailable, UnknownJob
from service.inference.registry import Registry
from service.jobs.engine import Engine, take_replica
from service.jobs.events import Event, last_events, read_events
from service.jobs.promotion import PromoteLive
from service.jobs.run import RunFolder
from service.jobs.schemas import JobAnswer, TrainBody
from service.jobs.store import Job, JobState, JobStore
from service.jobs.submission import job_spec
from service.logs import EventLog
from service.metrics import Metrics
from service.settings import Settings

_COUNT_SECONDS = 5.0
_RETENTION_SECONDS = 600.0
_FOLLOW_SECONDS = 0.3
_LAUNCH_RETRY_SECONDS = 2.0
_LOOK_SECONDS = 0.5
_PING_SECONDS = 15.0
_LOG_BYTES = 1 << 20
_ENDED: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")

log = EventLog("jobs")


class Jobs:
    """Submits, shows and runs training jobs.

    Args:
        datasets: where a job's data is looked up.
        registry: where a finished model goes live.
    """

    def __init__(self, settings: Settings, metrics: Metrics, datasets: DatasetStore, registry: Registry) -> None:
        self._settings = settings
        self._metrics = metrics
        self._datasets = datasets
        self._registry = registry
        self._folder = settings.data_path / "jobs"
        self._store: JobStore | None = None
        self._store_lock = threading.Lock()
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._why_not_running = ""

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to run jobs once there is a reason to. Returns at once."""
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Trainers save their state and end; followers of events hear the last. May be called again."""
        self._closing.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        with self._store_lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _run(self) -> None:
        while not (self._registry.wait_until_loaded(_LOOK_SECONDS) or self._closing.is_set()):
            pass  # the first translations come before the first training
        if not self._has_database():
            self._wanted.wait()
        engine = self._launched()
        if engine is None:
            return
        try:
            self._keep_house()
        finally:
            engine.close()

    def _launched(self) -> Engine | None:
        """The engine, as soon as this replica's name is free and the database answers; None where we close first."""
        while not self._closing.is_set():
            try:
                engine = Engine(self._settings, self._metrics, self._opened(), PromoteLive(self._registry))
                engine.launch()
                self._why_not_running = ""
                return engine
            except Exception as exc:  # the boundary: translation goes on without jobs
                if str(exc) != self._why_not_running:
                    self._why_not_running = str(exc)
                    log.warning("jobs_not_running", cause=self._why_not_running)
                self._closing.wait(_LAUNCH_RETRY_SECONDS)
        return None

    def _keep_house(self) -> None:
        """Counts jobs for Prometheus, and now and then deletes old ones, until we close."""
        next_retention = time.monotonic()
        while not self._closing.is_set():
            with contextlib.suppress(JobsUnavailable):
                self._count()
                if time.monotonic() >= next_retention:
                    next_retention = time.monotonic() + _RETENTION_SECONDS
                    self.delete_old()
            self._closing.wait(_COUNT_SECONDS)

    def _count(self) -> None:
        for state, number in self._opened().count().items():
            self._metrics.jobs.labels(state).set(number)

    # -- database ----------------------------------------------------------------------------------------------------

    def _has_database(self) -> bool:
        """Whether there may be jobs; asks without making a file."""
        url = self._settings.jobs_url
        return not url.startswith("sqlite:///") or Path(url.removeprefix("sqlite:///")).exists()

    def _opened(self) -> JobStore:
        """Raises JobsUnavailable."""
        with self._store_lock:
            if self._store is None:
                url = self._settings.jobs_url
                if url.startswith("sqlite:///"):
                    Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
                JobStore.migrate(url)
                self._store = JobStore(url)
            return self._store

    # -- what callers ask --------------------------------------------------------------------------------------------

    def submit(self, body: TrainBody, idempotency_key: str | None = None) -> Job:
        """Checks a job and puts it in the queue; the same key again gives the job that it made.

        Raises:
            InvalidValue, UnknownDataset, UnknownModel, UnknownVersion: nothing is started.
            JobConflict: the key belongs to a job that was asked to do something else.
            JobsUnavailable: the database cannot be used.
        """
        spec = job_spec(body, self._settings, self._datasets, self._registry.store)
        job_id = _job_id(idempotency_key)
        store = self._opened()
        self._wanted.set()
        store.submit(job_id, spec)
        job = store.get(job_id)
        if job.spec != spec:
            raise JobConflict(f"the Idempotency-Key belongs to job {job_id}, which was asked to do something else")
        log.info("job_submitted", job=job_id, model=spec.model)
        return job

    def get(self, job_id: str) -> JobAnswer:
        """Raises UnknownJob."""
        return self._answer(self._known(job_id))

    def find(self, *, state: JobState | None = None, limit: int = 50) -> list[JobAnswer]:
        if not self._has_database():
            return []
        return [self._answer(job) for job in self._opened().find(state=state, limit=limit)]

    def cancel(self, job_id: str) -> JobAnswer:
        """A running job saves its state first; it can be resumed. Raises UnknownJob, JobConflict."""
        self._known(job_id)
        self._opened().cancel(job_id)
        self.run_folder(job_id).ask_to_stop()
        return self.get(job_id)

    def resume(self, job_id: str) -> JobAnswer:
        """Raises UnknownJob, JobConflict."""
        job, run = self._known(job_id), self.run_folder(job_id)
        if job.state in ("cancelled", "failed"):
            if run.is_busy:
                raise JobConflict(f"job {job_id} is still saving its state; try again in a moment")
            run.allow()
        self._opened().resume(job_id)
        self._wanted.set()
        return self.get(job_id)

    def adopt(self, replica: str) -> list[str]:
        """Hands the jobs of a replica that is gone for good to those that are there. Raises JobConflict."""
        lock = take_replica(self._folder, replica)
        if lock is None:
            raise JobConflict(f"the replica {replica} is running: stop it first, or leave its jobs to it")
        with lock:
            return self._opened().adopt(replica)

    def delete_old(self) -> None:
        """Ended jobs past RECURRA_JOBS_KEEP or RECURRA_JOBS_KEEP_DAYS, and folders that belong to no job."""
        store = self._opened()
        jobs = store.find()
        ended = [job for job in jobs if job.state in _ENDED]
        oldest = time.time() - 86400 * self._settings.jobs_keep_days
        for place, job in enumerate(ended):
            if place >= self._settings.jobs_keep or (job.finished_at or job.created_at) < oldest:
                store.delete(job.id)
                self.run_folder(job.id).delete()
                log.info("job_deleted", job=job.id)
        known = {job.id for job in store.find()}
        for path in self._folder.glob("[!.]*") if self._folder.is_dir() else ():
            if path.name not in known and time.time() - path.stat().st_mtime > _RETENTION_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def run_folder(self, job_id: str) -> RunFolder:
        """Of a job that is known to be one: its id is never what a caller wrote."""
        return RunFolder(self._folder / job_id)

    def log_text(self, job_id: str) -> bytes:
        """What its trainers wrote, the last MiB of it. Raises UnknownJob."""
        path = self.run_folder(self._known(job_id).id).log
        try:
            with path.open("rb") as stream:
                size = stream.seek(0, 2)
                stream.seek(max(0, size - _LOG_BYTES))
                return stream.read()
        except FileNotFoundError:
            return b""

    async def follow(self, job_id: str, offset: int) -> AsyncIterator[Event | None]:
        """The events after `offset` as they come, until the job has ended or this service shuts down.

        None from time to time while nothing happens, so that a connection in between is not taken for dead.
        """
        last = time.monotonic()
        path = self.run_folder(job_id).events
        while True:
            is_over = self._closing.is_set() or (await asyncio.to_thread(self._known, job_id)).state in _ENDED
            for event in await asyncio.to_thread(_read, path, offset):
                offset, last = event.offset, time.monotonic()
                yield event
            if is_over:
                return
            if time.monotonic() - last > _PING_SECONDS:
                last = time.monotonic()
                yield None
            await asyncio.sleep(_FOLLOW_SECONDS)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _known(self, job_id: str) -> Job:
        if not self._has_database():
            raise UnknownJob(job_id)
        return self._opened().get(job_id)

    def _answer(self, job: Job) -> JobAnswer:
        return JobAnswer.of(job, last_events(self.run_folder(job.id).events))


def _read(path: Path, offset: int) -> list[Event]:
    return list(read_events(path, offset))


def _job_id(idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return uuid.uuid4().hex[:12]
    return hashlib.sha256(idempotency_key.encode()).hexdigest()[:24]
