"""The lines of a text file, plain or gzip, in bounded memory; every fault is a `DataError` that names the line.

Knows nothing of what stands in a line.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

from model.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
UTF16_MAGICS = (b"\xff\xfe", b"\xfe\xff")
MAX_LINE_BYTES = 1 << 20  # no sentence is a MiB long; a few KB of gzip may unpack to a line that fills the memory

_REFUSED_MAGIC = {
    b"PK\x03\x04": "a ZIP archive; unpack it first, or use gzip",
    b"BZh": "compressed with bzip2; unpack it first, or use gzip",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it first, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first, or use gzip",
    **dict.fromkeys(UTF16_MAGICS, "UTF-16; save it as UTF-8"),
}
_BLOCK_BYTES = 1 << 16


class Bytes(Protocol):
    """A stream that gives what it has: a file, what a gzip file unpacks to, a member of an archive."""

    def read1(self, size: int, /) -> bytes: ...


@contextmanager
def open_text(path: Path) -> Iterator[BufferedReader[Any] | gzip.GzipFile]:
    """The bytes of a plain or gzip file. The content decides, not the name: a pipe or a misnamed file is read too."""
    try:
        raw = path.open("rb")
    except FileNotFoundError as exc:
        raise DataError("there is no such file", path) from exc
    except IsADirectoryError as exc:
        raise DataError("this is a directory; a file was expected", path) from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise DataError(f"cannot be read: {getattr(exc, 'strerror', None) or exc}", path) from exc
    with raw:
        check_kind(raw, path)
        if raw.peek(2).startswith(GZIP_MAGIC):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked
        else:
            yield raw


def check_kind(stream: BufferedReader[Any], path: str | Path) -> None:
    """Raises DataError where a stream begins as no UTF-8 text and no gzip file does. Consumes nothing."""
    opening = stream.peek(6)[:6]
    for magic, what in _REFUSED_MAGIC.items():
        if opening.startswith(magic):
            raise DataError(f"this is {what}", path)


def read_blocks(stream: Bytes, path: str | Path, line: int | None = None) -> Iterator[bytes]:
    """The bytes of a stream, some at a time; what is wrong with a gzip file is a `DataError`."""
    try:
        while block := stream.read1(_BLOCK_BYTES):
            yield block
    except EOFError as exc:
        raise DataError("the gzip file is cut off here; copy or download it again", path, line) from exc
    except (gzip.BadGzipFile, zlib.error) as exc:
        raise DataError(f"the gzip file is damaged here ({exc})", path, line) from exc
    except OSError as exc:
        raise DataError(f"cannot be read on: {exc.strerror or exc}", path, line) from exc


def read_lines(stream: Bytes, path: str | Path) -> Iterator[str]:
    """The lines without their ends. Only \\n ends one: U+2028 or \\x85 in a sentence must not shift the alignment."""
    num_lines = 0
    rest = b""
    try:
        for block in read_blocks(stream, path):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            for line in _decode_lines(whole + newline, path, num_lines):
                num_lines += 1
                yield line
            if len(rest) > MAX_LINE_BYTES:
                raise _too_long(path, num_lines + 1)
    except DataError as exc:
        if exc.line is not None:
            raise
        raise DataError(exc.cause, path, num_lines + 1) from exc  # read_blocks does not count lines
    if rest:
        yield _decode_line(rest, path, num_lines + 1)


def _decode_lines(content: bytes, path: str | Path, num_before: int) -> Iterator[str]:
    """Whole lines; all at once where nothing is wrong, since that takes a tenth of the time."""
    if not content:
        return
    try:
        lines = content.decode().split("\n") if num_before and len(content) <= MAX_LINE_BYTES else None
    except UnicodeDecodeError:
        lines = None
    if lines is None:
        for number, line in enumerate(content.split(b"\n")[:-1], start=num_before + 1):
            yield _decode_line(line, path, number)
        return
    lines.pop()
    yield from (line.rstrip("\r") for line in lines) if b"\r" in content else lines


def _decode_line(line: bytes, path: str | Path, number: int) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise _too_long(path, number)
    line = line.rstrip(b"\r")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as exc:
        cause = f"not UTF-8 (byte 0x{line[exc.start]:02x} at column {exc.start + 1}); if it is Latin-1, convert it"
        raise DataError(f"{cause}: iconv -f LATIN1 -t UTF-8", path, number) from exc
    if number == 1 and "\r" in text:
        raise DataError("the lines end in a carriage return alone; \\n or \\r\\n was expected", path, number)
    return text


def _too_long(path: str | Path, number: int) -> DataError:
    return DataError(f"the line is longer than {MAX_LINE_BYTES} bytes; one sentence a line was expected", path, number)
