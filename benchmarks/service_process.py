"""A service in a process of its own, to be killed and started again; and the trainer that works for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 300.0  # for what takes seconds on an idle machine


def wait_for(condition: Callable[[], Any], what: str, seconds: float = TIMEOUT_SECONDS) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise TimeoutError(f"no {what} within {seconds:.0f} s")


class ServiceProcess:
    """`recurra serve` on a port of its own.

    Args:
        folder: with `data` and `checkpoints`, and the log of what the service writes.
        settings: RECURRA_* by their names in small letters, without the prefix.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.data, self.checkpoints = folder / "data", folder / "checkpoints"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._settings = {"data": self.data, "checkpoints": self.checkpoints, "port": self.port, **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def __enter__(self) -> ServiceProcess:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.client.close()
        self.stop()

    def start(self) -> None:
        """Returns when it answers."""
        environment = {**os.environ, **{f"RECURRA_{key.upper()}": str(value) for key, value in self._settings.items()}}
        log_path = self.folder / f"service-{self._settings.get('replica', 'local')}.log"
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        wait_for(self._answers, "answer from the service")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the service ended with status {self.process.returncode}: see {self.folder}")
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/health/live").status_code == 200
        return False

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As an operator does it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            finally:
                self.process.kill()

    # -- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, body: dict[str, Any]) -> str:
        answer = self.client.post("/train", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/train/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_until_ended(self, job_id: str, seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["state"] not in ("queued", "running") else None

        job: dict[str, Any] = wait_for(ended, f"end of job {job_id}", seconds)
        return job

    def events(self, job_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """Of the run so far, from its file: the service may be down."""
        path = self.data / "jobs" / job_id / "events.jsonl"
        if not path.exists():
            return []
        events = [json.loads(line) for line in path.read_bytes().splitlines() if line]
        return [event for event in events if kind in (None, event["event"])]

    def trainer(self, job_id: str) -> int | None:
        """The process id of the job's trainer; None where none lives."""
        for event in reversed(self.events(job_id, "process")):
            pid = int(event["pid"])
            with contextlib.suppress(OSError):
                if b"service.jobs.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def kill_trainer(self, job_id: str) -> bool:
        """Whether there was one to kill."""
        pid = self.trainer(job_id)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def weights(self, model: str, version: str) -> bytes:
        return (self.checkpoints / model / "versions" / version / "weights.safetensors").read_bytes()
