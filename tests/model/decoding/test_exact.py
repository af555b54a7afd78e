"""Exact search against brute force on a tiny vocabulary; log-probabilities are drawn for each history."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from model.data.vocab import BOS_ID, EOS_ID
from model.decoding.beam import BeamSearch
from model.decoding.constraints import forbidden_next
from model.decoding.exact import ExactSearch
from model.decoding.lane import LiveSegment
from model.decoding.search import NEVER, Finish, Hypothesis, SearchOptions, SegmentResult
from model.network.token_scores import TokenScores
from tests.model.decoding import tables
from tests.model.decoding.tables import VOCAB, WORDS

WIDTH = 5  # of sources, padding counted
NUM_SRC = 3
CPU = torch.device("cpu")
LIMIT = 5
RULES = {
    "none": {},
    "min_length": {"min_length": 3},
    "bigrams": {"no_repeat_ngram": 2},
    "words once": {"no_repeat_ngram": 1, "min_length": 2},
    "banned": {"banned_ids": ((4,), (5, 6, 5), (6, 6))},
    "prefix": {"prefix_ids": (5, 5), "banned_ids": ((5, EOS_ID),)},
    "forced": {"forced_ids": ((1, 6), (3, 4)), "banned_ids": ((6,),)},
}


# Flat enough that a narrow beam misses the best.
next_log_probs = partial(tables.next_log_probs, spread=1.2, end=-0.5)


@cache
def attention_of(history: tuple[int, ...], table: int) -> Tensor:
    """[S] float32: where the step after this history looks."""
    looks = torch.softmax(next_log_probs(history, table + 77)[:WIDTH] * 1.5, dim=0)
    looks[NUM_SRC:] = 0
    return looks


def candidates(table: int, options: SearchOptions, limit: int) -> dict[tuple[int, ...], float]:
    """Score of every hypothesis that ends itself within the limit and breaks no rule."""
    scores: dict[tuple[int, ...], float] = {}
    for words in (w for n in range(limit) for w in itertools.product(WORDS, repeat=n)):
        tokens = (*words, EOS_ID)
        if len(words) < options.min_length or tokens[: len(options.prefix_ids)] != options.prefix_ids:
            continue
        if any(tokens[t : t + 1] != (token,) for t, token in options.forced_ids):
            continue
        if any(
            token in forbidden_next(tokens[:t], options) for t, token in enumerate(tokens) if t not in options.forced
        ):
            continue
        log_prob = sum(float(next_log_probs(tokens[:t], table)[token]) for t, token in enumerate(tokens))
        looked = sum(attention_of(tokens[:t], table) for t in range(len(tokens)))
        assert isinstance(looked, Tensor)
        coverage = float(looked[:NUM_SRC].clamp_max(1).log().sum())
        scores[words] = log_prob / len(tokens) ** options.length_penalty + options.coverage_penalty * coverage
    return scores


class Loop:
    """What the decoding loop does, with a table for a network: a row's state is the history that it was fed."""

    def __init__(self, k: int) -> None:
        self.search = ExactSearch(k, CPU)
        self.states: list[tuple[int, ...]] = []
        self.ids: list[int] = []
        self.pool: dict[int, tuple[int, ...]] = {}
        self.results: dict[int, SegmentResult] = {}

    def add(self, handle: int, table: int, options: SearchOptions, best: SegmentResult, limit: int = LIMIT) -> None:
        segment = LiveSegment(handle, options, limit, NUM_SRC, best=best)
        assert self.search.add([segment]) is None
        self.states += [(table,)] * self.search.k
        self.ids += [BOS_ID] * self.search.k

    def step(self) -> None:
        self.states = [(*s, t) if t != BOS_ID else s for s, t in zip(self.states, self.ids, strict=True)]
        alive = [s or (0,) for s in self.states]  # a dead row's scores may be anything
        log_probs = torch.stack([next_log_probs(s[1:], s[0]) for s in alive])
        step = self.search.absorb(TokenScores(log_probs), torch.stack([attention_of(s[1:], s[0]) for s in alive]))
        assert step.parked is not None and step.rows is not None
        parked_rows, slots = step.parked
        assert len(set(slots)) == len(slots)
        self.pool.update({slot: self.states[row] for row, slot in zip(parked_rows, slots, strict=True)})
        self.states = [self.pool[slot] if slot >= 0 else () for slot in step.rows.tolist()]
        self.ids = step.ids.tolist()
        if step.done:
            self.results.update({self.search.segments[at].handle: result for at, result in step.done})
            gone = dict(step.done)
            self.keep([i for i in range(len(self.search.segments)) if i not in gone])

    def keep(self, order: list[int]) -> None:
        k = self.search.k
        self.search.keep(order)
        self.states = [self.states[i * k + row] for i in order for row in range(k)]
        self.ids = [self.ids[i * k + row] for i in order for row in range(k)]

    def run(self) -> dict[int, SegmentResult]:
        while self.search.segments:
            self.step()
        return self.results


