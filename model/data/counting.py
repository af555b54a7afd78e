"""Counting the tokens of a corpus that is larger than memory: exactly, through files.

Knows tokens only; what is shown of the counts is in `model.data.statistics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import nsmallest
from pathlib import Path

MAX_TOKEN_CHARS = 200  # a longer one is counted as what it begins with: a MiB without a space is no word
_NUM_BUCKETS = 64


class TokenCounter:
    """Counts tokens and keeps at most `max_types` of them in memory.

    Without a folder all of them. With one, full counts are emptied into files, by the tokens' hash: all counts of a
    token lie in one file, so that at the end the files are added up one by one. Of a file with too many different
    tokens some are added up and the others left for a second pass, and so on.
    """

    def __init__(self, folder: Path | None = None, *, max_types: int = 50_000) -> None:
        self._folder = folder
        self._max_types = max_types
        self._counts: Counter[str] = Counter()
        self._is_spilled = False

    def add(self, tokens: Iterable[str]) -> None:
        """Some tokens: so few that they may all be new."""
        tokens = list(tokens)
        if max(map(len, tokens), default=0) > MAX_TOKEN_CHARS:
            tokens = [token[:MAX_TOKEN_CHARS] for token in tokens]
        self._counts.update(tokens)
        if self._folder is not None and len(self._counts) > self._max_types:
            self._spill(self._folder)

    def totals(self) -> Iterator[tuple[str, int]]:
        """Each token once with its count, in no order."""
        if self._folder is None or not self._is_spilled:
            yield from self._counts.items()
            return
        self._spill(self._folder)
        for path in sorted(self._folder.glob("tokens-*")):
            yield from self._added_up(path)

    def _spill(self, folder: Path) -> None:
        self._is_spilled = True
        buckets: list[list[str]] = [[] for _ in range(_NUM_BUCKETS)]
        for token, count in self._counts.items():
            buckets[hash(token) % _NUM_BUCKETS].append(f"{token}\t{count}\n")
        self._counts.clear()
        for number, lines in enumerate(buckets):
            with (folder / f"tokens-{number:02}").open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(lines)

    def _added_up(self, path: Path) -> Iterator[tuple[str, int]]:
        overflow = path.with_name(f"{path.name}-more")
        while path.stat().st_size:
            counts: dict[str, int] = {}
            with (
                path.open(encoding="utf-8", newline="\n") as stream,
                overflow.open("w", encoding="utf-8", newline="\n") as left,
            ):
                for line in stream:
                    token, _, count = line.rpartition("\t")
                    if token in counts:
                        counts[token] += int(count)
                    elif len(counts) < self._max_types:
                        counts[token] = int(count)
                    else:
                        left.write(line)
            yield from counts.items()
            overflow.replace(path)
        path.unlink()


def summarize(totals: Iterable[tuple[str, int]], num_top: int) -> tuple[dict[int, int], dict[str, int]]:
    """How many tokens occur how often, by falling frequency; and the most frequent ones, equal ones by alphabet."""
    frequencies: Counter[int] = Counter()
    top: list[tuple[int, str]] = []
    for token, count in totals:
        frequencies[count] += 1
        top.append((-count, token))
        if len(top) >= 100 * num_top:
            top = nsmallest(num_top, top)
    return dict(sorted(frequencies.items(), reverse=True)), {token: -count for count, token in nsmallest(num_top, top)}


def frequency_at(frequency_counts: Mapping[int, int], ranks: Iterable[int]) -> Iterator[int]:
    """The frequency of the token at each of rising ranks (from 1), of counts by falling frequency."""
    falling = iter(frequency_counts.items())
    frequency = last_rank = 0
    for rank in ranks:
        while rank > last_rank:
            frequency, num_types = next(falling)
            last_rank += num_types
        yield frequency
