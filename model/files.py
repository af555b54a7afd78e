"""Writing files so that nobody ever reads half of one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Under a temporary name, synced, renamed: whoever reads the path sees the old file or the new one, whole."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp keeps files to their owner; a checkpoint may be served by another user
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, values: Mapping[str, Any]) -> Path:
    """JSON for people and programs, written atomically."""
    return write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def sync(path: str | Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """The file's sha256 in hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
