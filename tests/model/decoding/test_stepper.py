"""The decoding loop over a small random network: the same answer alone, in company, and whenever a segment joins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import PRESETS
from model.data.vocab import EOS_ID
from model.decoding.search import SearchOptions, SegmentResult
from model.decoding.stepper import StepDecoder
from model.network.seq2seq import Seq2Seq

VOCAB = 37


def small_network(preset: str = "small") -> Seq2Seq:
    torch.manual_seed(3)
    narrow = {"embedding_dim": 12, "encoder_dim": 10, "decoder_dim": 14, "attention_dim": 8, "readout_dim": 12}
    if preset == "cho2014" or preset == "sutskever2014":
        narrow = {**narrow, "encoder_dim": 14}
    config = replace(PRESETS[preset].model, src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, **narrow)
    network = Seq2Seq(config).eval()
    with torch.no_grad():  # peaked enough that hypotheses differ and end
        network.decoder.output.bias.normal_(std=1.5)
    return network


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
@pytest.mark.parametrize("k", [1, 3])
def test_every_preset_decodes_a_batch_as_it_decodes_singles(preset: str, k: int) -> None:
    network = small_network(preset)
    options = SearchOptions(k=k, max_length=12)
    segments = [(ids, options) for ids in sources(7)]
    together = run(StepDecoder(network), segments)
    alone = [run(StepDecoder(network), [segment])[0] for segment in segments]
    assert [ids_of(r) for r in together] == [ids_of(r) for r in alone]


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


def test_rows_are_bounded_and_an_idle_decoder_takes_any_width() -> None:
    decoder = StepDecoder(small_network(), max_rows=6)
    options = SearchOptions(k=4, max_length=5)
    assert decoder.can_add(SearchOptions(k=64))
    decoder.add([(sources(1)[0], options)])
    assert not decoder.can_add(options)
    assert decoder.can_add(SearchOptions(k=2))
