"""What a single text waits while lists of 1,000 are being decoded, against its latency alone.

    python -m benchmarks.fairness checkpoints/en-fr sentences.txt

One connection posts lists without a pause; another posts single texts, each at a random moment after the last was
answered, so that they fall on every stage of a list. The client (benchmarks/client.py) takes its share of the cores.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.client import LeanConnection
from benchmarks.machine import describe
from benchmarks.servers import Server, recurra_body, recurra_server

TARGET = 3.0  # times the p95 alone
_NUM_WARM_UP = 20


def main(
    checkpoint: Path,
    sentences: Annotated[Path, typer.Argument(help="A sentence a line.")],
    singles: Annotated[int, typer.Option(help="Single texts of a run.")] = 200,
    list_texts: Annotated[int, typer.Option("--list", help="Texts of a list, up to RECURRA_MAX_TEXTS.")] = 1000,
    lists: Annotated[int, typer.Option(help="Lists at a time.")] = 1,
    pause_ms: Annotated[float, typer.Option(help="Mean pause before a single text.")] = 100.0,
    precision: str = "auto",
    runs: int = 3,
    seed: int = 1,
) -> None:
    """Prints a Markdown table."""
    lines = [line for line in sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = list(itertools.islice(itertools.cycle(lines), singles))
    whole = list(itertools.islice(itertools.cycle(lines), list_texts))
    print(f"{describe()}; precision {precision}; {singles} single texts, median of {runs}\n")
    print(
        "| search | alone, p50 ms | p95 ms | lists of " + f"{list_texts:,} beside it, p50 ms | p95 ms | p50 × | p95 × |"
    )
    print("|---" * 7 + "|")
    with recurra_server(checkpoint, precision=precision, max_texts=max(1000, list_texts)) as server:
        for k in (1, 5):
            alone, beside = asyncio.run(_measure(server, texts, whole, k, lists, pause_ms / 1000, runs, seed))
            print(_row("greedy" if k == 1 else f"beam {k}", alone, beside), flush=True)


async def _measure(
    server: Server, texts: Sequence[str], whole: list[str], k: int, lists: int, pause: float, runs: int, seed: int
) -> tuple[list[list[float]], list[list[float]]]:
    """The single texts without and with lists beside them."""
    bodies = [recurra_body(text, k) for text in texts]
    await _singles(server, bodies[:_NUM_WARM_UP], 0.001, seed)
    alone = [await _singles(server, bodies, pause, seed) for _ in range(runs)]
    list_body = recurra_body(whole, k)
    busy = [asyncio.create_task(_post_without_end(server, list_body)) for _ in range(lists)]
    await asyncio.sleep(1.0)  # until the first list fills the table
    beside = [await _singles(server, bodies, pause, seed) for _ in range(runs)]
    for task in busy:
        if task.done():
            raise SystemExit(f"the lists ended: {task.exception()}")
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    return alone, beside


async def _singles(server: Server, bodies: Sequence[bytes], pause: float, seed: int) -> list[float]:
    """Milliseconds of each, shortest first."""
    rng = random.Random(seed)
    connection = LeanConnection(server.address)
    latencies: list[float] = []
    for body in bodies:
        await asyncio.sleep(rng.expovariate(1 / pause))
        started = time.perf_counter()
        status, answer = await connection.post(body)
        latencies.append(1000 * (time.perf_counter() - started))
        if status != 200:
            raise SystemExit(f"a single text was refused: {answer[:200]!r}")
    await connection.close()
    return sorted(latencies)


async def _post_without_end(server: Server, body: bytes) -> None:
    connection = LeanConnection(server.address)
    try:
        while True:
            status, answer = await connection.post(body)
            if status != 200:
                raise SystemExit(f"a list was refused: {answer[:200]!r}")
    finally:
        await connection.close()


def _row(search: str, alone: Sequence[Sequence[float]], beside: Sequence[Sequence[float]]) -> str:
    def median(runs: Sequence[Sequence[float]], share: float) -> float:
        return statistics.median(latencies[int(share * (len(latencies) - 1))] for latencies in runs)

    p50, p95 = median(alone, 0.5), median(alone, 0.95)
    b50, b95 = median(beside, 0.5), median(beside, 0.95)
    verdict = "" if b95 <= TARGET * p95 else f" (above {TARGET:g})"
    return f"| {search} | {p50:.1f} | {p95:.1f} | {b50:.1f} | {b95:.1f} | {b50 / p50:.1f} | {b95 / p95:.1f}{verdict} |"


if __name__ == "__main__":
    typer.run(main)
