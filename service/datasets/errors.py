"""What can be wrong with a dataset or an upload, in a form that also crosses from the upload's process to the server's.

    RecurraError (model.errors)
    └── DatasetError
        ├── UnknownDataset     404
        ├── DatasetExists      409 the name is taken by other content
        ├── UnusableData       422 a file that cannot be used: encoding, format, alignment, damage
        ├── UploadTooLarge     413 more than a setting allows, which is named
        ├── BrokenForm         400 no multipart form, or only a part of one
        ├── UnsupportedForm    415 another content type
        └── DiskFull           507

Statuses are in `service.errors`; nothing here knows HTTP.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from model.errors import DataError, InvalidValue, RecurraError

_ALLOWED = "UTF-8 text: source TAB target a line, two aligned files, or TMX; plain or gzip"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DatasetError(RecurraError):
    """Has `field`, `value` and `allowed` where a field of the form is at fault."""

    def __init__(
        self, message: str, *, field: str | None = None, value: str | int | None = None, allowed: str = ""
    ) -> None:
        super().__init__(message)
        if field is not None:
            self.field, self.value, self.allowed = field, value, allowed


class UnknownDataset(DatasetError):
    pass


class DatasetExists(DatasetError):
    pass


class UnusableData(DatasetError):
    pass


class UploadTooLarge(DatasetError):
    pass


class BrokenForm(DatasetError):
    pass


class UnsupportedForm(DatasetError):
    pass


class DiskFull(DatasetError):
    pass


_KINDS = {kind.__name__: kind for kind in DatasetError.__subclasses__()}


@contextmanager
def told_apart() -> Iterator[None]:
    """Inside it, a fault of a file becomes `UnusableData` and a full disk `DiskFull`."""
    try:
        yield
    except DataError as exc:
        field = None if exc.path is None else str(exc.path)
        value = "a file" if exc.line is None else f"line {exc.line}"
        raise UnusableData(str(exc), field=field, value=value, allowed=_ALLOWED) from exc
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        message = (
            "there is no room left on the disk of the datasets; nothing was stored. Free some, or set RECURRA_DATA"
        )
        raise DiskFull(message) from exc


def error_to_json(error: DatasetError | InvalidValue) -> dict[str, Any]:
    fields = {name: getattr(error, name) for name in ("field", "value", "allowed") if hasattr(error, name)}
    return {"kind": type(error).__name__, "message": str(error), **fields}


def error_from_json(values: dict[str, Any]) -> DatasetError | InvalidValue:
    kind, message = values.pop("kind"), values.pop("message")
    if kind == InvalidValue.__name__:
        return InvalidValue(**values)
    return _KINDS[kind](message, **values)
