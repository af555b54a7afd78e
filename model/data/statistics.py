"""What a corpus is made of: how long its sentences are and how often its tokens occur, as numbers and as pictures.

Knows no files of sentences: it takes pairs and a function that cuts a text into tokens, the course's by default.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.corpus import Pair, has_normal_characters, normalize
from model.data.counting import TokenCounter, frequency_at, summarize
from model.data.tokenizer import WordTokenizer
from model.errors import DataError
from model.files import write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMAT_VERSION = 1
_NUM_TOP_TOKENS = 50
_POINTS_PER_DECADE = 50  # more are not seen on a logarithmic axis; a million ranks would make 20 MB of JSON
_SIDE_COLORS = ("#1f6feb", "#d9480f")
_GREY = "#57606a"


def course_words(text: str) -> list[str]:
    """The words of the course: lower case, punctuation apart."""
    return WordTokenizer.preprocess(text).split()


def course_words_all(texts: Sequence[str]) -> list[list[str]]:
    """`course_words` of each text, faster: all at once, and a space too many is lost when the words are cut."""
    joined = "\n".join(texts).lower()
    if joined.count("\n") >= len(texts) or not has_normal_characters(joined):
        joined = "\n".join(normalize(text.lower()) for text in texts)
    for mark in ",.!?":
        joined = joined.replace(mark, " " + mark)
    return [text.split() for text in joined.split("\n")]


def _new_figure() -> tuple[Figure, Axes]:
    """A figure of its own: pyplot would keep all figures in a global list, and ask for a screen."""
    from matplotlib.figure import Figure  # half a second that only pictures should cost

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(which="both", color=_GREY, labelcolor=_GREY)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", edgecolor="none", framealpha=1.0)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # the same numbers give the same file
    return content.getvalue()


@dataclass(frozen=True, kw_only=True)
class SideStatistics:
    """One side of a corpus.

    Attributes:
        name: as it stands in tables and pictures, "en".
        length_counts: how many sentences have how many tokens, by length; lengths that do not occur are left out.
        frequency_counts: how many different tokens occur how often, by falling frequency.
        top_tokens: how often the most frequent tokens occur, by falling frequency; equal ones go by alphabet.
    """

    name: str
    length_counts: dict[int, int]
    frequency_counts: dict[int, int]
    top_tokens: dict[str, int]

    @classmethod
    def from_sentences(cls, name: str, sentences: Iterable[Sequence[str]]) -> SideStatistics:
        counter = SideCounter(name)
        counter.add(list(sentences))
        return counter.statistics()

    @property
    def num_sentences(self) -> int:
        return sum(self.length_counts.values())

    @property
    def num_tokens(self) -> int:
        return sum(length * count for length, count in self.length_counts.items())

    @property
    def num_types(self) -> int:
        """Different tokens."""
        return sum(self.frequency_counts.values())

    @property
    def num_once(self) -> int:
        """Tokens that occur a single time: what a minimum frequency of 2 leaves out."""
        return self.frequency_counts.get(1, 0)

    @property
    def mean_length(self) -> float:
        return self.num_tokens / self.num_sentences

    @property
    def max_length(self) -> int:
        return max(self.length_counts)

    def length_quantile(self, fraction: float) -> int:
        """The least length that `fraction` of the sentences do not exceed: the `num_steps` that cuts off no more."""
        num_left = fraction * self.num_sentences
        for length, count in self.length_counts.items():
            num_left -= count
            if num_left <= 1e-9 * self.num_sentences:  # 0.95 of 100 is no exact 95
                return length
        return self.max_length

    def rank_frequencies(self) -> list[tuple[int, int]]:
        """(rank, frequency) along Zipf's line, thinned out evenly on the logarithm of the rank; first and last stay."""
        if not self.num_types:
            return []
        ranks = {1, self.num_types}
        rank = 1.0
        while rank < self.num_types:
            ranks.add(round(rank))
            rank *= 10 ** (1 / _POINTS_PER_DECADE)
        rising = sorted(ranks)
        return list(zip(rising, frequency_at(self.frequency_counts, rising), strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_tokens": self.num_tokens,
            "num_types": self.num_types,
            "num_once": self.num_once,
            "mean_length": round(self.mean_length, 3),
            "median_length": self.length_quantile(0.5),
            "p95_length": self.length_quantile(0.95),
            "p99_length": self.length_quantile(0.99),
            "max_length": self.max_length,
            "length_counts": [[length, count] for length, count in self.length_counts.items()],
            "rank_frequencies": [[rank, frequency] for rank, frequency in self.rank_frequencies()],
            "top_tokens": [[token, count] for token, count in self.top_tokens.items()],
        }


class SideCounter:
    """Counts one side of a corpus, some sentences at a time.

    With a folder for files of its own, in a bounded amount of memory; what was counted is the same.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._name = name
        self._lengths: Counter[int] = Counter()
        self._tokens = TokenCounter(folder)

    def add(self, sentences: Sequence[Sequence[str]]) -> None:
        self._lengths.update(map(len, sentences))
        self._tokens.add(chain.from_iterable(sentences))

    def statistics(self) -> SideStatistics:
        """What was counted; to be called once, when all is counted."""
        frequencies, top = summarize(self._tokens.totals(), _NUM_TOP_TOKENS)
        return SideStatistics(
            name=self._name,
            length_counts=dict(sorted(self._lengths.items())),
            frequency_counts=frequencies,
            top_tokens=top,
        )


def _table_row(side: SideStatistics) -> list[str]:
    counts = (side.num_tokens, side.num_types, side.num_once)
    lengths = (side.length_quantile(0.5), side.length_quantile(0.95), side.length_quantile(0.99), side.max_length)
    return [side.name, *(f"{n:,}" for n in counts), f"{side.mean_length:.1f}", *(f"{n:,}" for n in lengths)]


@dataclass(frozen=True, kw_only=True)
class CorpusStatistics:
    """Both sides of a corpus; prints as a table."""

    num_pairs: int
    src: SideStatistics
    tgt: SideStatistics

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Pair],
        *,
        tokenize: Callable[[str], Sequence[str]] = course_words,
        names: tuple[str, str] = ("source", "target"),
    ) -> CorpusStatistics:
        """Counts a corpus.

        Raises:
            DataError: there is no pair.
        """
        pairs = list(pairs)
        if not pairs:
            raise DataError("the corpus holds no pair to count")
        return cls(
            num_pairs=len(pairs),
            src=SideStatistics.from_sentences(names[0], (tokenize(pair.src) for pair in pairs)),
            tgt=SideStatistics.from_sentences(names[1], (tokenize(pair.tgt) for pair in pairs)),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": _FORMAT_VERSION,
            "num_pairs": self.num_pairs,
            "src": self.src.to_json(),
            "tgt": self.tgt.to_json(),
        }

    def __str__(self) -> str:
        head = ["", "tokens", "different", "once", "mean", "median", "95 %", "99 %", "longest"]
        rows = [head, *(_table_row(side) for side in (self.src, self.tgt))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        return "\n".join([f"{self.num_pairs:,} pairs; length of a sentence in tokens", *lines])

    def write(self, folder: str | Path) -> list[Path]:
        """Writes `statistics.json`, `lengths.png` and `frequencies.png` and returns their paths. Makes the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return [
            write_json(folder / "statistics.json", self.to_json()),
            write_atomically(folder / "lengths.png", _png(self.draw_lengths())),
            write_atomically(folder / "frequencies.png", _png(self.draw_frequencies())),
        ]

    def draw_lengths(self) -> Figure:
        """How many sentences have how many tokens, both sides beside each other."""
        from matplotlib.ticker import MaxNLocator

        figure, axes = _new_figure()
        # Past the 99.5th percentile lie single sentences: they would press all others against the left edge.
        shown = max(side.length_quantile(0.995) for side in (self.src, self.tgt))
        longest = max(self.src.max_length, self.tgt.max_length)
        for side, color, shift in zip((self.src, self.tgt), _SIDE_COLORS, (-0.21, 0.21), strict=True):
            lengths = [length for length in side.length_counts if length <= shown]
            counts = [side.length_counts[length] for length in lengths]
            label = f"{side.name}: mean {side.mean_length:.1f}, 95 % up to {side.length_quantile(0.95)}"
            axes.bar([length + shift for length in lengths], counts, width=0.42, color=color, label=label)
        axes.set_xlim(-0.5 if 0 in self.src.length_counts | self.tgt.length_counts else 0.4, shown + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        more = f" (up to {shown}; the longest has {longest})" if longest > shown else ""
        axes.set_xlabel(f"tokens in a sentence{more}")
        axes.set_ylabel("sentences")
        _finish(axes, f"Sentence lengths, {self.num_pairs:,} pairs")
        return figure

    def draw_frequencies(self) -> Figure:
        """Frequency against rank, both logarithmic: words of a language lie near a falling line (Zipf's law)."""
        figure, axes = _new_figure()
        for side, color in zip((self.src, self.tgt), _SIDE_COLORS, strict=True):
            ranks, counts = [list(axis) for axis in zip(*side.rank_frequencies(), strict=True)] or ([], [])
            label = f"{side.name}: {side.num_types:,} different, {side.num_once:,} occur once"
            axes.plot(ranks, counts, color=color, lw=2, marker="o", ms=2, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left=0.9)
        axes.set_ylim(bottom=0.8)
        axes.set_xlabel("rank of the token")
        axes.set_ylabel("frequency")
        _finish(axes, f"Token frequencies, {self.src.num_tokens + self.tgt.num_tokens:,} tokens")
        return figure