def beam(table: int, options: SearchOptions, limit: int = LIMIT) -> SegmentResult:
    search = BeamSearch(options.k, CPU)
    search.add([LiveSegment(0, options, limit, NUM_SRC)])
    histories: list[tuple[int, ...]] = [()] * options.k
    while True:
        attention = torch.stack([attention_of(h, table) for h in histories])
        step = search.absorb(TokenScores(torch.stack([next_log_probs(h, table) for h in histories])), attention)
        if step.done:
            return step.done[0][1]
        assert step.rows is not None
        histories = [(*histories[r], t) for r, t in zip(step.rows.tolist(), step.ids.tolist(), strict=True)]


def cut_off() -> SegmentResult:
    """A beam's result that did not end itself, of a score that no candidate reaches."""
    hypothesis = Hypothesis(token_ids=(4, 4), log_prob=-0.01, score=-0.005, finish="length")
    return SegmentResult(hypotheses=(hypothesis,), num_steps=2)


def exact(table: int, options: SearchOptions, best: SegmentResult | None = None, limit: int = LIMIT) -> SegmentResult:
    loop = Loop(options.k)
    loop.add(0, table, options, best or beam(table, options, limit), limit)
    return loop.run()[0]


def options_with(**values: object) -> SearchOptions:
    return SearchOptions(search="exact", **{"k": 2, "max_nodes": 10_000, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", sorted(RULES))
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("table", range(4))
def test_exact_equals_enumeration(table: int, length_penalty: float, rules: str) -> None:
    options = options_with(length_penalty=length_penalty, **RULES[rules])
    result = exact(table, options)
    scores = candidates(table, options, LIMIT)
    found = result.hypotheses[0]
    assert found.token_ids == max(scores, key=lambda tokens: scores[tokens])
    assert found.score == pytest.approx(scores[found.token_ids], abs=1e-5)
    assert found.finish == "eos"
    assert result.is_optimal is True
    assert result.bound == found.score


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("limit", [1, 2, 4, 6])
def test_exact_equals_enumeration_from_a_beam_that_never_ended(k: int, limit: int) -> None:
    options = options_with(k=k)
    for table in range(4):
        result = exact(table, options, cut_off(), limit)
        scores = candidates(table, options, limit)
        assert result.hypotheses[0].score == pytest.approx(max(scores.values()), abs=1e-5)
        assert result.hypotheses[0].finish == "eos"
        assert result.is_optimal is True


@pytest.mark.parametrize("table", range(6))
def test_exact_equals_enumeration_with_a_coverage_penalty(table: int) -> None:
    options = options_with(coverage_penalty=0.3, length_penalty=0.8)
    scores = candidates(table, options, LIMIT)
    for best in (beam(table, options), cut_off()):
        found = exact(table, options, best).hypotheses[0]
        assert found.token_ids == max(scores, key=lambda tokens: scores[tokens])
        assert found.score == pytest.approx(scores[found.token_ids], abs=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("margin", [1e-4, -1e-4])
def test_a_path_is_pruned_only_where_it_cannot_beat_the_best(length_penalty: float, margin: float) -> None:
    """`<eos>` at once has log-probability -0.7; word 4, then a certain `<eos>`, scores more or less by the margin."""
    ended = Hypothesis(token_ids=(), log_prob=-0.7, score=-0.7, finish="eos")
    search = ExactSearch(1, CPU)
    options = options_with(k=1, length_penalty=length_penalty)
    search.add([LiveSegment(0, options, 2, NUM_SRC, best=SegmentResult(hypotheses=(ended,), num_steps=1))])
    log_probs = torch.full((1, VOCAB), NEVER)
    log_probs[0, EOS_ID], log_probs[0, 4] = -0.7, (-0.7 + margin) * 2**length_penalty
    step = search.absorb(TokenScores(log_probs), None)
    if margin > 0:
        assert not step.done
        step = search.absorb(
            TokenScores(torch.full((1, VOCAB), NEVER).index_fill_(1, torch.tensor([EOS_ID]), 0.0)), None
        )
    found = step.done[0][1]
    assert found.hypotheses[0].token_ids == ((4,) if margin > 0 else ())
    assert found.hypotheses[0].score == pytest.approx(-0.7 + max(margin, 0), abs=1e-6)
    assert found.is_optimal is True


def test_the_best_child_of_the_deepest_node_goes_first() -> None:
    loop = Loop(2)
    loop.add(0, 3, options_with(), cut_off())
    path: tuple[int, ...] = ()
    for _ in range(LIMIT - 2):
        loop.step()
        first, second = (next_log_probs(path, 3)[list(WORDS)].topk(2).indices + WORDS[0]).tolist()
        assert [state[1:] for state in loop.states] == [path, path]  # both rows extend children of the same node
        assert loop.ids == [first, second]
        path = (*path, first)


def test_the_beam_alone_would_have_missed_some() -> None:
    """The tables are hard enough for these tests to mean something."""
    options = options_with(k=1, length_penalty=1.0)
    missed = [t for t in range(12) if exact(t, options).hypotheses[0] != beam(t, options).hypotheses[0]]
    assert len(missed) >= 3


@pytest.mark.parametrize("max_nodes", [1, 2, 5, 12, 40])
@pytest.mark.parametrize("table", range(6))
def test_a_budget_stops_it_with_a_bound_that_holds(table: int, max_nodes: int) -> None:
    options = options_with(max_nodes=max_nodes, length_penalty=0.6)
    start = beam(table, options)
    result = exact(table, options, start)
    assert result.bound is not None
    assert result.hypotheses[0].score >= start.hypotheses[0].score  # never worse than the beam
    assert max(candidates(table, options, LIMIT).values()) <= result.bound + 1e-5
    assert result.is_optimal == (result.bound == result.hypotheses[0].score)
    assert result.num_steps <= start.num_steps + max_nodes


def test_a_budget_of_one_node_proves_nothing_from_a_poor_start() -> None:
    poor = Hypothesis(token_ids=(4, 5, 6, 4), log_prob=-50.0, score=-10.0, finish="eos")
    start = SegmentResult(hypotheses=(poor,), num_steps=5)
    result = exact(1, options_with(max_nodes=1), start)
    assert result.is_optimal is False
    assert result.bound == pytest.approx(max(float(next_log_probs((), 1)[token]) for token in WORDS) / LIMIT)
    assert result.num_steps == 6
    assert exact(1, options_with(max_nodes=1), cut_off()).is_optimal is False


def test_more_rows_extend_no_fewer_nodes_but_take_fewer_steps() -> None:
    one, many = exact(2, options_with(k=1), cut_off()), exact(2, options_with(k=6), cut_off())
    assert one.hypotheses == many.hypotheses
    assert many.num_steps < one.num_steps / 2


def test_where_no_hypothesis_ends_nothing_is_known() -> None:
    result = exact(0, options_with(min_length=LIMIT), cut_off())
    assert result.hypotheses == cut_off().hypotheses
    assert result.is_optimal is None
    assert result.bound is None


def test_segments_that_come_and_go_together_equal_segments_alone() -> None:
    kinds = [options_with(k=3, length_penalty=0.8, **RULES[rules]) for rules in sorted(RULES)]
    wanted = [(table, kinds[table % len(kinds)]) for table in range(11)]
    loop = Loop(3)
    for handle, (table, options) in enumerate(wanted):
        loop.add(handle, table, options, cut_off() if handle % 3 else beam(table, options))
        loop.step()
    together = loop.run()
    for handle, (table, options) in enumerate(wanted):
        alone = exact(table, options, cut_off() if handle % 3 else None)
        assert together[handle] == alone


def test_all_slots_are_free_when_all_segments_have_left() -> None:
    loop = Loop(2)
    for handle in range(5):
        loop.add(handle, handle, options_with(max_nodes=(10_000, 9)[handle % 2]), cut_off())
        loop.step()
    loop.keep([i for i in range(len(loop.search.segments)) if i != 1])  # somebody cancels
    loop.run()
    slots = loop.search._slots
    assert sorted(slots.free) == list(range(slots.num))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_slots_grow_with_length_and_width_only(k: int) -> None:
    loop = Loop(k)
    loop.add(0, 3, options_with(k=k, length_penalty=0.0), cut_off(), 6)
    loop.run()
    assert loop.search._slots.num <= k * 6


@pytest.mark.parametrize("num_steps", [0, 1, 4])
@pytest.mark.parametrize(("start", "finish"), [("beam", "eos"), ("cut off", "deadline")])
def test_a_cut_gives_the_best_so_far_with_a_bound_that_holds(num_steps: int, start: str, finish: Finish) -> None:
    options = options_with(k=1, min_length=0 if start == "beam" else 4)
    best = beam(4, replace(options, k=3)) if start == "beam" else cut_off()
    loop = Loop(1)
    loop.add(0, 4, options, best)
    for _ in range(num_steps):
        loop.step()
    result = loop.search.cut(0, "deadline")
    assert result.is_optimal is False
    assert result.bound is not None
    assert result.hypotheses[0].finish == finish
    assert max(candidates(4, options, LIMIT).values()) <= result.bound + 1e-5
    assert result.num_steps == best.num_steps + num_steps
    assert loop.search.agreed_ids(0) == []


def test_the_beams_bound_is_kept_where_it_is_tighter() -> None:
    poor = Hypothesis(token_ids=(4,), log_prob=-40.0, score=-20.0, finish="eos")
    bounded = SegmentResult(hypotheses=(poor,), num_steps=2, bound=-0.125)
    assert exact(1, options_with(max_nodes=1), replace(bounded, bound=None)).bound != -0.125
    loop = Loop(1)
    loop.add(0, 1, options_with(k=1), bounded)
    assert loop.search.cut(0, "deadline").bound == -0.125


def test_log_prob_is_the_sum_over_tokens() -> None:
    found = exact(5, options_with(), cut_off()).hypotheses[0]
    tokens = (*found.token_ids, EOS_ID)
    total = math.fsum(float(next_log_probs(tokens[:t], 5)[token]) for t, token in enumerate(tokens))
    assert found.log_prob == pytest.approx(total, abs=1e-6)
