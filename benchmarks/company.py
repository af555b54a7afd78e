"""Whether a text gets the same translation alone and in any company, in the default precision.

    python -m benchmarks.company checkpoints/en-fr sentences.txt

Each text gets a search at random (seeded): greedy, beams of many widths, sampling, exact search, constraints,
penalties, explanations. First every text is decoded alone, in a loop of its own. Then all of them go through one
loop, in random order, joining at random moments, some cancelled half-way, so that the company of each changes at
every step. Results are compared bit for bit: tokens, log-probabilities, scores, bounds, attention. A difference is an
error, and the exit status says so.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import describe
from model.decoding.search import SearchOptions, SegmentResult
from model.translator import Translator

Segment = tuple[list[int], SearchOptions]


def main(
    checkpoint: Path,
    sentences: Annotated[Path, typer.Argument(help="A sentence a line; read over and over.")],
    texts: Annotated[int, typer.Option(help="How many texts.")] = 2000,
    rounds: Annotated[int, typer.Option(help="Random companies that each text is seen in.")] = 3,
    max_rows: int = 320,
    precision: str = "auto",
    seed: int = 1,
) -> None:
    """Prints a Markdown table; exit status 1 where anything differs."""
    translator = Translator.load(checkpoint, precision=precision)
    lines = [line for line in sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    rng = random.Random(seed)
    segments: list[Segment] = []
    for line in itertools.islice(itertools.cycle(lines), texts):
        options = _options(rng)
        segments.extend((ids, options) for ids in translator.prepare(line).segments)
    print(f"{describe()}; {translator!r}; {texts:,} texts, {len(segments):,} sentences\n")
    kinds = Counter(options.search for _, options in segments)
    print(", ".join(f"{name} {count:,}" for name, count in sorted(kinds.items())) + "\n")
    started = time.perf_counter()
    alone = [_alone(translator, segment) for segment in segments]
    print("| | other text | other in any bit | seconds | mean rows a step |")
    print("|---|---|---|---|---|")
    print(f"| alone | | | {time.perf_counter() - started:.1f} | |", flush=True)
    num_different = 0
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        found, mean_rows = _in_company(translator, segments, max_rows, rng)
        pairs = list(zip(alone, found, strict=True))
        num_texts = sum(_tokens(one) != _tokens(other) for one, other in pairs)
        num_bits = sum(one != other for one, other in pairs)
        num_different += num_bits
        seconds = time.perf_counter() - started
        print(f"| company {number} | {num_texts} | {num_bits} | {seconds:.1f} | {mean_rows:.0f} |", flush=True)
    raise typer.Exit(1 if num_different else 0)


def _options(rng: random.Random) -> SearchOptions:
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"search": "greedy", "k": 1},
        lambda: {"search": "greedy", "k": 1, "wants_attention": True},
        lambda: {"k": rng.randint(1, 12)},
        lambda: {"k": 5},
        lambda: {"k": 5, "n_best": 5, "length_penalty": rng.choice([0.0, 0.6, 1.0])},
        lambda: {"k": 3, "coverage_penalty": 0.2},
        lambda: {"k": 4, "no_repeat_ngram": 2, "min_length": rng.randint(0, 9), "wants_attention": True},
        lambda: {"search": "sample", "k": 2, "n_best": 2, "seed": rng.randrange(10**6), "temperature": 0.8},
        lambda: {"search": "sample", "k": 1, "seed": rng.randrange(10**6), "top_k": 20, "top_p": 0.9},
        lambda: {"search": "exact", "k": 4, "max_nodes": 100, "length_penalty": 0.0},
    ]
    return SearchOptions(**rng.choice(kinds)())


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


if __name__ == "__main__":
    typer.run(main)
