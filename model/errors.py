"""Every error that this package raises on purpose.

    RecurraError
    ├── InvalidValue      a parameter has a value that is not allowed
    ├── DataError         a corpus or data file cannot be used
    ├── CheckpointError   a checkpoint is missing, damaged, foreign or of another version
    ├── TrainingError     a training run cannot start or go on
    │   ├── Diverged      loss or gradient is no number any more
    │   ├── OutOfMemory   a batch does not fit
    │   └── DiskFull      a checkpoint cannot be written
    └── Cancelled         long work was asked to stop

Messages are written for the person who gave the input: they name the field or file, the value and what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_MAX_SHOWN_CHARS = 80


class RecurraError(Exception):
    """Base of all errors raised on purpose."""


class InvalidValue(RecurraError, ValueError):
    """A parameter has a value that is not allowed.

    Attributes:
        field: name of the parameter, as its caller wrote it.
        value: what was given.
        allowed: what would have been accepted, as a phrase ("a whole number from 1 to 64").
    """

    def __init__(self, field: str, value: Any, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > _MAX_SHOWN_CHARS:
            shown = shown[: _MAX_SHOWN_CHARS - 1] + "…"
        super().__init__(f"{field} is {shown}; allowed is {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


class DataError(RecurraError):
    """A corpus or data file cannot be used; the message names the file and, where there is one, the line."""

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None) -> None:
        where = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(where + message)
        self.cause = message
        self.path = None if path is None else Path(path)
        self.line = line


class CheckpointError(RecurraError):
    """A checkpoint is refused; `path` is the file at fault and `cause` says why."""

    def __init__(self, path: str | Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = Path(path)
        self.cause = cause


class TrainingError(RecurraError):
    """A training run cannot start or go on; what it had saved is still there."""


class Diverged(TrainingError):
    """Loss or gradient is no number any more: a resume would come to the same point, other options may not."""


class OutOfMemory(TrainingError):
    """The machine or the GPU has no memory left for a batch."""


class DiskFull(TrainingError):
    """There is no room for a checkpoint; the last one that was written is whole."""


class Cancelled(RecurraError):
    """Long work stopped because its `should_stop` said so."""
