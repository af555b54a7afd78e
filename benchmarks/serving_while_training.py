"""How much slower translations come while a job trains on the same cores, by priority and threads of the job.

    python -m benchmarks.serving_while_training checkpoints/en-fr pairs.tsv.gz

Each row: a service with one model, `--clients` callers that each send one sentence after another, a job that trains.
The callers are a process of their own on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.machine import describe
from benchmarks.service_process import ServiceProcess, wait_for

_WARM_UP = 50
_COLUMNS = (
    ("clients", 8),
    ("p50 ms", 9),
    ("p95 ms", 9),
    ("p99 ms", 9),
    ("req/s", 8),
    ("p95 ×", 8),
    ("tokens/s", 12),
)
# training_scheduler, training_nice, training_threads
VARIANTS = (
    ("other", 0, 2),
    ("other", 0, 1),
    ("other", 19, 2),
    ("other", 19, 1),
    ("batch", 19, 1),
    ("idle", 19, 2),
    ("idle", 19, 1),
)


class Latency(NamedTuple):
    """In milliseconds; and how much the job got done meanwhile."""

    p50: float
    p95: float
    p99: float
    requests_per_second: float


async def _ask(client: httpx.AsyncClient, texts: itertools.cycle[str], num_requests: int, seconds: list[float]) -> None:
    for _ in range(num_requests):
        started = time.perf_counter()
        answer = await client.post("/translate", json={"text": next(texts), "model": "en-fr"})
        answer.raise_for_status()
        seconds.append(time.perf_counter() - started)


async def _measure(url: str, texts: list[str], num_clients: int, num_requests: int) -> Latency:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        cycle, seconds = itertools.cycle(texts), []
        await _ask(client, cycle, _WARM_UP, seconds)
        seconds.clear()
        started = time.perf_counter()
        share = num_requests // num_clients
        await asyncio.gather(*(_ask(client, cycle, share, seconds) for _ in range(num_clients)))
        elapsed = time.perf_counter() - started
    marks = statistics.quantiles(seconds, n=100)
    return Latency(*(1000 * marks[i - 1] for i in (50, 95, 99)), len(seconds) / elapsed)


def _job(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "dataset": "pairs",
        "preset": "small",
        "max_epochs": 1000,
        "promote": "never",
        "overrides": {"precision": "fp32", "log_every_seconds": 1.0, "eval_sentences": 20},
    }


def _tokens_trained(service: ServiceProcess) -> float:
    lines = service.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("recurra_training_tokens_total{"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pairs", type=Path, help="TSV, plain or gzip: to train on, and to translate")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--variants", type=int, nargs="*", help="numbers of the rows, from 0; default all")
    arguments = parser.parse_args()
    opened = gzip.open if arguments.pairs.suffix == ".gz" else open
    with opened(arguments.pairs, "rt", encoding="utf-8") as stream:
        lines = [next(stream) for _ in range(3000)]
    chosen = VARIANTS if arguments.variants is None else [VARIANTS[i] for i in arguments.variants]
    print(describe())
    print(
        f"{'job':<26}{'clients':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'req/s':>8}{'p95 ×':>8}{'train tok/s':>13}"
    )
    for clients in arguments.clients:
        baseline = _row(None, lines, arguments, clients, None)
        for variant in chosen:
            _row(variant, lines, arguments, clients, baseline)


def _row(
    variant: tuple[str, int, int] | None,
    lines: list[str],
    arguments: argparse.Namespace,
    clients: int,
    baseline: Latency | None,
) -> Latency:
    names = ("training_scheduler", "training_nice", "training_threads")
    settings = dict(zip(names, variant or (), strict=False))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(arguments.checkpoint, folder / "checkpoints" / "en-fr")
        with ServiceProcess(folder, log_level="warning", **settings) as service:
            wait_for(lambda: service.client.get("/health/ready").status_code == 200, "ready service")
            if variant:
                _begin_training(service, lines)
            texts = [line.split("\t")[0] for line in lines[:500]]
            before, started = _tokens_trained(service), time.perf_counter()
            latency = asyncio.run(_measure(str(service.client.base_url), texts, clients, arguments.requests))
            if variant:
                time.sleep(1.2)  # the last report
            trained = (_tokens_trained(service) - before) / (time.perf_counter() - started)
    label = "none" if variant is None else f"{variant[0]}, nice {variant[1]}, {variant[2]} threads"
    times = latency.p95 / (baseline or latency).p95
    print(
        f"{label:<26}{clients:>8}{latency.p50:>9.1f}{latency.p95:>9.1f}{latency.p99:>9.1f}"
        f"{latency.requests_per_second:>8.0f}{times:>8.2f}{trained:>13,.0f}",
        flush=True,
    )
    return latency


def _begin_training(service: ServiceProcess, lines: list[str]) -> None:
    files = {"pairs": ("pairs.tsv", "".join(lines).encode())}
    answer = service.client.post("/datasets", data={"name": "pairs", "source": "en", "target": "fr"}, files=files)
    assert answer.status_code == 201, answer.text
    job_id = service.submit(_job("in-training"))
    wait_for(lambda: len(service.events(job_id, "progress")) > 0, "training under way")


if __name__ == "__main__":
    main()
