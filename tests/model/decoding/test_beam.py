"""Beam search against brute force on a tiny vocabulary; log-probabilities are drawn for each history."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

from model.data.vocab import EOS_ID
from model.decoding.beam import BeamSearch
from model.decoding.greedy import GreedySearch
from model.decoding.lane import LaneSearch, LiveSegment
from model.decoding.search import STOPS, Hypothesis, SearchOptions, SegmentResult
from model.decoding.selection import best_of, top_of_beams
from model.errors import InvalidValue
from model.network.token_scores import TokenScores
from tests.model.decoding import tables
from tests.model.decoding.tables import WORDS

next_log_probs = partial(tables.next_log_probs, spread=2.0)


def search(
    options: SearchOptions, seeds: list[int], num_src: int = 4, lane: type[LaneSearch] | None = None
) -> list[SegmentResult]:
    """Runs one lane over several segments, each with the distribution of its seed."""
    kind = lane or (GreedySearch if options.search == "greedy" else BeamSearch)
    beam = kind(options.k, torch.device("cpu"))
    beam.add([LiveSegment(i, options, options.length_limit(num_src), num_src) for i in range(len(seeds))])
    live = list(range(len(seeds)))
    histories: list[tuple[int, ...]] = [()] * len(seeds) * options.k
    results: dict[int, SegmentResult] = {}
    while live:
        rows = [next_log_probs(h, seeds[live[i // options.k]]) for i, h in enumerate(histories)]
        step = beam.absorb(TokenScores(torch.stack(rows)), None)
        parents = range(len(histories)) if step.rows is None else step.rows.tolist()
        histories = [(*histories[p], t) if p >= 0 else () for p, t in zip(parents, step.ids.tolist(), strict=True)]
        results.update({live[at]: result for at, result in step.done})
        order = [at for at in range(len(live)) if at not in {at for at, _ in step.done}]
        beam.keep(order)
        live = [live[at] for at in order]
        histories = [histories[at * options.k + j] for at in order for j in range(options.k)]
    return [results[i] for i in range(len(seeds))]


def score_of(tokens: tuple[int, ...], seed: int, length_penalty: float) -> float:
    """Score of a hypothesis that ends itself."""
    total = 0.0
    for t, token in enumerate((*tokens, EOS_ID)):
        total += float(next_log_probs(tokens[:t], seed)[token])
    return total / (len(tokens) + 1) ** length_penalty


def brute_force(
    seed: int, max_length: int, length_penalty: float, min_length: int = 0
) -> tuple[tuple[int, ...], float]:
    """The best of all hypotheses that end within the limit, by enumeration."""
    everything = (tokens for n in range(min_length, max_length) for tokens in itertools.product(WORDS, repeat=n))
    return max(((tokens, score_of(tokens, seed, length_penalty)) for tokens in everything), key=lambda entry: entry[1])


def best(result: SegmentResult) -> Hypothesis:
    return result.hypotheses[0]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_beam_as_wide_as_all_prefixes_equals_exhaustive_search(seed: int, length_penalty: float) -> None:
    options = SearchOptions(k=4**3, max_length=4, length_penalty=length_penalty)
    found = best(search(options, [seed])[0])
    tokens, score = brute_force(seed, 4, length_penalty)
    assert found.token_ids == tokens
    assert found.score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_beam_of_width_one_equals_greedy(seed: int) -> None:
    found = best(search(SearchOptions(search="greedy", k=1, max_length=9), [seed])[0])
    tokens: tuple[int, ...] = ()
    while len(tokens) < 9:
        log_probs = next_log_probs(tokens, seed)
        token = max((*WORDS, EOS_ID), key=lambda t: float(log_probs[t]))
        if token == EOS_ID:
            break
        tokens = (*tokens, token)
    assert found.token_ids == tokens
    assert found.finish == ("eos" if len(tokens) < 9 else "length")


@pytest.mark.parametrize("k", [1, 2, 5])
def test_segments_searched_together_equal_segments_alone(k: int) -> None:
    options = SearchOptions(k=k, max_length=8, n_best=k)
    seeds = list(range(11))
    assert search(options, seeds) == [search(options, [seed])[0] for seed in seeds]


@pytest.mark.parametrize("seed", range(8))
def test_stopping_early_never_costs_a_better_hypothesis(seed: int) -> None:
    """The bound that ends a search is admissible: one that may not stop early finds nothing better."""

    class Unstopped(BeamSearch):
        def _is_beyond(self, live: np.ndarray) -> np.ndarray:
            return np.zeros_like(live, dtype=bool)

    options = SearchOptions(k=3, max_length=10, stop_when="proven")
    (stopped,), (unstopped,) = search(options, [seed]), search(options, [seed], lane=Unstopped)
    assert best(stopped).score == pytest.approx(best(unstopped).score, abs=1e-6)
    assert unstopped.num_steps == 10


def test_rules_that_prove_less_stop_earlier() -> None:
    steps = {
        rule: [
            result.num_steps for result in search(SearchOptions(k=3, max_length=30, stop_when=rule), list(range(40)))
        ]
        for rule in STOPS
    }
    assert sum(steps["likely"]) < sum(steps["proven"])


@pytest.mark.parametrize("n_best", [1, 3])
def test_k_ended_stops_with_the_step_in_which_the_last_of_k_ends(n_best: int) -> None:
    k = 3
    options = SearchOptions(k=k, n_best=n_best, max_length=20, stop_when="k_ended", wants_tree=True)
    for result in search(options, list(range(20))):
        depths: list[int] = []
        for node in result.tree:
            depths.append(1 if node.parent < 0 else depths[node.parent] + 1)
        ended = sorted(depth for depth, node in zip(depths, result.tree, strict=True) if node.state == "finished")
        assert result.num_steps == (ended[k - 1] if len(ended) >= k else 20)
        assert len(result.hypotheses) == n_best


def test_only_a_beam_has_a_rule_to_stop() -> None:
    with pytest.raises(InvalidValue, match="stop_when"):
        SearchOptions(search="greedy", k=1, stop_when="proven")
    with pytest.raises(InvalidValue, match="proven, likely, k_ended"):
        SearchOptions(stop_when="soon")


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_result_that_is_said_to_be_optimal_is_and_no_better_one_exceeds_the_bound(
    k: int, length_penalty: float
) -> None:
    name = "greedy" if k == 1 else "beam"
    options = SearchOptions(search=name, k=k, max_length=4, length_penalty=length_penalty)
    results = search(options, list(range(60)))
    proven = 0
    for seed, result in enumerate(results):
        _, score = brute_force(seed, 4, length_penalty)
        if result.bound is not None:
            assert result.bound >= score - 1e-5
        if result.is_optimal:
            proven += 1
            assert best(result).score == pytest.approx(score, abs=1e-5)
    assert proven > 0


def test_greedy_is_a_beam_of_width_one() -> None:
    seeds = list(range(20))
    as_beam = search(SearchOptions(search="beam", k=1, max_length=9), seeds)
    greedy = search(SearchOptions(search="greedy", k=1, max_length=9), seeds)
    for one, other in zip(as_beam, greedy, strict=True):
        assert best(one).score >= best(other).score - 1e-6
        if best(one).token_ids == best(other).token_ids:
            assert best(one).score == pytest.approx(best(other).score, abs=1e-6)


@pytest.mark.parametrize("k", [1, 4])
def test_no_ngram_occurs_twice_and_no_banned_sequence_occurs(k: int) -> None:
    banned = ((4, 5), (6, 6, 4))
    name = "greedy" if k == 1 else "beam"
    options = SearchOptions(
        search=name, k=k, n_best=k, max_length=12, min_length=6, no_repeat_ngram=3, banned_ids=banned
    )
    for result in search(options, list(range(10))):
        for hypothesis in result.hypotheses:
            ids = hypothesis.token_ids
            ngrams = [ids[i : i + 3] for i in range(len(ids) - 2)]
            assert len(ngrams) == len(set(ngrams))
            for sequence in banned:
                assert sequence not in {ids[i : i + len(sequence)] for i in range(len(ids))}


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_where_nothing_may_follow_a_hypothesis_stops_where_it_stands(name: str) -> None:
    options = SearchOptions(
        search=name, k=1, min_length=9, max_length=9, no_repeat_ngram=1, banned_ids=((4,),), length_penalty=0.0
    )
    (result,) = search(options, [3])
    assert sorted(best(result).token_ids) == [5, 6]
    assert best(result).finish == "length"
    assert best(result).log_prob == pytest.approx(best(result).score)


def test_a_segment_at_its_limit_stops_there_beside_one_that_is_stuck() -> None:
    ends = SearchOptions(k=1, max_length=3, min_length=3, length_penalty=0.0)
    stuck = SearchOptions(k=1, max_length=9, min_length=9, no_repeat_ngram=1, banned_ids=((4,),), length_penalty=0.0)
    beam = BeamSearch(1, torch.device("cpu"))
    beam.add([LiveSegment(i, options, options.length_limit(4), 4) for i, options in enumerate((ends, stuck))])
    for _ in range(3):  # the second has only two words to say
        step = beam.absorb(TokenScores(torch.stack([next_log_probs((), 3), next_log_probs((), 3)])), None)
    assert {at: len(best(result).token_ids) for at, result in step.done} == {0: 3, 1: 2}


def test_the_tree_holds_every_node_with_its_parent() -> None:
    (result,) = search(SearchOptions(k=2, max_length=5, wants_tree=True), [4])
    tokens: list[tuple[int, ...]] = []
    for node in result.tree:
        before = tokens[node.parent] if node.parent >= 0 else ()
        if node.parent >= 0:
            assert result.tree[node.parent].state == "live"
        tokens.append((*before, node.token_id))
        total = sum(float(next_log_probs(tokens[-1][:t], 4)[token]) for t, token in enumerate(tokens[-1]))
        assert node.log_prob == pytest.approx(total, abs=1e-5)
    ended = {ids[:-1] for ids, node in zip(tokens, result.tree, strict=True) if node.state == "finished"}
    assert best(result).token_ids in ended


@pytest.mark.parametrize("seed", range(6))
def test_n_best_are_different_ended_and_in_order(seed: int) -> None:
    (result,) = search(SearchOptions(k=5, n_best=5, max_length=6), [seed])
    scores = [h.score for h in result.hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert len({(h.token_ids, h.finish) for h in result.hypotheses}) == 5


@pytest.mark.parametrize("seed", range(6))
def test_minimum_length_is_kept(seed: int) -> None:
    found = best(search(SearchOptions(k=4**3, min_length=2, max_length=4), [seed])[0])
    tokens, _ = brute_force(seed, 4, 1.0, min_length=2)
    assert found.token_ids == tokens


@pytest.mark.parametrize("k", [1, 3])
def test_every_hypothesis_starts_with_the_forced_prefix(k: int) -> None:
    (result,) = search(SearchOptions(k=k, n_best=k, max_length=7, prefix_ids=(6, 6, 4)), [3])
    assert all(h.token_ids[:3] == (6, 6, 4) for h in result.hypotheses)
    assert all(math.isfinite(h.log_prob) for h in result.hypotheses)


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_every_hypothesis_has_the_forced_token_at_its_position_and_does_not_end_before(name: str) -> None:
    k = 1 if name == "greedy" else 3
    forced = ((1, 6), (4, 4), (5, 4))
    options = SearchOptions(search=name, k=k, n_best=k, max_length=9, forced_ids=forced, no_repeat_ngram=1)
    for result in search(options, list(range(6))):
        for hypothesis in result.hypotheses:
            ids = hypothesis.token_ids
            assert (ids[1], ids[4:6]) == (6, (4, 4)) or (hypothesis.finish == "length" and len(ids) < 4)


@pytest.mark.parametrize("seed", range(6))
def test_forced_tokens_give_the_best_of_all_that_have_them(seed: int) -> None:
    options = SearchOptions(k=4**3, max_length=4, forced_ids=((1, 5),))
    fitting = [tokens for n in range(2, 4) for tokens in itertools.product(WORDS, repeat=n) if tokens[1] == 5]
    expected = max(fitting, key=lambda tokens: score_of(tokens, seed, 1.0))
    assert best(search(options, [seed])[0]).token_ids == expected


def test_a_forced_end_ends_there_and_a_prefix_is_forced_tokens() -> None:
    options = SearchOptions(k=3, max_length=9, forced_ids=((2, EOS_ID),))
    assert len(best(search(options, [1])[0]).token_ids) == 2
    as_prefix = SearchOptions(k=3, max_length=9, prefix_ids=(6, 4))
    as_forced = SearchOptions(k=3, max_length=9, forced_ids=((0, 6), (1, 4)))
    assert search(as_prefix, [1, 2]) == search(as_forced, [1, 2])
    assert as_prefix.length_limit(1) == as_forced.length_limit(1)


def test_the_default_limit_leaves_room_for_what_is_forced() -> None:
    assert SearchOptions(forced_ids=((40, 5),)).length_limit(3) == 42


@pytest.mark.parametrize("name", ["greedy", "beam", "sample", "exact"])
@pytest.mark.parametrize(
    ("field", "owner", "value"),
    [
        ("temperature", "sample", 0.5),
        ("top_k", "sample", 3),
        ("top_p", "sample", 0.5),
        ("seed", "sample", 0),
        ("max_nodes", "exact", 7),
    ],
)
def test_an_option_that_a_search_would_ignore_is_refused(name: str, field: str, owner: str, value: float) -> None:
    k = 1 if name == "greedy" else 5
    if name == owner:
        assert getattr(SearchOptions(search=name, k=k, **{field: value}), field) == value  # type: ignore[arg-type]
        return
    with pytest.raises(
        InvalidValue,
        match=f"{field} is {value}; allowed is nothing with search = {name}: it is an option of search = {owner}",
    ):
        SearchOptions(search=name, k=k, **{field: value})  # type: ignore[arg-type]


def test_a_tree_is_refused_where_there_is_no_beam() -> None:
    for name in ("greedy", "sample"):
        with pytest.raises(InvalidValue, match=f"tree is True; allowed is false with search = {name}"):
            SearchOptions(search=name, k=1, wants_tree=True)
    assert SearchOptions(search="exact", wants_tree=True).wants_tree


def test_log_prob_is_the_sum_over_tokens_and_score_divides_it_by_length() -> None:
    found = best(search(SearchOptions(k=3, max_length=8, length_penalty=0.7), [5])[0])
    assert found.finish == "eos"
    assert found.score == pytest.approx(score_of(found.token_ids, 5, 0.7), abs=1e-5)
    assert found.log_prob == pytest.approx(score_of(found.token_ids, 5, 0.0), abs=1e-5)


def test_maximum_length_cuts_off_and_says_so() -> None:
    results = search(SearchOptions(search="greedy", k=1, max_length=1), list(range(12)))
    assert all(len(best(r).token_ids) <= 1 for r in results)
    assert {best(r).finish for r in results} == {"eos", "length"}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("search", {"search": "astar"}),
        ("k", {"k": 0}),
        ("k", {"k": 10_000}),
        ("k", {"k": True}),
        ("k", {"search": "greedy", "k": 5}),
        ("n_best", {"k": 2, "n_best": 3}),
        ("length_penalty", {"length_penalty": -1}),
        ("length_penalty", {"length_penalty": float("nan")}),
        ("max_length", {"max_length": 0}),
        ("min_length", {"max_length": 3, "min_length": 4}),
        ("coverage_penalty", {"coverage_penalty": -0.1}),
        ("no_repeat_ngram", {"no_repeat_ngram": -1}),
        ("temperature", {"search": "sample", "temperature": 0}),
        ("top_k", {"search": "sample", "top_k": 1.5}),
        ("top_p", {"search": "sample", "top_p": 0.0}),
        ("seed", {"search": "sample", "seed": -1}),
        ("max_nodes", {"search": "exact", "max_nodes": 0}),
        ("forced_ids", {"forced_ids": ((-1, 4),)}),
        ("forced_ids", {"forced_ids": ((3, 4),), "max_length": 3}),
        ("forced_ids", {"forced_ids": ((3, 0),)}),
        ("forced_ids", {"forced_ids": ((3, 4), (3, 5))}),
        ("forced_ids", {"forced_ids": ((1, 4),), "prefix_ids": (4, 4)}),
        ("n_best", {"search": "exact", "k": 5, "n_best": 2}),
    ],
)
def test_a_wrong_option_is_refused_by_name(field: str, values: dict[str, object]) -> None:
    with pytest.raises(InvalidValue) as caught:
        SearchOptions(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("k", [1, 3])
def test_normalised_or_not_scores_give_the_same_bits(k: int) -> None:
    """Whether somebody in the lane has a constraint decides in which form a step's scores are read."""
    num_segments, width = 9, 256
    logits, totals = torch.randn(num_segments * k, width) * 9, np.random.randn(num_segments, k).astype(np.float32)
    norms = logits.logsumexp(dim=1)

    def scores() -> TokenScores:
        return TokenScores(logits.clone(), norms.clone())

    plain, read = scores(), scores()
    read.log_probs()
    for one, other in zip(best_of(plain), best_of(read), strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(top_of_beams(plain, totals, 2 * k), top_of_beams(read, totals, 2 * k), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("width", [256, 250])
def test_without_kernels_the_best_are_the_same(k: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    num_segments = 9
    logits, totals = torch.randn(num_segments * k, width) * 9, np.random.randn(num_segments, k).astype(np.float32)
    totals[2, 1:] = float("-inf")

    def found() -> list[np.ndarray]:
        scores = TokenScores(logits.clone())
        scores.forbid_first(3)
        return [*best_of(scores), *top_of_beams(scores, totals, 2 * k)]

    as_it_is = found()
    monkeypatch.setattr("model.decoding.selection.library", lambda: None)
    for one, other in zip(as_it_is, found(), strict=True):
        assert np.array_equal(one, other)
