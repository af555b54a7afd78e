"""Text files as the command line reads them: a line at a time, from a file or a pipe, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model.errors import DataError

STANDARD_INPUT = "standard input"
_MAX_LINE_BYTES = 1_000_000


@contextmanager
def open_input(path: Path | None) -> Iterator[tuple[BinaryIO, str]]:
    """A file's bytes and its name for messages; standard input without a path, or for `-`."""
    if path is None or str(path) == "-":
        yield sys.stdin.buffer, STANDARD_INPUT
        return
    try:
        stream = path.open("rb")
    except OSError as exc:
        raise DataError(f"cannot be read: {exc.strerror}", path) from exc
    with stream:
        yield stream, str(path)


def lines_of(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines without their ends. Only \\n ends one: U+2028 or \\x85 in a sentence must not shift what follows.

    Raises:
        DataError: naming the line that is not UTF-8, or too long to be one.
    """
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise DataError(f"the line is longer than {_MAX_LINE_BYTES:,} bytes", name, number)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as exc:
            raise DataError(f"not UTF-8: byte 0x{line[exc.start]:02x} at column {exc.start + 1}", name, number) from exc


def read_lines(path: Path) -> list[str]:
    """All lines of a file. Raises DataError."""
    with open_input(path) as (stream, name):
        return list(lines_of(stream, name))
