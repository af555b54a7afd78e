"""Which lines of a file occurred before, for files that are larger than memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

_NUM_BUCKETS = 128
_DIGEST_BYTES = 16  # of two different lines in 2^64 one pair would be taken for equal
_INDEX_BYTES = 8
_RECORD_BYTES = _DIGEST_BYTES + _INDEX_BYTES
_MAX_PENDING = 20_000
_MAX_SEEN = 100_000


class DuplicateFinder:
    """Notes a hash and a number for each line; at the end says which numbers are repetitions.

    The notes lie in files by their hash, so that equal lines meet in one file, which is small. Where one still has too
    many different hashes, some are dealt with and the others left for a second pass, and so on. A bit a line is held.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buckets = [bytearray() for _ in range(_NUM_BUCKETS)]
        self._num_pending = 0
        self.num_lines = 0

    def add(self, line: bytes) -> None:
        """The next line, numbered from 0."""
        digest = hashlib.blake2b(line, digest_size=_DIGEST_BYTES).digest()
        self._buckets[digest[0] % _NUM_BUCKETS] += digest + self.num_lines.to_bytes(_INDEX_BYTES, "big")
        self.num_lines += 1
        self._num_pending += 1
        if self._num_pending >= _MAX_PENDING:
            self._flush()

    def repetitions(self) -> bytearray:
        """A bit for each line, set where the line occurred before; to be called once."""
        self._flush()
        bits = bytearray(self.num_lines // 8 + 1)
        for path in sorted(self._folder.glob("hashes-*")):
            while path.stat().st_size:
                _mark(path, bits)
            path.unlink()
        return bits

    def _flush(self) -> None:
        for number, records in enumerate(self._buckets):
            if records:
                with (self._folder / f"hashes-{number:03}").open("ab") as stream:
                    stream.write(records)
                records.clear()
        self._num_pending = 0


def is_set(bits: bytearray, index: int) -> bool:
    return bool(bits[index >> 3] >> (index & 7) & 1)


def _mark(path: Path, bits: bytearray) -> None:
    """One pass over a file of notes; those that it had no room for are what the file then holds."""
    overflow = path.with_name(f"{path.name}-more")
    seen: set[bytes] = set()
    with path.open("rb") as records, overflow.open("wb") as left:
        while record := records.read(_RECORD_BYTES):
            digest = record[:_DIGEST_BYTES]
            if digest in seen:
                index = int.from_bytes(record[_DIGEST_BYTES:], "big")
                bits[index >> 3] |= 1 << (index & 7)
            elif len(seen) < _MAX_SEEN:
                seen.add(digest)
            else:
                left.write(record)
    overflow.replace(path)
