"""Requests while their model is switched: a real server, clients that never pause, and promotions and rollbacks.

    python -m benchmarks.promotion

Two versions of a checkpoint, the second with slightly changed weights, are promoted and rolled back by turns over HTTP.
Every request that was under way at any moment of a switch, from its call to its answer, counts as "during".
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import typer

from benchmarks.machine import describe
from model.checkpoint import load_checkpoint, save_checkpoint
from service.inference.versions import VersionStore

RECURRA = [sys.executable, "-c", "from service.cli import main; main()"]
SENTENCES = [
    "I am cold.",
    "Where is the nearest railway station?",
    "She has never forgotten the day when they met for the first time.",
    "Tom is reading a book about the history of music.",
    "Could you please tell me what time the museum closes on Sundays?",
    "We won!",
    "If it rains tomorrow, we will stay at home and play cards.",
    "He asked me whether I had already seen that film.",
]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request: when it began and ended, in seconds, and what came back; status 0 where nothing did."""

    started: float
    ended: float
    status: int
    version: str


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a model.")] = Path("checkpoints/en-fr"),
    connections: int = 8,
    switches: int = 200,
    before: Annotated[float, typer.Option(help="Seconds of load before the first switch.")] = 20.0,
    pause: Annotated[float, typer.Option(help="Seconds between two switches.")] = 0.2,
) -> None:
    """Prints a Markdown table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        name, other = _prepare(checkpoint, root)
        with _server(root) as url:
            answers, windows, memory = _measure(url, name, other, connections, switches, before, pause)
    print(f"{describe()}; {connections} connections, {switches} switches\n")
    print("| requests | number | failed | p50, ms | p95, ms | p99, ms | longest, ms |")
    print("|---|---|---|---|---|---|---|")
    first = windows[0][0]
    groups: dict[str, list[Answer]] = {"before the first switch": [], "during a switch": [], "between switches": []}
    for answer in answers:
        is_during = any(answer.started < end and answer.ended > start for start, end in windows)
        is_before = answer.ended < first
        name = "during a switch" if is_during else "before the first switch" if is_before else "between switches"
        groups[name].append(answer)
    for label, chosen in groups.items():
        print(_line(label, chosen))
    seconds = [end - start for start, end in windows]
    versions = {a.version for a in answers if a.status == 200}
    print(f"\na switch takes {statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s (longest); ", end="")
    print(f"{len(versions)} versions answered; memory {memory[0] / 1e6:.0f} MB before, {memory[1] / 1e6:.0f} MB after")


def _prepare(checkpoint: Path, root: Path) -> tuple[str, str]:
    """A folder of models with the checkpoint and a second version; the model's name and that version."""
    name = checkpoint.resolve().name
    shutil.copytree(checkpoint, root / name, ignore=shutil.ignore_patterns("versions", "live.json", ".*"))
    loaded = load_checkpoint(root / name)
    changed = {tensor.data_ptr(): tensor * 1.0001 for tensor in loaded.weights.values()}
    weights = {key: changed[tensor.data_ptr()] for key, tensor in loaded.weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(dataclasses.replace(loaded, weights=weights), folder)
        version = VersionStore(root).publish(name, Path(folder), lineage={"parent": loaded.version})
    return name, version


@contextmanager
def _server(root: Path) -> Iterator[str]:
    """`recurra serve` on a free port, ready; its URL."""
    environment = {**os.environ, "RECURRA_CHECKPOINTS": str(root), "RECURRA_LOG_LEVEL": "error"}
    process = subprocess.Popen([*RECURRA, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split(" on ")[1].split()[0]
        process.stdout.readline()  # once it is ready
        yield url
    finally:
        process.terminate()
        process.wait()


def _measure(
    url: str, name: str, other: str, connections: int, switches: int, before: float, pause: float
) -> tuple[list[Answer], list[tuple[float, float]], tuple[float, float]]:
    """Every answer, the time of each switch, and the server's memory at the beginning and at the end."""
    answers: list[Answer] = []
    is_over = threading.Event()
    clients = [threading.Thread(target=_ask, args=(url, i, answers, is_over), daemon=True) for i in range(connections)]
    for client in clients:
        client.start()
    time.sleep(before)
    memory_before = _memory(url)
    windows: list[tuple[float, float]] = []
    with httpx.Client(base_url=url, timeout=300) as http:
        for i in range(switches):
            started = time.perf_counter()
            if i % 2:
                http.post(f"/models/{name}/rollback").raise_for_status()
            else:
                http.post(f"/models/{name}/promote", json={"version": other}).raise_for_status()
            windows.append((started, time.perf_counter()))
            time.sleep(pause)
    is_over.set()
    for client in clients:
        client.join()
    return sorted(answers, key=lambda answer: answer.started), windows, (memory_before, _memory(url))


def _ask(url: str, first: int, answers: list[Answer], is_over: threading.Event) -> None:
    """One client: a sentence after another on one connection."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    for i in count(first):
        if is_over.is_set():
            return
        body = json.dumps({"text": SENTENCES[i % len(SENTENCES)]})
        started = time.perf_counter()
        status, version = 0, ""
        try:
            connection.request("POST", "/translate", body, {"content-type": "application/json"})
            response = connection.getresponse()
            content = json.loads(response.read())
            status, version = response.status, content.get("version", "")
        except (OSError, ValueError, http.client.HTTPException):
            connection.close()
        answers.append(Answer(started, time.perf_counter(), status, version))


def _memory(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("process_resident_memory_bytes ")))


def _line(label: str, answers: list[Answer]) -> str:
    seconds = sorted(answer.ended - answer.started for answer in answers)
    num_failed = sum(answer.status != 200 for answer in answers)

    def ms(share: float) -> str:
        return f"{1000 * seconds[min(len(seconds) - 1, int(share * len(seconds)))]:.0f}" if seconds else "–"

    return f"| {label} | {len(answers):,} | {num_failed} | {ms(0.5)} | {ms(0.95)} | {ms(0.99)} | {ms(1.0)} |"


if __name__ == "__main__":
    typer.run(main)
