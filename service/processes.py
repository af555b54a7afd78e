"""Several processes behind one port: `RECURRA_PROCESSES`.

Python runs one thread's code at a time, so that HTTP and decoding wait for one another; more processes, with fewer
threads each, answer more requests a second where many callers send a sentence each (the README has the figures).

All processes accept connections from one listening socket: whoever is free takes the next. The first is the service
whole; the others translate and score, and hand what changes models, datasets or jobs to the first (peers.py). A process
that dies is started anew. At SIGTERM or Ctrl-C all of them drain; a second signal ends them at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from service.logs import EventLog

_VARIABLE = "_RECURRA_PROCESS"  # what a process is told of its place; not a setting
_LOOK_SECONDS = 0.2
_PARENT_SECONDS = 1.0
_SHORT_LIFE_SECONDS = 10.0
_MAX_SHORT_LIVES = 3  # of one process in a row

log = EventLog("processes")


@dataclass(frozen=True)
class Place:
    """One process among those of a service.

    Attributes:
        number: 0 for the first.
        num_processes: how many there are.
        listener: file descriptor of the listening socket.
        folder: of the sockets on which they talk to one another.
    """

    number: int
    num_processes: int
    listener: int
    folder: str

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def socket_path(self, number: int) -> Path:
        return Path(self.folder) / f"{number}.sock"


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place of this process; None where it is the only one, or the one that starts the others."""
    told = environment.get(_VARIABLE)
    return None if told is None else Place(**json.loads(told))


def end_with_parent() -> None:
    """Drains this process when the one that started it is gone, even killed: nobody else could stop it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def run_processes(num_processes: int, listener: socket.socket) -> int:
    """Starts the processes and returns when the last has ended: the exit status."""
    with tempfile.TemporaryDirectory(prefix="recurra-") as folder:
        return _Supervisor(num_processes, listener, folder).run()


@dataclass
class _Child:
    place: Place
    process: subprocess.Popen[bytes]
    started: float
    num_short_lives: int = 0


class _Supervisor:
    def __init__(self, num_processes: int, listener: socket.socket, folder: str) -> None:
        self._listener = listener
        self._places = [Place(i, num_processes, listener.fileno(), folder) for i in range(num_processes)]
        self._children: list[_Child] = []
        self._is_stopping = threading.Event()

    def run(self) -> int:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._stop)
        self._children = [_Child(place, self._start(place), time.monotonic()) for place in self._places]
        status = 0
        while not self._is_stopping.wait(_LOOK_SECONDS):
            for child in self._children:
                code = child.process.poll()
                if code is not None and not self._start_again(child, code):
                    status = 1
                    self._stop(signal.SIGTERM, None)
        for child in self._children:
            child.process.wait()
        return status

    def _start(self, place: Place) -> subprocess.Popen[bytes]:
        environment = {**os.environ, _VARIABLE: json.dumps(asdict(place))}
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("RECURRA_NUM_THREADS", str(max(1, num_cores // place.num_processes)))
        place.socket_path(place.number).unlink(missing_ok=True)
        # A session of its own: Ctrl-C on a terminal reaches this process alone, which passes it on once.
        return subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            env=environment,
            pass_fds=[self._listener.fileno()],
            start_new_session=True,
        )

    def _start_again(self, child: _Child, code: int) -> bool:
        """False where a process dies again and again: the others would hide it."""
        is_short = time.monotonic() - child.started < _SHORT_LIFE_SECONDS
        child.num_short_lives = child.num_short_lives + 1 if is_short else 0
        log.warning("process_died", number=child.place.number, status=code, num_short_lives=child.num_short_lives)
        if child.num_short_lives >= _MAX_SHORT_LIVES:
            return False
        child.process, child.started = self._start(child.place), time.monotonic()
        return True

    def _stop(self, number: int, _: FrameType | None) -> None:
        is_second = self._is_stopping.is_set()
        self._is_stopping.set()
        self._listener.close()  # once all have closed it, callers are refused and do not wait for nobody
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGKILL if is_second else number)
