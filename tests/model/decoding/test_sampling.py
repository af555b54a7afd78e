"""Sampling: draws follow the distribution, and depend on nothing but the seed, the row and the step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.sampling import SamplingSearch
from model.decoding.search import LiveSegment, SearchOptions, SegmentResult

VOCAB = 8  # <unk> <pad> <bos> <eos> and four words
NUM_BANNED = 3


def next_log_probs(history: tuple[int, ...], source: int) -> Tensor:
    """[V] float32: a distribution drawn for this history."""
    key = source
    for token in history:
        key = (key * 31 + token + 1) % 1_000_003
    generator = torch.Generator().manual_seed(key)
    return torch.log_softmax(torch.randn(VOCAB, generator=generator), dim=0)


def sample(options: list[SearchOptions], sources: list[int]) -> list[SegmentResult]:
    """Runs one lane; all options ask for as many draws."""
    k = options[0].num_rows
    lane = SamplingSearch(k, torch.device("cpu"))
    lane.add([LiveSegment(i, o, o.length_limit(4), 4) for i, o in enumerate(options)])
    histories: list[tuple[int, ...]] = [()] * len(options) * k
    results: dict[int, SegmentResult] = {}
    while lane.segments:
        live = [segment.handle for segment in lane.segments]
        rows = [next_log_probs(h, sources[live[i // k]]) for i, h in enumerate(histories)]
        step = lane.absorb(torch.stack(rows), None)
        assert step.rows is None
        histories = [(*h, t) for h, t in zip(histories, step.ids.tolist(), strict=True)]
        results.update({live[at]: result for at, result in step.done})
        order = [at for at in range(len(live)) if at not in {at for at, _ in step.done}]
        lane.keep(order)
        histories = [histories[at * k + j] for at in order for j in range(k)]
    return [results[i] for i in range(len(options))]


def options_for(**values: object) -> SearchOptions:
    defaults: dict[str, object] = {"search": "sample", "k": 1, "n_best": 1, "max_length": 6}
    return SearchOptions(**{**defaults, **values})  # type: ignore[arg-type]


def first_tokens(options: SearchOptions, num_seeds: int, source: int = 1) -> Counter[int]:
    wanted = [replace(options, seed=seed, max_length=1) for seed in range(num_seeds)]
    results = sample(wanted, [source] * num_seeds)
    return Counter((*result.hypotheses[0].token_ids, EOS_ID)[0] for result in results)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution_at_the_temperature(temperature: float) -> None:
    counts = first_tokens(options_for(temperature=temperature), 3000)
    expected = next_log_probs((), 1)
    expected[:NUM_BANNED] = float("-inf")
    expected = (expected / temperature).softmax(dim=0)
    for token in range(VOCAB):
        assert counts[token] / 3000 == pytest.approx(float(expected[token]), abs=0.03)
    assert not any(counts[token] for token in range(NUM_BANNED))


def test_top_k_draws_among_the_most_probable_in_their_proportion() -> None:
    counts = first_tokens(options_for(top_k=2), 2000)
    log_probs = next_log_probs((), 1)
    log_probs[:NUM_BANNED] = float("-inf")
    values, tokens = log_probs.topk(2)
    assert set(counts) == set(tokens.tolist())
    assert counts[int(tokens[0])] / 2000 == pytest.approx(float(values.softmax(dim=0)[0]), abs=0.03)


def test_top_p_keeps_the_fewest_tokens_that_hold_the_share() -> None:
    log_probs = next_log_probs((), 1)
    log_probs[:NUM_BANNED] = float("-inf")
    probs, tokens = log_probs.softmax(dim=0).sort(descending=True)
    share = float(probs[:2].sum()) - 0.01
    assert set(first_tokens(options_for(top_p=share), 1000)) == set(tokens[:2].tolist())


@pytest.mark.parametrize("values", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}])
def test_without_freedom_sampling_is_greedy(values: dict[str, object]) -> None:
    (result,) = sample([options_for(seed=3, **values)], [5])
    tokens: tuple[int, ...] = ()
    while len(tokens) < 6:
        log_probs = next_log_probs(tokens, 5)
        log_probs[:NUM_BANNED] = float("-inf")
        if (token := int(log_probs.argmax())) == EOS_ID:
            break
        tokens = (*tokens, token)
    assert result.hypotheses[0].token_ids == tokens


def test_the_same_seed_gives_the_same_draws_alone_in_company_and_at_any_position() -> None:
    variants = [
        options_for(k=3, n_best=3, seed=1),
        options_for(k=3, n_best=3, seed=2, top_k=3),
        options_for(k=3, n_best=3, seed=1, temperature=0.5),
        options_for(k=3, n_best=3, seed=9, top_p=0.8, min_length=2),
    ]
    sources = [4, 5, 6, 7]
    together = sample(variants, sources)
    backwards = sample(variants[::-1], sources[::-1])[::-1]
    alone = [sample([o], [source])[0] for o, source in zip(variants, sources, strict=True)]
    assert together == backwards == alone


def test_other_seeds_and_other_rows_draw_otherwise() -> None:
    results = sample([options_for(k=8, n_best=8, seed=seed) for seed in (1, 2)], [4, 4])
    assert {h.token_ids for h in results[0].hypotheses} != {h.token_ids for h in results[1].hypotheses}
    assert len({h.token_ids for h in results[0].hypotheses}) > 1


def test_log_prob_is_the_networks_own_whatever_the_temperature_and_best_comes_first() -> None:
    (result,) = sample([options_for(k=4, n_best=4, seed=1, temperature=3.0, top_k=4)], [2])
    for hypothesis in result.hypotheses:
        ids = (*hypothesis.token_ids, EOS_ID)[: len(hypothesis.token_ids) + (hypothesis.finish == "eos")]
        total = sum(float(next_log_probs(ids[:t], 2)[token]) for t, token in enumerate(ids))
        assert hypothesis.log_prob == pytest.approx(total, abs=1e-5)
    scores = [hypothesis.score for hypothesis in result.hypotheses]
    assert scores == sorted(scores, reverse=True)
