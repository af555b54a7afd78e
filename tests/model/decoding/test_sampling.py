"""Sampling on a tiny vocabulary; log-probabilities are drawn for each history."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from model.data.vocab import EOS_ID
from model.decoding.greedy import GreedySearch
from model.decoding.lane import LaneSearch, LiveSegment
from model.decoding.sampling import SamplingSearch, draw, weights_of, without_tail
from model.decoding.search import NEVER, SearchOptions, SegmentResult
from model.network.token_scores import TokenScores
from tests.model.decoding.tables import VOCAB, WORDS, next_log_probs

CPU = torch.device("cpu")
ANY_OPTIONS = SearchOptions(search="sample", k=1, seed=11, max_length=9)
VARIANTS = {
    "plain": {},
    "sharp": {"temperature": 0.5},
    "three": {"k": 3, "n_best": 3},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.7},
    "constrained": {"min_length": 3, "no_repeat_ngram": 2, "banned_ids": ((5, 6),)},
}


class Loop:
    """What the decoding loop does, with a table for a network: the table of a segment is its handle."""

    def __init__(self, search: LaneSearch) -> None:
        self.search = search
        self.histories: list[tuple[int, ...]] = []
        self.results: dict[int, SegmentResult] = {}

    def add(self, handle: int, options: SearchOptions) -> None:
        self.search.add([LiveSegment(handle, options, options.length_limit(4), 4)])
        self.histories += [()] * self.search.k

    def step(self) -> None:
        tables = [segment.handle for segment in self.search.segments for _ in range(self.search.k)]
        log_probs = [next_log_probs(h, table) for h, table in zip(self.histories, tables, strict=True)]
        step = self.search.absorb(TokenScores(torch.stack(log_probs)), None)
        self.histories = [(*h, token) for h, token in zip(self.histories, step.ids.tolist(), strict=True)]
        if step.done:
            self.results.update({self.search.segments[at].handle: result for at, result in step.done})
            self.keep([i for i in range(len(self.search.segments)) if i not in dict(step.done)])

    def keep(self, order: list[int]) -> None:
        k = self.search.k
        self.search.keep(order)
        self.histories = [self.histories[i * k + row] for i in order for row in range(k)]

    def run(self) -> dict[int, SegmentResult]:
        while self.search.segments:
            self.step()
        return self.results


def sample(table: int, options: SearchOptions) -> SegmentResult:
    loop = Loop(SamplingSearch(options.num_rows, CPU))
    loop.add(table, options)
    return loop.run()[table]


def greedy(table: int, max_length: int) -> SegmentResult:
    loop = Loop(GreedySearch(1, CPU))
    loop.add(table, SearchOptions(search="greedy", k=1, max_length=max_length))
    return loop.run()[table]


def allowed(table: int, history: tuple[int, ...], temperature: float = 1.0) -> dict[int, float]:
    """Probability of each token that may be drawn."""
    tempered = {t: math.exp(float(next_log_probs(history, table)[t]) / temperature) for t in (EOS_ID, *WORDS)}
    return {t: p / sum(tempered.values()) for t, p in tempered.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_translations_are_as_frequent_as_they_are_probable(temperature: float) -> None:
    num = 8000
    options = replace(ANY_OPTIONS, max_length=2, temperature=temperature)
    loop = Loop(SamplingSearch(1, CPU))
    loop.search.add([LiveSegment(3, replace(options, seed=seed), 2, 4) for seed in range(num)])
    loop.histories = [()] * num
    seen: Counter[tuple[int, ...]] = Counter()
    while loop.search.segments:
        step = loop.search.absorb(TokenScores(torch.stack([next_log_probs(h, 3) for h in loop.histories])), None)
        loop.histories = [(*h, t) for h, t in zip(loop.histories, step.ids.tolist(), strict=True)]
        seen.update(result.hypotheses[0].token_ids for _, result in step.done)
        gone = dict(step.done)
        loop.keep([i for i in range(len(loop.histories)) if i not in gone])
    first = allowed(3, (), temperature)
    expected = {(): first[EOS_ID]}
    for word in WORDS:
        for token, p in allowed(3, (word,), temperature).items():
            expected[(word,) if token == EOS_ID else (word, token)] = first[word] * p
    assert set(seen) <= set(expected)
    for tokens, p in expected.items():
        assert seen[tokens] / num == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / num)), tokens


def test_rows_of_a_segment_are_draws_of_their_own() -> None:
    result = sample(3, replace(ANY_OPTIONS, k=250, n_best=250, max_length=1))
    p = allowed(3, ())
    seen = Counter(hypothesis.token_ids for hypothesis in result.hypotheses)
    assert len(result.hypotheses) == 250
    for token in WORDS:
        assert seen[(token,)] / 250 == pytest.approx(p[token], abs=0.12)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_seed_gives_the_same_translation_twice(name: str) -> None:
    options = replace(ANY_OPTIONS, **VARIANTS[name])
    assert sample(2, options) == sample(2, options)


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"three"}))
@pytest.mark.parametrize("num_before", [0, 1, 5])
def test_company_that_comes_and_goes_changes_nothing(name: str, num_before: int) -> None:
    options = replace(ANY_OPTIONS, **VARIANTS[name])
    others = [replace(ANY_OPTIONS, **VARIANTS[n], seed=5) for n in sorted(VARIANTS) if n != "three"]
    loop = Loop(SamplingSearch(1, CPU))
    for i in range(num_before):
        loop.add(100 + i, others[i % len(others)])
    if num_before:
        loop.step()
    loop.add(2, options)
    for i in range(3):
        loop.add(200 + i, others[-1 - i])
    loop.step()
    if 2 not in loop.results:  # the last segment takes the first place, as in the decoder
        order = list(range(len(loop.search.segments)))
        loop.keep([order[-1], *order[1:-1], order[0]] if len(order) > 1 else order)
    assert loop.run()[2] == sample(2, options)


def test_the_first_of_several_draws_is_the_only_draw_of_that_seed() -> None:
    one = sample(2, ANY_OPTIONS).hypotheses[0]
    assert one in sample(2, replace(ANY_OPTIONS, k=4, n_best=4)).hypotheses


def test_seeds_differ() -> None:
    found = {sample(2, replace(ANY_OPTIONS, seed=seed)).hypotheses[0].token_ids for seed in range(20)}
    assert len(found) > 10


def test_no_seed_draws_one() -> None:
    found = {sample(2, replace(ANY_OPTIONS, seed=None, min_length=8)).hypotheses[0].token_ids for _ in range(20)}
    assert len(found) > 10


@pytest.mark.parametrize("values", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}])
@pytest.mark.parametrize("table", range(6))
def test_drawing_only_the_most_probable_equals_greedy(values: dict[str, float], table: int) -> None:
    found = sample(table, replace(ANY_OPTIONS, **values)).hypotheses[0]
    best = greedy(table, 9).hypotheses[0]
    assert (found.token_ids, found.finish) == (best.token_ids, best.finish)
    assert found.log_prob == best.log_prob  # the network's own, whatever the temperature
    assert found.score == best.score


@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (3, 1.0), (0, 0.5), (0, 0.9), (3, 0.6)])
def test_only_the_most_probable_are_drawn_in_their_proportion(top_k: int, top_p: float) -> None:
    options = replace(ANY_OPTIONS, k=250, n_best=250, max_length=1, top_k=top_k, top_p=top_p)
    for table in range(4):
        seen = Counter(h.token_ids[0] if h.token_ids else EOS_ID for h in sample(table, options).hypotheses)
        ranked = sorted(allowed(table, ()).items(), key=lambda entry: -entry[1])[: top_k or None]
        total = sum(p for _, p in ranked)
        kept = [ranked[i] for i in range(len(ranked)) if sum(p for _, p in ranked[:i]) < top_p * total]
        assert set(seen) == {token for token, _ in kept}
        for token, p in kept:
            assert seen[token] / 250 == pytest.approx(p / sum(p for _, p in kept), abs=0.12)


def test_rows_wait_for_the_segments_last_and_come_best_first() -> None:
    options = replace(ANY_OPTIONS, k=6, n_best=6, max_length=5, length_penalty=0.6)
    result = sample(4, options)
    lens = [len(h.token_ids) + (h.finish == "eos") for h in result.hypotheses]
    assert result.num_steps == max(lens) > min(lens)
    scores = [h.score for h in result.hypotheses]
    assert scores == sorted(scores, reverse=True)
    for hypothesis, length in zip(result.hypotheses, lens, strict=True):
        tokens = (*hypothesis.token_ids, EOS_ID)[:length]
        log_prob = sum(float(next_log_probs(tokens[:t], 4)[token]) for t, token in enumerate(tokens))
        assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-5)
        assert hypothesis.score == pytest.approx(log_prob / length**0.6, abs=1e-5)


def test_constraints_hold_in_every_draw() -> None:
    options = replace(
        ANY_OPTIONS, k=40, n_best=40, prefix_ids=(6, 4), min_length=4, no_repeat_ngram=2, banned_ids=((4, 4), (5,))
    )
    for hypothesis in sample(1, options).hypotheses:
        tokens = hypothesis.token_ids
        bigrams = list(pairwise(tokens))
        assert tokens[:2] == (6, 4)
        assert len(set(bigrams)) == len(bigrams)
        assert (4, 4) not in bigrams
        assert 5 not in tokens
        assert len(tokens) >= 4 or hypothesis.finish == "length"


def test_a_row_that_nothing_may_follow_stops_where_it_stands() -> None:
    options = replace(ANY_OPTIONS, min_length=9, no_repeat_ngram=1)  # three words, none of them twice
    (hypothesis,) = sample(1, options).hypotheses
    assert sorted(hypothesis.token_ids) == list(WORDS)
    assert hypothesis.finish == "length"
    assert math.isfinite(hypothesis.score)


def test_a_cut_names_its_cause_only_for_rows_that_are_alive() -> None:
    loop = Loop(SamplingSearch(12, CPU))
    loop.add(1, replace(ANY_OPTIONS, k=12, n_best=12, max_length=30))
    loop.step()
    loop.step()
    result = loop.search.cut(0, "deadline")
    assert {h.finish for h in result.hypotheses} == {"eos", "deadline"}
    assert all(len(h.token_ids) == 2 for h in result.hypotheses if h.finish == "deadline")


def test_agreed_is_what_all_rows_begin_with() -> None:
    loop = Loop(SamplingSearch(3, CPU))
    loop.add(1, replace(ANY_OPTIONS, k=3, n_best=3, prefix_ids=(4, 6), min_length=20, max_length=30))
    for _ in range(8):
        loop.step()
    agreed = loop.search.agreed_ids(0)
    histories = loop.histories
    assert agreed[:2] == [4, 6]
    assert all(list(h[: len(agreed)]) == agreed for h in histories)
    assert len({h[len(agreed)] for h in histories}) > 1


def test_a_dead_row_gets_no_more_coverage() -> None:
    options = replace(ANY_OPTIONS, k=2, n_best=2, coverage_penalty=1.0, max_length=3)
    search = SamplingSearch(2, CPU)
    search.add([LiveSegment(0, options, 3, 2)])
    certain = torch.full((2, VOCAB), NEVER)
    certain[0, EOS_ID] = certain[1, 4] = 0.0
    attention = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])  # the last column is padding
    search.absorb(TokenScores(certain.clone()), attention)
    certain[1, 4], certain[1, EOS_ID] = NEVER, 0.0
    step = search.absorb(TokenScores(certain), attention)
    scores = [h.score for h in step.done[0][1].hypotheses]
    assert scores == pytest.approx([math.log(0.25 * 0.5), math.log(0.2 * 0.4)], abs=1e-5)


def test_coverage_stays_with_its_segment() -> None:
    options = replace(ANY_OPTIONS, coverage_penalty=1.0, max_length=3)
    search = SamplingSearch(1, CPU)
    search.add([LiveSegment(handle, options, 3, 2) for handle in range(2)])
    certain = torch.full((2, VOCAB), NEVER)
    certain[0, EOS_ID] = certain[1, 4] = 0.0
    search.absorb(TokenScores(certain), torch.tensor([[0.25, 0.75], [0.1, 0.3]]))
    search.keep([1])
    certain = torch.full((1, VOCAB), NEVER)
    certain[0, EOS_ID] = 0.0
    step = search.absorb(TokenScores(certain), torch.tensor([[0.1, 0.3]]))
    assert step.done[0][1].hypotheses[0].score == pytest.approx(math.log(0.2 * 0.6), abs=1e-5)


def test_no_draw_falls_on_a_forbidden_token_at_the_ends_of_the_interval() -> None:
    log_probs = torch.tensor([[NEVER, -80.0, -1e-7, NEVER, -0.5, NEVER]]).repeat(2, 1)
    uniforms = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(weights_of(log_probs, torch.ones(2)), uniforms).tolist() == [2, 4]


@pytest.mark.parametrize("top_p", [1.0, 0.75, 0.5, 1e-9])
def test_the_nucleus_is_the_fewest_that_hold_enough(top_p: float) -> None:
    log_probs = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()
    weights = weights_of(log_probs, torch.ones(1))
    kept = without_tail(weights, log_probs, torch.tensor([9]), torch.tensor([top_p], dtype=torch.float64))
    expected = {1.0: [0, 1, 2, 3], 0.75: [1, 3], 0.5: [1], 1e-9: [1]}[top_p]
    assert kept[0].nonzero().flatten().tolist() == expected
