"""The decoding loop over a small random network: the same answer alone, in company, and whenever a segment joins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import PRESETS
from model.data.vocab import EOS_ID
from model.decoding.search import SearchOptions, SegmentResult
from model.decoding.stepper import StepDecoder
from model.network.inference import InferenceNetwork
from model.network.packed import PACKED
from model.network.seq2seq import Seq2Seq

VOCAB = 37


def small_network(preset: str = "small", precision: str = "fp32", **how: bool) -> InferenceNetwork:
    torch.manual_seed(3)
    narrow = {"embedding_dim": 64, "encoder_dim": 64, "decoder_dim": 128, "attention_dim": 64, "readout_dim": 64}
    if preset == "cho2014" or preset == "sutskever2014":
        narrow = {**narrow, "encoder_dim": 128}
    config = replace(PRESETS[preset].model, src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, **narrow)
    network = Seq2Seq(config).eval()
    with torch.no_grad():  # peaked enough that hypotheses differ and end
        network.decoder.output.bias.normal_(std=1.5)
    return InferenceNetwork(network, precision, **how)


def sources(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lens = [1 + (7 * i) % 23 for i in range(count)]
    return [[*torch.randint(4, VOCAB, (n,), generator=generator).tolist(), EOS_ID] for n in lens]


def run(decoder: StepDecoder, segments: list[tuple[list[int], SearchOptions]]) -> list[SegmentResult]:
    handles = decoder.add(segments)
    results: dict[int, SegmentResult] = {}
    while decoder.num_segments:
        results.update(decoder.step())
    return [results[handle] for handle in handles]


def ids_of(result: SegmentResult) -> list[tuple[int, ...]]:
    return [hypothesis.token_ids for hypothesis in result.hypotheses]


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("precision", sorted(PACKED))
def test_every_preset_decodes_a_batch_bit_for_bit_as_it_decodes_singles(preset: str, precision: str) -> None:
    network = small_network(preset, precision)
    for k in (1, 3):
        options = SearchOptions(k=k, max_length=12, wants_attention=True)
        segments = [(ids, options) for ids in sources(7)]
        together = run(StepDecoder(network), segments)
        alone = [run(StepDecoder(network), [segment])[0] for segment in segments]
        assert together == alone


MIXED = [
    SearchOptions(search="greedy", k=1, max_length=15),
    SearchOptions(k=5, n_best=5, max_length=15),
    SearchOptions(k=2, max_length=15, coverage_penalty=0.3),
    SearchOptions(search="sample", k=2, n_best=2, seed=4, max_length=15, temperature=0.7),
    SearchOptions(search="sample", k=1, n_best=1, seed=5, max_length=15, top_k=5, top_p=0.9),
    SearchOptions(search="exact", k=3, max_length=15, length_penalty=0.0, max_nodes=40),
    SearchOptions(k=3, max_length=15, no_repeat_ngram=2, min_length=4, wants_attention=True),
    SearchOptions(search="greedy", k=1, max_length=15, prefix_ids=(7, 8), wants_attention=True),
]


@pytest.mark.parametrize("precision", sorted(PACKED))
def test_all_searches_at_once_joining_at_random_give_what_each_gives_alone(precision: str) -> None:
    network = small_network("luong2015", precision)
    generator = torch.Generator().manual_seed(11)
    segments = [(ids, MIXED[i % len(MIXED)]) for i, ids in enumerate(sources(40))]
    decoder = StepDecoder(network, max_rows=64)
    waiting, results, handles = list(segments), {}, []
    while waiting or decoder.num_segments:
        num_new = int(torch.randint(0, 5, (), generator=generator))
        handles += decoder.add(waiting[:num_new])
        waiting = waiting[num_new:]
        results.update(decoder.step())
    alone = [run(StepDecoder(network), [segment])[0] for segment in segments]
    assert [results[handle] for handle in handles] == alone


def test_exact_search_is_never_worse_than_its_beam_and_both_never_worse_than_greedy() -> None:
    network = small_network("luong2015")
    scores: dict[str, list[float]] = {}
    for name, k in (("greedy", 1), ("beam", 4), ("exact", 4)):
        budget = {"max_nodes": 2000} if name == "exact" else {}
        options = SearchOptions(search=name, k=k, max_length=12, length_penalty=0.0, **budget)
        results = run(StepDecoder(network), [(ids, options) for ids in sources(8)])
        scores[name] = [result.hypotheses[0].score for result in results]
        if name == "exact":
            assert any(result.is_optimal for result in results)
    for exact, beam in zip(scores["exact"], scores["beam"], strict=True):
        assert exact >= beam - 1e-6
    assert sum(scores["beam"]) >= sum(scores["greedy"]) - 1e-4


def test_a_deadline_gives_the_best_so_far_and_frees_the_rows() -> None:
    decoder = StepDecoder(small_network())
    options = SearchOptions(k=3, max_length=15, min_length=10)
    first, second = decoder.add([(ids, options) for ids in sources(2)])
    assert decoder.cut(first) is None  # no step yet: nothing to give
    decoder.step()
    decoder.step()
    result = decoder.cut(second)
    assert result is not None
    assert result.hypotheses[0].finish == "deadline"
    assert len(result.hypotheses[0].token_ids) == 2
    assert decoder.num_rows == decoder.num_segments == 0


def test_what_is_agreed_upon_is_what_the_translation_begins_with() -> None:
    for options in MIXED:
        decoder = StepDecoder(small_network())
        (handle,) = decoder.add([(sources(3)[2], options)])
        agreed: list[list[int]] = []
        results: dict[int, SegmentResult] = {}
        while decoder.num_segments:
            agreed.append(decoder.agreed_ids(handle))
            results.update(decoder.step())
        if options.search == "sample" and options.n_best > 1:
            continue  # the best of several draws is known at the end only
        best = list(results[handle].hypotheses[0].token_ids)
        for ids in agreed:
            assert best[: len(ids)] == ids


def test_an_explanation_holds_each_tokens_cost_and_where_it_looked() -> None:
    network = small_network()
    options = SearchOptions(k=3, max_length=15, wants_attention=True)
    source = sources(3)[2]
    (result,) = run(StepDecoder(network), [(source, options)])
    best = result.hypotheses[0]
    assert sum(result.token_log_probs) == pytest.approx(best.log_prob, abs=1e-4)
    assert len(result.attention) == len(result.token_log_probs)
    for row in result.attention:
        assert len(row) == len(source)
        assert sum(row) == pytest.approx(1.0, abs=1e-5)


def test_segments_that_join_later_and_of_other_widths_change_nothing() -> None:
    network = small_network()
    widths = [1, 5, 2, 5, 1, 3, 5, 1, 2]
    segments = [(ids, SearchOptions(k=k, n_best=k, max_length=15)) for ids, k in zip(sources(9), widths, strict=True)]
    decoder = StepDecoder(network)
    results: dict[int, SegmentResult] = {}
    handles: list[int] = []
    for segment in segments:
        handles += decoder.add([segment])
        results.update(decoder.step())
    while decoder.num_segments:
        results.update(decoder.step())
    alone = [run(StepDecoder(network), [segment])[0] for segment in segments]
    assert [ids_of(results[handle]) for handle in handles] == [ids_of(r) for r in alone]


def test_a_cancelled_segment_frees_its_rows_and_disturbs_nobody() -> None:
    network = small_network()
    options = SearchOptions(k=3, max_length=15)
    first, second, third = sources(3)
    decoder = StepDecoder(network)
    handles = decoder.add([(first, options), (second, options), (third, options)])
    decoder.step()
    decoder.cancel(handles[1])
    assert decoder.num_rows == 6
    results: dict[int, SegmentResult] = {}
    while decoder.num_segments:
        results.update(decoder.step())
    assert set(results) == {handles[0], handles[2]}
    assert ids_of(results[handles[2]]) == ids_of(run(StepDecoder(network), [(third, options)])[0])


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("precision", sorted(PACKED))
def test_steps_over_whole_tables_give_the_same(preset: str, precision: str) -> None:
    """What a GPU does with graphs, here without one: the same rows in a larger table, whatever joins and leaves."""
    searches = [
        SearchOptions(search="greedy", k=1, max_length=12),
        SearchOptions(k=3, max_length=14, coverage_penalty=0.1),
        SearchOptions(search="exact", k=2, max_length=6, max_nodes=30),
        SearchOptions(search="sample", k=4, n_best=4, seed=3, max_length=9),
        SearchOptions(k=2, max_length=10, wants_attention=True),
    ]
    segments = [(ids, searches[i % len(searches)]) for i, ids in enumerate(sources(23))]
    plain = StepDecoder(small_network(preset, precision, is_native=False))
    network = small_network(preset, precision, is_native=False, is_graphed=True)
    found: list[list[SegmentResult]] = []
    for decoder in (plain, StepDecoder(network)):
        handles: list[int] = []
        results: dict[int, SegmentResult] = {}
        for start in range(0, len(segments), 4):  # the next come while those before them are at work
            handles += decoder.add(segments[start : start + 4])
            for _ in range(3):
                results.update(decoder.step())
        while decoder.num_segments:
            results.update(decoder.step())
        found.append([results[handle] for handle in handles])
    assert found[0] == found[1]
    assert network._graphs is not None and 1 < len(network._graphs) <= 32


def test_a_table_that_comes_again_is_the_same_graph() -> None:
    network = small_network(is_native=False, is_graphed=True)
    decoder = StepDecoder(network)
    for _ in range(3):
        run(decoder, [(ids, SearchOptions(k=3, max_length=8)) for ids in sources(5)])
    assert network._graphs is not None and len(network._graphs) == 1


def test_what_was_cancelled_leaves_nothing_behind() -> None:
    decoder = StepDecoder(small_network())
    options = SearchOptions(k=3, max_length=8)
    for _ in range(5):
        for handle in decoder.add([(ids, options) for ids in sources(4)]):
            decoder.cancel(handle)
    decoder.add([(sources(1)[0], options)])
    assert len(decoder._state[0]) == 1
