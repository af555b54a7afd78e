"""The time that a sentence takes against its length: as many tokens out as in, up to 500.

    python -m benchmarks.lengths checkpoints/en-fr

On token ids, below the text: `Translator` would cut a sentence at 250 tokens. Sources are drawn at random; what they
say does not matter, for every translation is held to the length of its source (min_length = max_length). Linear means
that the time a token stays the same: the attention looks at every source token in every step, which would show as a
rise with length.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.machine import describe, median_seconds
from model.data.vocab import EOS_ID
from model.decoding.search import SearchOptions
from model.translator import Translator

_FIRST_WORD = 4  # ids below are special tokens


def main(
    checkpoint: Path,
    lengths: Annotated[str, typer.Option(help="In tokens, separated by commas.")] = "10,25,50,100,200,300,400,500",
    together: Annotated[str, typer.Option(help="Sentences at a time, separated by commas.")] = "1,32",
    precision: str = "auto",
    runs: int = 5,
    seed: int = 1,
) -> None:
    """Prints a Markdown table for each search."""
    translator = Translator.load(checkpoint, precision=precision)
    sizes = [int(part) for part in lengths.split(",")]
    counts = [int(part) for part in together.split(",")]
    print(f"{describe()}; {translator!r}; median of {runs}")
    for k in (1, 5):
        print(f"\n{'greedy' if k == 1 else f'beam {k}'}\n")
        print("| tokens | " + " | ".join(f"{count} at a time, ms a sentence | ms a token" for count in counts) + " |")
        print("|---" * (1 + 2 * len(counts)) + "|")
        table: dict[int, list[float]] = {}
        for size in sizes:
            table[size] = [_seconds(translator, size, k, count, runs, seed) for count in counts]
            cells = [f"{1000 * s:,.1f} | {1000 * s / size:.3f}" for s in table[size]]
            print(f"| {size} | " + " | ".join(cells) + " |", flush=True)
        fits = [_fit(sizes, [table[size][i] for size in sizes]) for i in range(len(counts))]
        print("| line | " + " | ".join(f"R² = {r2:.4f} | {1000 * slope:.3f}" for slope, r2 in fits) + " |")


def _seconds(translator: Translator, size: int, k: int, count: int, runs: int, seed: int) -> float:
    """A sentence, of so many decoded at a time."""
    rng = random.Random(f"{seed}/{size}")
    words = range(_FIRST_WORD, translator.network.config.src_vocab_size)
    sources = [[*rng.choices(words, k=size - 1), EOS_ID] for _ in range(count)]
    options = SearchOptions(search="greedy" if k == 1 else "beam", k=k, min_length=size, max_length=size)

    def decode() -> None:
        decoder = translator.decoder(max_rows=count * k)
        decoder.add([(source, options) for source in sources])
        while decoder.num_segments:
            for _, result in decoder.step():
                assert len(result.hypotheses[0].token_ids) == size

    return median_seconds(decode, runs) / count


def _fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds a token of the straight line that fits best, and R² of the fit: the share of the variance it explains."""
    slope, _ = statistics.linear_regression(sizes, seconds)
    return slope, statistics.correlation(sizes, seconds) ** 2


if __name__ == "__main__":
    typer.run(main)
