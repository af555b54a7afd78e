"""The news of a run: a file of JSON lines that several processes append to and any process follows.

A line is named by the byte offset at which it ends: whoever has read to an offset goes on there, on any replica that
sees the folder, without a counter to keep. A line that a kill or a full disk cut short is closed by the next writer and
passed over by readers.

    0                          58                 91
    {"event": "stage", …}\\n    {"event": "pro     \\n
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from model.errors import InvalidValue

_TAIL_BYTES = 1 << 16


class Event(NamedTuple):
    """One line, and the offset after it."""

    offset: int
    values: dict[str, Any]


def append_event(path: Path, event: str, **values: Any) -> None:
    """Adds a line in one write, so that a reader sees all of it or none; the file is made where it is missing."""
    line = json.dumps({"event": event, "at": round(time.time(), 3), **values}, ensure_ascii=False) + "\n"
    with path.open("a+b", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file closes
        size = stream.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(stream.fileno(), 1, size - 1) != b"\n"
        stream.write(b"\n" * torn + line.encode())


def read_events(path: Path, offset: int = 0) -> Iterator[Event]:
    """The whole lines after `offset`; none where the file is not there yet."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return  # still being written, or torn
            offset += len(line)
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                yield Event(offset, values)


def last_events(path: Path) -> dict[str, dict[str, Any]]:
    """The newest event of each kind among the last 64 KiB, by kind, in the order in which they came."""
    try:
        start = max(0, path.stat().st_size - _TAIL_BYTES)
    except FileNotFoundError:
        return {}
    newest: dict[str, dict[str, Any]] = {}
    for event in read_events(path, start):
        kind = str(event.values.get("event"))
        newest.pop(kind, None)
        newest[kind] = event.values
    return newest


def check_offset(path: Path, given: str | None) -> int:
    """The offset that a `Last-Event-ID` names; 0 without one. Raises InvalidValue."""
    if not given:
        return 0
    allowed = "the id of an event of this job"
    if not given.isdecimal() or len(given) > 15:
        raise InvalidValue("Last-Event-ID", given, allowed)
    offset = int(given)
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, offset - 1))
            before = stream.read(1)
    except FileNotFoundError:
        before = b""
    if offset and before != b"\n":
        raise InvalidValue("Last-Event-ID", given, allowed)
    return offset
