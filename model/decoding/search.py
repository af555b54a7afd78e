"""What a caller may ask of a search, and what it gets back. Knows no network and no text.

A hypothesis of T tokens (`<eos>` counted) with log-probability p has the score p / T**length_penalty: the mean a token
at 1, the plain log-probability at 0 (Wu et al. 2016, section 7, in its simplest form).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import InvalidValue

MAX_K = 256
MAX_LENGTH = 2048

Finish = Literal["eos", "length"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """One segment's search.

    Attributes:
        search: `greedy` or `beam`.
        k: the beam width; greedy is a beam of width 1.
        n_best: hypotheses wanted, at most k.
        length_penalty: exponent of the length that a log-probability is divided by.
        max_length: tokens a hypothesis may have; None for twice the source and 10 more.
        min_length: tokens before `<eos>` is allowed.
        prefix_ids: tokens that every hypothesis starts with.

    Raises:
        InvalidValue: naming the option.
    """

    search: str = "beam"
    k: int = 5
    n_best: int = 1
    length_penalty: float = 1.0
    max_length: int | None = None
    min_length: int = 0
    prefix_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise InvalidValue("search", self.search, "one of " + ", ".join(SEARCHES))
        _check_whole("k", self.k, 1, MAX_K)
        if self.search == "greedy" and self.k != 1:
            raise InvalidValue("k", self.k, "1 for greedy search; a wider beam is search = beam")
        _check_whole("n_best", self.n_best, 1, MAX_K)
        if self.n_best > self.k:
            raise InvalidValue("n_best", self.n_best, f"a whole number from 1 to k ({self.k})")
        if not 0 <= self.length_penalty <= 10:
            raise InvalidValue("length_penalty", self.length_penalty, "a number from 0 to 10")
        if self.max_length is not None:
            _check_whole("max_length", self.max_length, 1, MAX_LENGTH)
        _check_whole("min_length", self.min_length, 0, MAX_LENGTH)
        if self.max_length is not None and self.min_length > self.max_length:
            raise InvalidValue(
                "min_length", self.min_length, f"a whole number from 0 to max_length ({self.max_length})"
            )

    def length_limit(self, num_src_tokens: int) -> int:
        """Tokens that a hypothesis of a source this long may have."""
        if self.max_length is not None:
            return self.max_length
        return min(MAX_LENGTH, max(2 * num_src_tokens + 10, self.min_length, len(self.prefix_ids) + 1))


SEARCHES = ("greedy", "beam")


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValue(name, value, f"a whole number from {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One translation as token ids.

    Attributes:
        token_ids: without `<eos>`.
        log_prob: of all its tokens, `<eos>` included where it ended itself, in nats.
        score: log_prob / length ** length_penalty.
        finish: `eos`, or `length` where it was cut off.
    """

    token_ids: tuple[int, ...]
    log_prob: float
    score: float
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class SegmentResult:
    """The outcome of one segment's search.

    Attributes:
        hypotheses: best score first; at least one, at most n_best.
        num_steps: network steps it took.
    """

    hypotheses: tuple[Hypothesis, ...]
    num_steps: int
