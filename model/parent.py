"""The process that started this one: what becomes of us when it is gone."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: int) -> None:
    """Asks Linux to send this process a signal when the one that started it has ended; elsewhere nothing happens."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal_number))
