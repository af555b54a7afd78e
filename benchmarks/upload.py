"""What an upload of a gigabyte costs: memory of the server and of the upload's process, time, translations beside it.

    python -m benchmarks.upload --megabytes 1000

Starts a server of its own with an empty folder of datasets, and sends it pairs that are made on the fly: words of a
vocabulary of 300,000 by Zipf's law, 5 to 20 words a side, 5 % of the lines sent twice. Memory is VmHWM of /proc, the
most that was ever resident; it is set back when the server is ready, after some translations.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import typer

from benchmarks.machine import describe

_BOUNDARY = "boundary-of-the-benchmark"
_FIELDS = {"name": "big", "source": "en", "target": "fr"}
_NUM_WORDS = 300_000
_LINES_PER_PIECE = 2000
_TEXT = "The weather is so nice today that we will all go for a long walk."


def main(megabytes: int = 1000, translate: bool = True) -> None:
    """Prints what was seen."""
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-c", "from service.cli import main; main()", "serve", "--port", "0"],
            env=os.environ | {"RECURRA_DATA": folder, "RECURRA_LOG_LEVEL": "warning"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            url = re.findall(r"http://[\d.:]+", next(line for line in server.stdout if "is ready" in line))[0]
            _measure(url, server.pid, megabytes * 1_000_000, translate)
        finally:
            server.terminate()
            server.wait()


def _measure(url: str, pid: int, num_bytes: int, translate: bool) -> None:
    _latencies(url, 100, threading.Event())
    before = sorted(_latencies(url, 200, threading.Event())) if translate else []
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM starts again
    resident = _memory(pid, "VmRSS")
    done = threading.Event()
    worker_peaks: list[float] = [0.0]
    during: list[float] = []
    watchers = [threading.Thread(target=_watch_children, args=(pid, worker_peaks, done))]
    if translate:
        watchers.append(threading.Thread(target=lambda: during.extend(_latencies(url, None, done))))
    for watcher in watchers:
        watcher.start()
    started = time.perf_counter()
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    response = httpx.post(f"{url}/datasets", content=_form(num_bytes), headers=headers, timeout=None)
    seconds = time.perf_counter() - started
    done.set()
    for watcher in watchers:
        watcher.join()
    answer = response.json()
    print(f"{response.status_code}: {answer['report']['num_read']:,} pairs, dropped {answer['report']['dropped']}")
    print(f"{num_bytes / 1e6:,.0f} MB in {seconds:.0f} s: {num_bytes / 1e6 / seconds:.1f} MB/s")
    peak = _memory(pid, "VmHWM")
    print(f"server: {resident:.1f} MB before, {peak:.1f} MB at most: grew by {peak - resident:.1f} MB")
    print(f"the upload's process: {worker_peaks[0]:.1f} MB at most")
    if translate:
        print(f"POST /translate, ms: before {_quantiles(before)}, during the upload {_quantiles(sorted(during))}")


def _form(num_bytes: int) -> Iterator[bytes]:
    for name, value in _FIELDS.items():
        yield f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    yield f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="pairs"; filename="pairs.tsv"\r\n\r\n'.encode()
    yield from _tsv(num_bytes)
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()


def _tsv(num_bytes: int) -> Iterator[bytes]:
    random = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzéè"))
    words = np.array(["".join(random.choice(letters, random.integers(2, 11))) for _ in range(_NUM_WORDS)], dtype=object)
    probabilities = 1 / np.arange(1, _NUM_WORDS + 1)
    thresholds = np.cumsum(probabilities / probabilities.sum())
    num_sent, old = 0, b""
    while num_sent < num_bytes:
        lengths = random.integers(5, 21, (_LINES_PER_PIECE, 2))
        drawn = iter(words[np.searchsorted(thresholds, random.random(lengths.sum())).clip(max=_NUM_WORDS - 1)].tolist())
        sides = ([" ".join(next(drawn) for _ in range(length)) for length in pair] for pair in lengths)
        piece = "".join(f"{src}.\t{tgt} !\n" for src, tgt in sides).encode()
        if random.random() < 0.05:
            piece = old or piece
        old = piece
        num_sent += len(piece)
        yield piece


def _latencies(url: str, count: int | None, done: threading.Event) -> list[float]:
    found: list[float] = []
    with httpx.Client(timeout=None) as client:
        while not done.is_set() and (count is None or len(found) < count):
            started = time.perf_counter()
            client.post(f"{url}/translate", json={"text": _TEXT}).raise_for_status()
            found.append(time.perf_counter() - started)
            time.sleep(0.02)
    return found


def _watch_children(pid: int, peaks: list[float], done: threading.Event) -> None:
    while not done.wait(0.05):
        for child in Path(f"/proc/{pid}/task").glob("*/children"):
            for number in child.read_text().split():
                peaks[0] = max(peaks[0], _memory(int(number), "VmHWM"))


def _memory(pid: int, field: str) -> float:
    """In MB; 0 where there is no such process any more."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _quantiles(seconds: list[float]) -> str:
    return ", ".join(f"p{q} {1000 * seconds[int(q / 100 * (len(seconds) - 1))]:.1f}" for q in (50, 95, 99))


if __name__ == "__main__":
    typer.run(main)
