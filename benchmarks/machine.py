"""What the machine is, for the head of a table; and the median of several runs."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def describe() -> str:
    """Processor, cores, threads and torch, in a line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f"{len(names)} × {names[0]}" if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def median_seconds(work: Callable[[], object], num_runs: int) -> float:
    """Of one call, after a call that does not count."""
    work()
    seconds: list[float] = []
    for _ in range(num_runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
