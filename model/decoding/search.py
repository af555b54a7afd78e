"""What a caller may ask of a search, and what it gets back. Knows no network, no tensor and no text.

The command line and the settings import it: it must not cost them torch.

A hypothesis of T tokens (`<eos>` counted) with log-probability p has the score

    p / T**length_penalty + coverage_penalty · Σ_s log(min(Σ_t a_ts, 1))

where a_ts is the attention that target token t paid to source token s: the mean a token at length penalty 1, the plain
log-probability at 0 (Wu et al. 2016, equation 14, with T in place of its length term).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from model.errors import InvalidValue

MAX_K = 256
MAX_LENGTH = 2048
DEFAULT_MAX_NODES = 5000
NEVER = float("-inf")
NUM_BANNED = 3  # <unk>, <pad> and <bos> are the first ids, and nobody wants to read them

Finish = Literal["eos", "length", "deadline"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """One segment's search.

    Attributes:
        search: `greedy`, `beam`, `sample` or `exact`.
        k: the beam width; greedy is a beam of width 1. `exact` starts from the best of a beam of width k, and then
            extends up to k nodes a step. `sample` draws n_best translations and has no k of its own.
        n_best: hypotheses wanted, at most k. `exact` gives one.
        length_penalty, coverage_penalty: of the score, above.
        max_length: tokens a hypothesis may have; None for twice the source and 10 more.
        min_length: tokens before `<eos>` is allowed.
        prefix_ids: tokens that every hypothesis starts with: forced tokens at its first positions.
        forced_ids: pairs of a position, from 0, and the token that every hypothesis has there; none ends before.
        no_repeat_ngram: no n-gram of this many tokens may occur twice; 0 for no such rule.
        banned_ids: token sequences that may not occur.
        temperature: `sample` divides log-probabilities by it: below 1 sharper, above 1 flatter.
        top_k, top_p: `sample` draws among the top_k most probable tokens (0 for all), and among the fewest that hold
            top_p of the probability (Holtzman et al. 2020).
        seed: of `sample`; the same seed gives the same translation. None draws one.
        stop_when: a beam ends `proven` once no live hypothesis could score higher than the result, however long it may
            get; `likely`, once none could that grows by a tenth and three tokens; `k_ended`, once k hypotheses have
            ended (first come, first served: Kasai et al. 2022, "A Call for Clarity in Beam Search").
        max_nodes: nodes that `exact` may extend before it gives up proving.
        wants_tree: `beam`, and `exact` of the beam it begins with, also return every node that the beam looked at.
        wants_attention: the attention of the best hypothesis is returned, with each token's log-probability.

    Raises:
        InvalidValue: naming the option; also one that the search would ignore.
    """

    search: str = "beam"
    k: int = 5
    n_best: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    max_length: int | None = None
    min_length: int = 0
    prefix_ids: tuple[int, ...] = ()
    forced_ids: tuple[tuple[int, int], ...] = ()
    no_repeat_ngram: int = 0
    banned_ids: tuple[tuple[int, ...], ...] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_when: str = "likely"
    max_nodes: int = DEFAULT_MAX_NODES
    wants_tree: bool = False
    wants_attention: bool = False

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise InvalidValue("search", self.search, "one of " + ", ".join(SEARCHES))
        _check_whole("k", self.k, 1, MAX_K)
        if self.search == "greedy" and self.k != 1:
            raise InvalidValue("k", self.k, "1 for greedy search; a wider beam is search = beam")
        _check_whole("n_best", self.n_best, 1, MAX_K)
        if self.search == "exact" and self.n_best != 1:
            raise InvalidValue("n_best", self.n_best, "1 for exact search, which proves one translation the best")
        if self.n_best > self.k:
            raise InvalidValue("n_best", self.n_best, f"a whole number from 1 to k ({self.k})")
        _check_number("length_penalty", self.length_penalty, 0, 10)
        _check_number("coverage_penalty", self.coverage_penalty, 0, 10)
        if self.max_length is not None:
            _check_whole("max_length", self.max_length, 1, MAX_LENGTH)
        _check_whole("min_length", self.min_length, 0, MAX_LENGTH)
        if self.max_length is not None and self.min_length > self.max_length:
            raise InvalidValue(
                "min_length", self.min_length, f"a whole number from 0 to max_length ({self.max_length})"
            )
        _check_whole("no_repeat_ngram", self.no_repeat_ngram, 0, MAX_LENGTH)
        for sequence in self.banned_ids:
            if not sequence:
                raise InvalidValue("banned", "", "texts that are not blank")
        if not 0 < self.temperature <= 100:
            raise InvalidValue("temperature", self.temperature, "a number above 0, up to 100")
        _check_whole("top_k", self.top_k, 0, 1_000_000)
        if not 0 < self.top_p <= 1:
            raise InvalidValue("top_p", self.top_p, "a number above 0, up to 1")
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, 2**63 - 1)
        if self.stop_when not in STOPS:
            raise InvalidValue("stop_when", self.stop_when, "one of " + ", ".join(STOPS))
        _check_whole("max_nodes", self.max_nodes, 1, 10_000_000)
        self._check_forced()
        check_fit(self.search, {name: getattr(self, name) for name in OWNERS if self._is_set(name)})
        if self.wants_tree and self.search not in ("beam", "exact"):
            raise InvalidValue("tree", True, f"false with search = {self.search}, which has no beam")

    def _is_set(self, name: str) -> bool:
        is_set: bool = getattr(self, name) != type(self).__dataclass_fields__[name].default
        return is_set

    def _check_forced(self) -> None:
        last = MAX_LENGTH if self.max_length is None else self.max_length
        for position, token_id in self.forced_ids:
            _check_whole("forced_ids", position, 0, last - 1)
            _check_whole("forced_ids", token_id, NUM_BANNED, 10_000_000)
        if len(self.forced) < len(self.forced_ids) + len(self.prefix_ids):
            raise InvalidValue("forced_ids", self.forced_ids, "one token for each position, after the prefix")

    @cached_property
    def forced(self) -> dict[int, int]:
        """Token by position, the prefix included."""
        return {**dict(enumerate(self.prefix_ids)), **dict(self.forced_ids)}

    @cached_property
    def num_due(self) -> int:
        """Tokens that a hypothesis has before it may end."""
        return max(self.min_length, max(self.forced, default=0))

    @property
    def num_rows(self) -> int:
        """Rows that its segment holds in every step."""
        return self.n_best if self.search == "sample" else self.k

    @property
    def is_constrained(self) -> bool:
        """Whether its rows need a look before each step: see constraints.py."""
        return bool(self.forced or self.min_length or self.no_repeat_ngram or self.banned_ids)

    def length_limit(self, num_src_tokens: int) -> int:
        """Tokens that a hypothesis of a source this long may have."""
        if self.max_length is not None:
            return self.max_length
        return min(MAX_LENGTH, max(2 * num_src_tokens + 10, self.min_length, max(self.forced, default=-1) + 2))

    def score(self, log_prob: float, num_tokens: int, coverage: float = 0.0) -> float:
        """Of a hypothesis of so many tokens, `<eos>` counted; `coverage` is the sum of logarithms above."""
        plain: float = log_prob / num_tokens**self.length_penalty
        return plain + self.coverage_penalty * coverage if self.coverage_penalty else plain

    def best_score_below(self, log_prob: float, limit: int) -> float:
        """No hypothesis that continues one of this log-probability can score higher: all its coming tokens certain,
        as long as it may be, and every source token covered."""
        bound: float = log_prob / limit**self.length_penalty
        return bound


SEARCHES = ("greedy", "beam", "sample", "exact")
STOPS = ("proven", "likely", "k_ended")
# Options of some searches, which the others would have to ignore.
OWNERS = {
    "temperature": ("sample",),
    "top_k": ("sample",),
    "top_p": ("sample",),
    "seed": ("sample",),
    "stop_when": ("beam", "exact"),
    "max_nodes": ("exact",),
}


def check_fit(search: str, given: Mapping[str, Any]) -> None:
    """Refuses options, by name, that belong to another search. Raises InvalidValue."""
    for name, value in given.items():
        owners = OWNERS.get(name, (search,))
        if search not in owners:
            owned = " or ".join(owners)
            raise InvalidValue(name, value, f"nothing with search = {search}: it is an option of search = {owned}")


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidValue(name, value, f"a whole number from {low} to {high}")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidValue(name, value, f"a number from {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One translation as token ids.

    Attributes:
        token_ids: without `<eos>`.
        log_prob: of all its tokens, `<eos>` included where it ended itself, in nats.
        score: see the module.
        finish: `eos`; `length` where it was cut off, `deadline` where time was up.
    """

    token_ids: tuple[int, ...]
    log_prob: float
    score: float
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class TreeNode:
    """A node that a beam search looked at.

    Attributes:
        parent: index of its parent in the list of nodes; -1 for children of the root.
        token_id, log_prob: its token, and the log-probability of the hypothesis up to it.
        state: `live` where it was extended, `finished` where it ended, `pruned` where it fell off the beam.
    """

    parent: int
    token_id: int
    log_prob: float
    state: Literal["live", "finished", "pruned"]


@dataclass(frozen=True, kw_only=True)
class SegmentResult:
    """The outcome of one segment's search.

    Attributes:
        hypotheses: best score first; at least one, at most n_best.
        num_steps: network steps it took.
        num_proof_steps, num_nodes: those of `exact` after its beam, and the nodes that they extended.
        is_optimal: True where no hypothesis can score higher, proven; False where `exact` gave up; None where
            nothing is known.
        bound: no hypothesis scores higher than this; None where nothing is known.
        tree: what the beam looked at, where asked.
        token_log_probs: of the best hypothesis' tokens, `<eos>` included, where attention was asked for.
        attention: [T, S] of the best hypothesis, where asked and the network has any.
    """

    hypotheses: tuple[Hypothesis, ...]
    num_steps: int
    num_proof_steps: int = 0
    num_nodes: int = 0
    is_optimal: bool | None = None
    bound: float | None = None
    tree: tuple[TreeNode, ...] = ()
    token_log_probs: tuple[float, ...] = ()
    attention: tuple[tuple[float, ...], ...] = ()
