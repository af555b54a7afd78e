"""Which version of a model is live: `live.json` in the model's folder, and how it changes. Knows no checkpoint.

    {"format_version": 1,
     "live": "3f9a1c20b7de",
     "previous": ["ba3cd847386e"],                              where rollback goes, the last one first to be taken
     "history": [{"version": …, "reason": …, "at": …}, …]}      every switch there was, for people

Rolling back is an undo: it takes the last of `previous`, so that twice goes two versions back and never to and fro.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model.errors import CheckpointError
from model.files import write_json

POINTER_FILE = "live.json"
FORMAT_VERSION = 1
_MAX_KEPT = 200  # entries of previous and history


@dataclass(frozen=True, kw_only=True)
class Switch:
    """A version went live.

    Attributes:
        reason: why, in a few words ("promoted by hand", "job 3f9a: BLEU 48.8 against 47.0").
        at: unix seconds.
    """

    version: str
    reason: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What `live.json` says."""

    live: str
    previous: tuple[str, ...] = ()
    history: tuple[Switch, ...] = ()

    def moved(self, version: str, *, reason: str) -> Pointer:
        """After a promotion; a version that went live before is not met twice on the way back."""
        previous = tuple(v for v in (*self.previous, self.live) if v != version)
        return self._noted(version, previous, reason)

    def moved_back(self, known: Collection[str], *, reason: str) -> Pointer | None:
        """After a rollback, to the last one before that is still `known`; None where there is none."""
        previous = [v for v in self.previous if v in known and v != self.live]
        return self._noted(previous[-1], tuple(previous[:-1]), reason) if previous else None

    def _noted(self, version: str, previous: tuple[str, ...], reason: str) -> Pointer:
        switch = Switch(version=version, reason=reason, at=round(time.time(), 3))
        history = (*self.history, switch)[-_MAX_KEPT:]
        return replace(self, live=version, previous=previous[-_MAX_KEPT:], history=history)

    def write(self, folder: Path) -> None:
        """Atomically: a reader sees the old pointer or the new one."""
        values = {
            "format_version": FORMAT_VERSION,
            "live": self.live,
            "previous": list(self.previous),
            "history": [asdict(switch) for switch in self.history],
        }
        write_json(folder / POINTER_FILE, values)


def read_pointer(folder: Path) -> Pointer | None:
    """None where there is no pointer yet.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    path = folder / POINTER_FILE
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise CheckpointError(path, f"cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(path, "is not JSON: truncated or altered") from exc
    try:
        if values["format_version"] != FORMAT_VERSION:
            raise CheckpointError(path, f"has format version {values['format_version']!r}, not {FORMAT_VERSION}")
        return Pointer(
            live=str(values["live"]),
            previous=tuple(map(str, values["previous"])),
            history=tuple(Switch(**switch) for switch in values["history"]),
        )
    except (KeyError, TypeError) as exc:
        raise CheckpointError(path, f"is no pointer to a live version: {exc}") from exc
