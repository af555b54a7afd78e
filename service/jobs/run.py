"""The folder of one run: what is where in it, who may work on it, and what was asked of whoever does.

job.json            the spec
events.jsonl        see service.jobs.events
log.txt             what the trainer wrote, tracebacks included
lock                held by the one process that works here
stop                there as long as the run is asked to stop
failure.json        why the last attempt of a stage failed
data/               train.tsv, dev.jsonl, test.jsonl, data.json      (prepare)
train/              the state of model.training, tokenizers included (tokenizer, train)
candidate/          the finished checkpoint                          (train)
evaluation.json     its scores, and its version                      (evaluate)
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.files import write_json
from service.jobs.events import append_event
from service.jobs.failures import Failure
from service.jobs.spec import JobSpec


class RunFolder:
    """Paths and small files of one run; holds nothing open, so that any process may have one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.events = self.path / "events.jsonl"
        self.log = self.path / "log.txt"
        self.data = self.path / "data"
        self.train = self.path / "train"
        self.candidate = self.path / "candidate"
        self.evaluation = self.path / "evaluation.json"
        self._spec = self.path / "job.json"
        self._lock = self.path / "lock"
        self._stop = self.path / "stop"
        self._failure = self.path / "failure.json"

    @property
    def id(self) -> str:
        return self.path.name

    def create(self, spec: JobSpec) -> None:
        """Makes the folder; doing it again changes nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._spec.exists():
            write_json(self._spec, spec.to_json())

    def spec(self) -> JobSpec:
        return JobSpec.from_json(json.loads(self._spec.read_bytes()))

    def tell(self, event: str, **values: Any) -> None:
        append_event(self.events, event, **values)

    # -- asked to stop ---------------------------------------------------------------------------------------------

    def ask_to_stop(self) -> None:
        """Whoever works here saves its state and ends; nobody begins until `allow`."""
        if self.path.is_dir():
            self._stop.touch()

    def allow(self) -> None:
        self._stop.unlink(missing_ok=True)

    @property
    def is_asked_to_stop(self) -> bool:
        return self._stop.exists()

    # -- one worker ------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, wait: Callable[[], None]) -> Iterator[None]:
        """Holds the folder against every other process; the kernel gives it back however this one ends.

        Args:
            wait: called while another process holds it; may raise to give up.
        """
        with self._lock.open("ab") as stream:
            while not _try_lock(stream.fileno()):
                wait()
            yield

    @property
    def is_busy(self) -> bool:
        """Whether a process works here."""
        try:
            with self._lock.open("rb") as stream:
                return not _try_lock(stream.fileno())
        except FileNotFoundError:
            return False

    # -- results ---------------------------------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        write_json(self._failure, {"code": failure.code, "detail": failure.detail})

    @property
    def has_failed(self) -> bool:
        """Whether an attempt left a failure that nobody has taken yet."""
        return self._failure.exists()

    def take_failure(self) -> Failure | None:
        """The failure that the last attempt left, once."""
        try:
            values = json.loads(self._failure.read_bytes())
        except FileNotFoundError:
            return None
        self._failure.unlink(missing_ok=True)
        return Failure(code=values["code"], detail=values["detail"])

    def read_evaluation(self) -> dict[str, Any] | None:
        try:
            values = json.loads(self.evaluation.read_bytes())
        except FileNotFoundError:
            return None
        assert isinstance(values, dict)
        return values

    def progress_mark(self) -> tuple[Any, ...]:
        """Changes whenever the work got further in a way that a restart keeps."""
        kept = sorted(path for folder in (self.data, self.train, self.candidate) for path in folder.glob("[!.]*"))
        return tuple((path.name, path.stat().st_mtime_ns) for path in (*kept, self.evaluation) if path.exists())

    def forget_intermediate(self) -> None:
        """Frees what only a resume needs; news, log, spec and scores stay."""
        for folder in (self.data, self.train, self.candidate):
            shutil.rmtree(folder, ignore_errors=True)

    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
