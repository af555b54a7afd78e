"""Starts the trainer process for a stage, watches it, starts it again where it was killed, and stops it when asked to.

Knows nothing of the workflow engine: it returns when the stage is done, or raises what happened instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.jobs.events import read_events
from service.jobs.failures import Failure, JobFailed
from service.jobs.run import RunFolder
from service.jobs.trainer import EXIT_DISK_FULL, EXIT_FAILED, EXIT_STOPPED, GRACE_SECONDS
from service.logs import EventLog
from service.settings import ENV_PREFIX, Settings

MAX_VAIN_STARTS = 6
_LOOK_SECONDS = 0.2
_RESTART_SECONDS = 0.25  # doubled at each start in vain
_CANCEL_LOOK_SECONDS = 3.0
_PROJECT = Path(__file__).resolve().parents[2]

log = EventLog("jobs")


class StageCancelled(Exception):
    """The run was asked to stop, and has."""


class Interrupted(BaseException):
    """This service is shutting down; the stage goes on at its next start.

    No Exception: the workflow engine records those as the stage's result.
    """


class Watcher:
    """Runs stages of one job.

    Args:
        closing: set when this service shuts down.
        is_cancelled: asks the database; looked at every few seconds, in case nobody could reach the run's folder.
        on_event: hears every event that the trainer tells, while it runs.
        command: how a stage's process is started; a test gives its own.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        *,
        closing: threading.Event,
        is_cancelled: Callable[[], bool],
        on_event: Callable[[dict[str, Any]], None],
        command: Callable[[RunFolder, str], list[str]] | None = None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._closing = closing
        self._is_cancelled = is_cancelled
        self._on_event = on_event
        self._command = command or trainer_command
        self._last_look = time.monotonic()

    def run_stage(self, stage: str) -> None:
        """Returns when the stage is done.

        Raises:
            JobFailed: it cannot be done, or was killed again and again without getting any further.
            StageCancelled, Interrupted: it was stopped.
        """
        num_vain, mark = 0, self._run.progress_mark()
        while True:
            self._check_stopped()
            status = self._attempt(stage)
            if status == 0:
                return
            self._check_stopped()
            self._check_failed(status)
            num_vain = num_vain + 1 if self._run.progress_mark() == mark else 1
            mark = self._run.progress_mark()
            self._run.tell("stopped_by_itself", stage=stage, cause=_cause(status), attempt=num_vain)
            log.warning("trainer_ended", job=self._run.id, stage=stage, cause=_cause(status), attempt=num_vain)
            if num_vain >= MAX_VAIN_STARTS:
                detail = f"{stage} ended {num_vain} times without getting any further, last by {_cause(status)}"
                code = "killed" if status < 0 or status == EXIT_STOPPED else "worker_failed"
                raise JobFailed(Failure(code=code, detail=detail))
            self._closing.wait(min(30.0, _RESTART_SECONDS * 2**num_vain))

    def _check_stopped(self) -> None:
        if self._run.is_asked_to_stop:
            raise StageCancelled
        if self._closing.is_set():
            raise Interrupted

    def _check_failed(self, status: int) -> None:
        failure = self._run.take_failure()
        if status == EXIT_FAILED and failure:
            raise JobFailed(failure)
        if status == EXIT_DISK_FULL:
            raise JobFailed(Failure(code="disk_full", detail="the disk is full: not even the cause could be written"))

    def _attempt(self, stage: str) -> int:
        """One process, from its start to its exit status."""
        with _started(self._command(self._run, stage), self._run, self._settings) as process:
            offset = self._run.events.stat().st_size if self._run.events.exists() else 0
            stop_at: float | None = None
            while process.poll() is None:
                offset = self._hear(offset)
                if stop_at is None and self._wants_stop():
                    process.terminate()
                    stop_at = time.monotonic() + GRACE_SECONDS
                if stop_at is not None and time.monotonic() > stop_at:
                    _kill_group(process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
            self._hear(offset)
            return process.returncode

    def _wants_stop(self) -> bool:
        if time.monotonic() - self._last_look > _CANCEL_LOOK_SECONDS:
            self._last_look = time.monotonic()
            if self._is_cancelled():
                self._run.ask_to_stop()
        return self._closing.is_set() or self._run.is_asked_to_stop

    def _hear(self, offset: int) -> int:
        for event in read_events(self._run.events, offset):
            self._on_event(event.values)
            offset = event.offset
        return offset


def trainer_command(run: RunFolder, stage: str) -> list[str]:
    return [sys.executable, "-m", "service.jobs.trainer", str(run.path), stage]


@contextmanager
def _started(command: list[str], run: RunFolder, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a group of its own so that Ctrl-C in a terminal does not reach it; killed if we leave early.

    No session of its own: the kernel's autogroups would weigh it against the service as an equal, whatever its nice.
    """
    with run.log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            env=_environment(run, settings),
            cwd=_PROJECT,
            process_group=0,
        )
    try:
        yield process
    finally:
        _kill_group(process)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _environment(run: RunFolder, settings: Settings) -> dict[str, str]:
    """This process's, with every setting as it is here: not all of them need come from the environment."""
    values = settings.model_dump(mode="json", exclude_none=True)
    values |= {"data": settings.data_path.resolve(), "checkpoints": settings.checkpoints_path.resolve()}
    threads = str(run.spec().num_threads)
    return {
        **os.environ,
        **{ENV_PREFIX + name.upper(): str(value) for name, value in values.items()},
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
    }


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The process and those it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _cause(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
