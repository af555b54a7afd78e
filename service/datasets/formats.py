"""The bytes of an uploaded file, unpacked within limits, and the pairs in it. The content decides what it is."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.data.corpus import Pair, parse_tsv
from model.data.lines import GZIP_MAGIC, UTF16_MAGICS, check_kind, read_blocks, read_lines
from service.datasets.errors import UploadTooLarge
from service.datasets.tmx import looks_like_tmx, read_tmx

_OPENING_BYTES = 200
_BUFFER_BYTES = 1 << 17
_MAX_RATIO = 200  # text packs to a third or a tenth; what unpacks to more than this is a bomb
_FREE_BYTES = 10_000_000  # up to which the ratio does not matter


@dataclass(frozen=True, kw_only=True)
class UnpackLimit:
    """How many bytes the files of an upload may unpack to, together."""

    max_bytes: int
    setting: str = "RECURRA_MAX_DATASET_UNPACKED_BYTES"


class UploadedFile:
    """A file of a form, plain or gzip, as a stream of what is in it.

    Raises, while it is read: DataError for what is no text, UploadTooLarge for what unpacks to too much.
    """

    def __init__(self, name: str, stream: io.BufferedReader[Any], limit: UnpackLimit) -> None:
        self.name = name
        packed = _Counted(stream)
        self._raw = io.BufferedReader(packed, _BUFFER_BYTES)
        self.stream: io.BufferedReader[Any] = self._raw
        if self._raw.peek(2).startswith(GZIP_MAGIC):
            unpacked = gzip.GzipFile(fileobj=self._raw)
            self.stream = io.BufferedReader(_Bounded(unpacked, packed, name, limit), _BUFFER_BYTES)
        opening = self.stream.peek(_OPENING_BYTES)[:_OPENING_BYTES]
        self.is_empty = not opening
        self.is_tmx = looks_like_tmx(opening)
        if not (self.is_tmx and opening.startswith(UTF16_MAGICS)):
            check_kind(self.stream, name)

    def lines(self) -> Iterator[str]:
        return read_lines(self.stream, self.name)

    def pairs(self, *, src_lang: str, tgt_lang: str) -> Iterator[Pair]:
        """TMX or TSV; the languages matter to TMX alone."""
        if self.is_tmx:
            return read_tmx(read_blocks(self.stream, self.name), self.name, src_lang=src_lang, tgt_lang=tgt_lang)
        return parse_tsv(self.lines(), self.name)


class _Counted(io.RawIOBase):
    """A stream that knows how much of it was read."""

    def __init__(self, stream: io.BufferedReader[Any]) -> None:
        self._stream = stream
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # always a writable buffer
        size = self._stream.readinto1(buffer)
        self.num_bytes += size
        return size


class _Bounded(io.RawIOBase):
    """What a gzip file unpacks to, until it is too much."""

    def __init__(self, unpacked: gzip.GzipFile, packed: _Counted, name: str, limit: UnpackLimit) -> None:
        self._unpacked = unpacked
        self._packed = packed
        self._name = name
        self._limit = limit
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # always a writable buffer
        data = self._unpacked.read1(len(buffer))
        self._num_bytes += len(data)
        if self._num_bytes > self._limit.max_bytes:
            allowed = f"at most {self._limit.max_bytes:,} bytes ({self._limit.setting})"
            raise UploadTooLarge(
                f"{self._name} unpacks to more than {self._limit.max_bytes:,} bytes ({self._limit.setting})",
                field=self._name,
                value="more",
                allowed=allowed,
            )
        if self._num_bytes > _FREE_BYTES + _MAX_RATIO * self._packed.num_bytes:
            raise UploadTooLarge(
                f"{self._name} unpacks to more than {_MAX_RATIO} times its size: this looks like a zip bomb",
                field=self._name,
                value="more",
                allowed=f"text, which unpacks to at most {_MAX_RATIO} times its size",
            )
        buffer[: len(data)] = data
        return len(data)
