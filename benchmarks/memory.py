"""The server's resident set over 100,000 requests of every kind.

    python -m benchmarks.memory checkpoints/en-fr sentences.txt

Requests are drawn at random (seeded): every search, single texts and lists, explanations, streams, wrong fields,
broken JSON, texts of all lengths up to `--words`, and callers who hang up while they wait. After each step all is
answered, and the server's memory is read. The first 1,000 requests fill what is filled once (torch's buffers,
connections, the decode table); what counts is the growth after them. Texts are short, for there are many.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.client import BrokenAnswer, LeanConnection
from benchmarks.machine import describe
from benchmarks.servers import Server, recurra_server

TARGET = 0.02
_NUM_FIRST = 1000
_EXPECTED = {"wrong field": {422}, "broken JSON": {400}, "unknown model": {404}}

Body = dict[str, Any]


@dataclass
class Tally:
    """Answers by kind of request, and those that were not what the kind asks for."""

    answered: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)


def main(
    checkpoint: Path,
    sentences: Annotated[Path, typer.Argument(help="A sentence a line.")],
    requests: int = 100_000,
    step: Annotated[int, typer.Option(help="Requests between two readings.")] = 10_000,
    connections: int = 32,
    words: Annotated[int, typer.Option(help="Words of the longest text.")] = 5,
    precision: str = "auto",
    seed: int = 1,
) -> None:
    """Prints a Markdown table, a line as soon as it is known."""
    lines = [line.split() for line in sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    stream = _requests(random.Random(seed), lines, words)
    print(f"{describe()}; precision {precision}; {connections} connections\n")
    print("| requests | resident MB | since the first 1,000 | requests/s | unexpected answers |")
    print("|---|---|---|---|---|", flush=True)
    with recurra_server(checkpoint, precision=precision) as server:
        tally = Tally()
        first = num_done = 0
        while num_done < requests:
            num = min(step, requests - num_done) if num_done else min(_NUM_FIRST, requests)
            started = time.perf_counter()
            asyncio.run(_post(server, [next(stream) for _ in range(num)], connections, tally))
            rate = num / (time.perf_counter() - started)
            num_done += num
            now = server.resident_bytes
            first = first or now
            growth = f"{now / first - 1:+.2%}"
            unexpected = tally.unexpected.total()
            print(f"| {num_done:,} | {now / 1e6:.1f} | {growth} | {rate:.0f} | {unexpected} |", flush=True)
    kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.answered.items()))
    print(f"\n{kinds}")
    if tally.unexpected:
        print("unexpected: " + ", ".join(f"{name} {count:,}" for name, count in sorted(tally.unexpected.items())))
    print(f"growth {growth}, allowed is {TARGET:.0%}")


# -- what is asked -----------------------------------------------------------------------------------------------------


def _text(rng: random.Random, lines: Sequence[list[str]], words: int) -> str:
    line = rng.choice(lines)
    return " ".join(line[: rng.randint(1, words)])


def _search(rng: random.Random) -> Body:
    """Of every kind; small, for there are many."""
    kinds: list[Callable[[], Body]] = [
        lambda: {"k": 1},
        lambda: {"k": rng.randint(2, 5)},
        lambda: {"k": 3, "n_best": 3, "length_penalty": rng.random()},
        lambda: {"k": 2, "coverage_penalty": 0.2, "no_repeat_ngram": 2},
        lambda: {"search": "sample", "n_best": rng.randint(1, 3), "seed": rng.randrange(1000), "top_p": 0.9},
        lambda: {"search": "sample", "temperature": 0.7, "top_k": 20},
        lambda: {"search": "exact", "k": 3, "max_nodes": 30, "length_penalty": 0},
        lambda: {"k": 4, "explain": True, "tree": True},
        lambda: {"k": 1, "min_length": 2, "max_length": rng.randint(2, 12)},
    ]
    return rng.choices(kinds, weights=[12, 3, 1, 1, 2, 2, 1, 1, 3])[0]()


def _requests(rng: random.Random, lines: Sequence[list[str]], words: int) -> Iterator[tuple[str, bytes]]:
    """Kind and body, without end."""
    kinds = ["text", "list", "stream", "hang up", "wrong field", "broken JSON", "unknown model", "deadline"]
    weights = [60, 6, 6, 6, 8, 6, 4, 4]
    while True:
        kind = rng.choices(kinds, weights=weights)[0]
        body: Body = {"text": _text(rng, lines, words), **_search(rng)}
        if kind == "list":
            body["text"] = [_text(rng, lines, words) for _ in range(rng.randint(2, 4))]
        elif kind == "stream":
            body["stream"] = True
        elif kind == "wrong field":
            body |= rng.choice([{"k": 0}, {"colour": "red"}, {"length_penalty": "1"}, {"text": 5}])
        elif kind == "unknown model":
            body["model"] = f"xx-{rng.randrange(10_000)}"
        elif kind == "deadline":
            body["deadline_ms"] = rng.randint(1, 20)
        content = json.dumps(body).encode()
        yield kind, content[:-1] if kind == "broken JSON" else content


# -- asking ------------------------------------------------------------------------------------------------------------


async def _post(server: Server, requests: Sequence[tuple[str, bytes]], num_connections: int, tally: Tally) -> None:
    todo = iter(requests)

    async def work() -> None:
        connection = LeanConnection(server.address)
        for kind, body in todo:
            if kind == "hang up":
                await connection.send(body)
                await asyncio.sleep(0.002)  # the server has read it and begun
                await connection.close()
            else:
                await _check(connection, kind, body, tally)
            tally.answered[kind] += 1
        await connection.close()

    await asyncio.gather(*(work() for _ in range(num_connections)))


async def _check(connection: LeanConnection, kind: str, body: bytes, tally: Tally) -> None:
    expected = {200, 504} if kind == "deadline" else _EXPECTED.get(kind, {200})
    try:
        status, _ = await connection.post(body)
    except BrokenAnswer:
        status = 0
    if status not in expected:
        tally.unexpected[f"{kind}: {status}"] += 1


if __name__ == "__main__":
    typer.run(main)
