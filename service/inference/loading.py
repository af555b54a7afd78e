"""How a version becomes a model in memory: one at a time, and measured once. Decides nothing about which one.

What was found out about one version holds for all of the same network: the precision that `auto` measured to be the
fastest here, and the memory that it takes. So a promotion costs no measurement while others are being answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from service.inference.memory import tensor_bytes
from service.inference.served import ServedModel
from service.inference.versions import CONFIG_FILE, WEIGHTS_FILE, Target
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from model.translator import Translator

# Memory of a loaded model by its file of weights, until one of its shape was measured. The shipped one takes 4.6 times
# as much as int8 and 5.1 times as fp32, most of it tables that spare the decoder products; a careful guess for others.
_BYTES_BY_FILE = 8
_NICENESS = 10  # more than the rest of the process has


class Loader(Protocol):
    """`Translator.load`, or a test's stand-in for it."""

    def __call__(self, path: str | Path, /, *, device: str, precision: str, num_threads: int | None) -> Translator: ...


def load_translator(path: str | Path, /, *, device: str, precision: str, num_threads: int | None) -> Translator:
    """`Translator.load`; torch is imported by the first model that is loaded, not by whoever imports this module."""
    from model.translator import Translator

    return Translator.load(path, device=device, precision=precision, num_threads=num_threads)


class ModelLoader:
    """Makes served models from versions on disk.

    Args:
        load: makes a translator from a folder; a test gives its own.
    """

    def __init__(self, settings: Settings, metrics: Metrics, load: Loader) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        # One at a time: precision is chosen by measuring, which company would disturb.
        self._loading = threading.Lock()
        self._precisions: dict[str, str] = {}  # by the network's shape
        self._num_bytes: dict[str, int] = {}

    def make(self, name: str, target: Target, *, is_quiet: bool) -> ServedModel:
        """A model whose engine is not started yet; its thread loads it.

        Args:
            is_quiet: others are answering requests, which loading is to leave the cores to.
        """
        return ServedModel(
            name,
            target.folder,
            self._work(target.folder, is_quiet),
            max_rows=self._settings.max_rows,
            max_queued_segments=self._settings.max_queued_segments,
            metrics=self._metrics,
        )

    def expected_bytes(self, target: Target) -> int:
        """Memory that a version will take: what one of its shape took, else a guess by its weights."""
        known = self._num_bytes.get(_shape_of(target.folder))
        weights = target.folder / WEIGHTS_FILE
        return known or (weights.stat().st_size * _BYTES_BY_FILE if weights.is_file() else 0)

    def measured_bytes(self, served: ServedModel) -> int:
        """Memory that a loaded model takes."""
        num_bytes = tensor_bytes(served.translator)
        self._num_bytes[_shape_of(served.path)] = num_bytes
        return num_bytes

    def _work(self, folder: Path, is_quiet: bool) -> Callable[[], Translator]:
        settings = self._settings

        def load() -> Translator:
            with self._loading:
                shape = _shape_of(folder)
                precision = self._precisions.get(shape, settings.precision)

                def read() -> Translator:
                    return self._load(
                        folder, device=settings.device, precision=precision, num_threads=settings.num_threads
                    )

                translator = _at_low_priority(read) if is_quiet else read()
                translator.warm_up()
                if shape:
                    self._precisions[shape] = translator.precision
                return translator

        return load


def _at_low_priority(work: Callable[[], Translator]) -> Translator:
    """Runs it in a thread that leaves the cores to others: one that lowered its priority may not raise it again."""
    done: Future[Translator] = Future()

    def run() -> None:
        if sys.platform == "linux":  # elsewhere priorities belong to processes
            with contextlib.suppress(OSError):
                lower = min(19, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), lower)
        try:
            done.set_result(work())
        except Exception as exc:  # raised again by whoever waits
            done.set_exception(exc)

    threading.Thread(target=run, name="load", daemon=True).start()
    return done.result()


def _shape_of(folder: Path) -> str:
    """The network's configuration; empty where it cannot be read, which loading will complain about."""
    try:
        return json.dumps(json.loads((folder / CONFIG_FILE).read_bytes())["model"], sort_keys=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
