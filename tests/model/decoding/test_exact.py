"""Exact search against enumeration over a tiny vocabulary; log-probabilities are drawn for each history."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.constraints import forbidden_next
from model.decoding.exact import ExactSearch
from model.decoding.search import Hypothesis, LiveSegment, SearchOptions, SegmentResult

VOCAB = 7  # <unk> <pad> <bos> <eos> and three words
WORDS = (4, 5, 6)
LIMIT = 4


def next_log_probs(history: tuple[int, ...], seed: int) -> Tensor:
    """[V] float32: a distribution drawn for this history."""
    key = seed
    for token in history:
        key = (key * 31 + token + 1) % 1_000_003
    generator = torch.Generator().manual_seed(key)
    return torch.log_softmax(2 * torch.randn(VOCAB, generator=generator), dim=0)


def log_prob_of(tokens: tuple[int, ...], seed: int) -> float:
    ids = (*tokens, EOS_ID)
    return sum(float(next_log_probs(ids[:t], seed)[token]) for t, token in enumerate(ids))


def is_allowed(tokens: tuple[int, ...], options: SearchOptions) -> bool:
    if len(tokens) < options.min_length or tokens[: len(options.prefix_ids)] != options.prefix_ids:
        return False
    return not any(
        tokens[t] in forbidden_next(tokens[:t], options) for t in range(len(options.prefix_ids), len(tokens))
    )


def enumerated(seed: int, options: SearchOptions) -> tuple[tuple[int, ...], float]:
    """The best of all hypotheses that end within the limit."""
    everything = (tokens for n in range(LIMIT) for tokens in itertools.product(WORDS, repeat=n))
    scored = [
        (tokens, options.score(log_prob_of(tokens, seed), len(tokens) + 1))
        for tokens in everything
        if is_allowed(tokens, options)
    ]
    return max(scored, key=lambda entry: entry[1])


def incumbent(seed: int, options: SearchOptions) -> SegmentResult:
    """The shortest allowed hypothesis: a poor one, so that there is something to find."""
    tokens = next(t for n in range(LIMIT) for t in itertools.product(WORDS, repeat=n) if is_allowed(t, options))
    log_prob = log_prob_of(tokens, seed)
    score = options.score(log_prob, len(tokens) + 1)
    hypothesis = Hypothesis(token_ids=tokens, log_prob=log_prob, score=score, finish="eos")
    return SegmentResult(hypotheses=(hypothesis,), num_steps=1)


def search(options: SearchOptions, seeds: list[int]) -> tuple[list[SegmentResult], ExactSearch]:
    """Runs one lane to its end; a parked state is the history that led to it."""
    lane = ExactSearch(options.k, torch.device("cpu"))
    lane.add([LiveSegment(seed, options, LIMIT, 4, best=incumbent(seed, options)) for seed in seeds])
    histories: list[tuple[int, ...]] = [()] * len(seeds) * options.k
    states: dict[int, tuple[int, ...]] = {}
    results: dict[int, SegmentResult] = {}
    while lane.segments:
        live = [segment.handle for segment in lane.segments]
        rows = [next_log_probs(h, live[i // options.k]) for i, h in enumerate(histories)]
        step = lane.absorb(torch.stack(rows), None)
        assert step.parked is not None and step.rows is not None
        for row, slot in zip(step.parked[0].tolist(), step.parked[1].tolist(), strict=True):
            states[slot] = histories[row]
        starts = zip(step.rows.tolist(), step.ids.tolist(), strict=True)
        histories = [(*states[slot], token) for slot, token in starts]
        results.update({live[at]: result for at, result in step.done})
        order = [at for at in range(len(live)) if at not in {at for at, _ in step.done}]
        lane.keep(order)
        histories = [histories[at * options.k + j] for at in order for j in range(options.k)]
    return [results[seed] for seed in seeds], lane


VARIANTS = [
    SearchOptions(search="exact", k=1, length_penalty=0.0),
    SearchOptions(search="exact", k=3, length_penalty=0.0),
    SearchOptions(search="exact", k=2, length_penalty=0.6),
    SearchOptions(search="exact", k=4, length_penalty=1.0),
    SearchOptions(search="exact", k=2, length_penalty=1.0, min_length=2),
    SearchOptions(search="exact", k=2, length_penalty=0.0, no_repeat_ngram=1, min_length=1),
    SearchOptions(search="exact", k=3, length_penalty=1.0, banned_ids=((4, 5), (6,))),
    SearchOptions(search="exact", k=3, length_penalty=0.5, prefix_ids=(6, 4)),
]


@pytest.mark.parametrize("options", VARIANTS)
def test_exact_search_equals_enumeration_and_proves_it(options: SearchOptions) -> None:
    seeds = list(range(12))
    results, _ = search(options, seeds)
    for seed, result in zip(seeds, results, strict=True):
        tokens, score = enumerated(seed, options)
        assert result.hypotheses[0].token_ids == tokens
        assert result.hypotheses[0].score == pytest.approx(score, abs=1e-5)
        assert result.is_optimal is True
        assert result.bound == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("max_nodes", [1, 2, 5])
def test_a_spent_budget_is_no_proof_and_the_bound_still_holds(max_nodes: int) -> None:
    options = SearchOptions(search="exact", k=2, length_penalty=1.0, max_nodes=max_nodes)
    results, _ = search(options, list(range(12)))
    assert any(result.is_optimal is False for result in results)
    for seed, result in enumerate(results):
        best = enumerated(seed, options)[1]
        assert result.bound is not None
        assert result.bound >= best - 1e-5
        assert result.hypotheses[0].score >= incumbent(seed, options).hypotheses[0].score
        if result.is_optimal:
            assert result.hypotheses[0].score == pytest.approx(best, abs=1e-5)


def test_segments_of_a_lane_find_what_each_finds_alone() -> None:
    options = SearchOptions(search="exact", k=3, length_penalty=0.6)
    seeds = list(range(9))
    assert search(options, seeds)[0] == [search(options, [seed])[0][0] for seed in seeds]


def test_every_slot_is_free_in_the_end() -> None:
    _, lane = search(SearchOptions(search="exact", k=3, length_penalty=1.0, max_nodes=6), list(range(9)))
    assert sorted(lane._slots.free) == list(range(1, lane._slots.num))
