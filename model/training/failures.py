"""What ends a run from outside, as an error that says what a person can do about it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.config import TrainingConfig
from model.errors import DiskFull, OutOfMemory

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")  # torch's, on a GPU and on a CPU


def _is_out_of_memory(exc: Exception) -> bool:
    if isinstance(exc, OSError):
        return exc.errno == errno.ENOMEM
    return isinstance(exc, MemoryError) or any(words in str(exc).lower() for words in _NO_MEMORY_WORDS)


@contextmanager
def explained(folder: Path, config: TrainingConfig) -> Iterator[None]:
    """Turns a full disk and a lack of memory into DiskFull and OutOfMemory; all else passes through.

    The state on disk is in both cases that of the last checkpoint: a file is renamed into place when it is whole.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as exc:
        if isinstance(exc, OSError) and exc.errno in _NO_ROOM:
            free = shutil.disk_usage(folder).free
            raise DiskFull(
                f"{folder}: the disk is full ({free / 1e6:,.0f} MB free): delete what is not needed there, and resume; "
                "the last checkpoint is whole"
            ) from exc
        if _is_out_of_memory(exc):
            raise OutOfMemory(
                f"there is not enough memory for a batch of batch_tokens = {config.batch_tokens}: free some and "
                "resume, or begin a new run with a smaller batch_tokens, max_src_tokens, max_tgt_tokens or network"
            ) from exc
        raise
