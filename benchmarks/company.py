"""Whether a text gets the same translation alone and in any company, in the default precision.

    python -m benchmarks.company checkpoints/en-fr sentences.txt

Each text gets a search at random (seeded): greedy, beams of many widths, sampling, exact search, constraints,
penalties, explanations. First every text is translated alone. Then all of them again, in random order, joining at
random moments, some given up half-way, so that the company of each changes at every step. Results are compared bit for
bit: tokens, log-probabilities, scores, bounds, attention. A difference is an error, and the exit status says so.

By default that goes through the decoding loop, where the mixes are the wildest. With `--http` it goes through a server:
32 callers with single texts and random pauses.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.client import LeanConnection
from benchmarks.machine import describe
from benchmarks.servers import Server, recurra_server
from model.decoding.search import SearchOptions, SegmentResult
from model.translator import Translator, search_options

Fields = dict[str, Any]
Segment = tuple[list[int], SearchOptions]
_NUM_CALLERS = 32
_MEAN_PAUSE_SECONDS = 0.02


def main(
    checkpoint: Path,
    sentences: Annotated[Path, typer.Argument(help="A sentence a line; read over and over.")],
    texts: Annotated[int, typer.Option(help="How many texts.")] = 2000,
    http: Annotated[bool, typer.Option("--http", help="Through a server.")] = False,
    rounds: Annotated[int, typer.Option(help="Random companies that each text is seen in.")] = 3,
    max_rows: int = 320,
    precision: str = "auto",
    seed: int = 1,
) -> None:
    """Prints a Markdown table; exit status 1 where anything differs."""
    lines = [line for line in sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    rng = random.Random(seed)
    wanted = [(text, _fields(rng)) for text in itertools.islice(itertools.cycle(lines), texts)]
    kinds = Counter(fields.get("search", "beam") for _, fields in wanted)
    print(f"{describe()}; precision {precision}; {texts:,} texts")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(kinds.items())) + "\n")
    print("| | other text | other in any bit | seconds |\n|---|---|---|---|")
    if http:
        with recurra_server(checkpoint, precision=precision) as server:
            num_different = asyncio.run(_over_http(server, wanted, rounds, rng))
    else:
        num_different = _in_the_loop(Translator.load(checkpoint, precision=precision), wanted, rounds, max_rows, rng)
    raise typer.Exit(1 if num_different else 0)


def _fields(rng: random.Random) -> Fields:
    """A search, in the words of `POST /translate`."""
    kinds: list[Callable[[], Fields]] = [
        lambda: {"search": "greedy"},
        lambda: {"search": "greedy", "explain": True},
        lambda: {"k": rng.randint(2, 12)},
        lambda: {"k": 5},
        lambda: {"k": 5, "n_best": 5, "length_penalty": rng.choice([0.0, 0.6, 1.0])},
        lambda: {"k": 3, "coverage_penalty": 0.2},
        lambda: {"k": 4, "no_repeat_ngram": 2, "min_length": rng.randint(0, 9), "explain": True},
        lambda: {"search": "sample", "n_best": 2, "seed": rng.randrange(10**6), "temperature": 0.8},
        lambda: {"search": "sample", "seed": rng.randrange(10**6), "top_k": 20, "top_p": 0.9},
        lambda: {"search": "exact", "k": 4, "max_nodes": 100, "length_penalty": 0.0},
    ]
    return rng.choice(kinds)()


def _row(name: str, num_texts: int, num_bits: int, started: float) -> None:
    print(f"| {name} | {num_texts} | {num_bits} | {time.perf_counter() - started:.1f} |", flush=True)


# -- through the decoding loop -----------------------------------------------------------------------------------------


def _in_the_loop(
    translator: Translator, wanted: Sequence[tuple[str, Fields]], rounds: int, max_rows: int, rng: random.Random
) -> int:
    """How many sentences differ in any bit."""
    segments: list[Segment] = []
    for text, fields in wanted:
        others = {name: value for name, value in fields.items() if name != "explain"}
        options = search_options(**others, wants_attention="explain" in fields)
        segments.extend((ids, options) for ids in translator.prepare(text).segments)
    started = time.perf_counter()
    alone = [_alone(translator, segment) for segment in segments]
    _row(f"{len(segments):,} sentences alone, {translator.precision}", 0, 0, started)
    num_different = 0
    for _ in range(rounds):
        started = time.perf_counter()
        found, mean_rows = _in_company(translator, segments, max_rows, rng)
        pairs = list(zip(alone, found, strict=True))
        num_texts = sum(_tokens(one) != _tokens(other) for one, other in pairs)
        num_bits = sum(one != other for one, other in pairs)
        num_different += num_bits
        _row(f"in company, {mean_rows:.0f} rows a step", num_texts, num_bits, started)
    return num_different


def _alone(translator: Translator, segment: Segment) -> SegmentResult:
    decoder = translator.decoder()
    decoder.add([segment])
    while True:
        for _, result in decoder.step():
            return result


def _in_company(
    translator: Translator, segments: Sequence[Segment], max_rows: int, rng: random.Random
) -> tuple[list[SegmentResult], float]:
    """All through one loop; a few at a time, now and then none and now and then as many as there is room for."""
    decoder = translator.decoder(max_rows=max_rows)
    waiting = list(range(len(segments)))
    rng.shuffle(waiting)
    live: dict[int, int] = {}
    results: dict[int, SegmentResult] = {}
    num_steps = num_rows = 0
    while waiting or live:
        taken: list[int] = []
        room = max_rows - decoder.num_rows
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 5, 20, len(segments)])):
            if not waiting or segments[waiting[-1]][1].num_rows > room:
                break
            taken.append(waiting.pop())
            room -= segments[taken[-1]][1].num_rows
        live.update(zip(decoder.add([segments[i] for i in taken]), taken, strict=True))
        if live and rng.random() < 0.02:  # somebody hangs up, and asks again later
            handle = rng.choice(list(live))
            decoder.cancel(handle)
            waiting.insert(rng.randrange(len(waiting) + 1), live.pop(handle))
        num_steps += 1
        num_rows += decoder.num_rows
        for handle, result in decoder.step():
            results[live.pop(handle)] = result
    return [results[i] for i in range(len(segments))], num_rows / num_steps


def _tokens(result: SegmentResult) -> list[tuple[int, ...]]:
    return [hypothesis.token_ids for hypothesis in result.hypotheses]


# -- through a server --------------------------------------------------------------------------------------------------


async def _over_http(server: Server, wanted: Sequence[tuple[str, Fields]], rounds: int, rng: random.Random) -> int:
    """How many answers differ."""
    bodies = [json.dumps({"text": text, **fields}).encode() for text, fields in wanted]
    started = time.perf_counter()
    alone = await _ask(server, bodies, range(len(bodies)), num_callers=1, pauses=None)
    _row("one caller", 0, 0, started)
    num_different = 0
    for _ in range(rounds):
        started = time.perf_counter()
        order = rng.sample(range(len(bodies)), len(bodies))
        found = await _ask(server, bodies, order, num_callers=_NUM_CALLERS, pauses=rng)
        pairs = [(alone[i], found[i]) for i in range(len(bodies))]
        num_texts = sum(one["text"] != other["text"] for one, other in pairs)
        num_bits = sum(one != other for one, other in pairs)
        num_different += num_bits
        _row(f"{_NUM_CALLERS} callers", num_texts, num_bits, started)
    return num_different


async def _ask(
    server: Server, bodies: Sequence[bytes], order: Sequence[int], *, num_callers: int, pauses: random.Random | None
) -> dict[int, Fields]:
    """Each text's translation with all that the server says of it."""
    todo = iter(order)
    found: dict[int, Fields] = {}

    async def call() -> None:
        connection = LeanConnection(server.address)
        for i in todo:
            if pauses is not None:
                await asyncio.sleep(pauses.expovariate(1 / _MEAN_PAUSE_SECONDS))
            status, answer = await connection.post(bodies[i])
            if status != 200:
                raise SystemExit(f"a text was refused: {answer[:300]!r}")
            found[i] = json.loads(answer)["translations"][0]
        await connection.close()

    await asyncio.gather(*(call() for _ in range(num_callers)))
    return found


if __name__ == "__main__":
    typer.run(main)
