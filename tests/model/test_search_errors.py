"""Search errors against brute force: a small random network over three words, whose every translation is scored."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from model.bleu import corpus_bleu
from model.config import PRESETS
from model.data.vocab import BOS_ID, EOS_ID
from model.decoding.search import Hypothesis, SearchOptions
from model.decoding.stepper import StepDecoder
from model.errors import InvalidValue
from model.network.inference import InferenceNetwork
from model.network.seq2seq import Seq2Seq
from model.search_errors import SearchErrors, Spread, is_missed, measure
from model.translator import Prepared, Translator

WORDS = (4, 5, 6)
LIMIT = 5
TEXTS = ["abc", "b", "cab|ca", "aabb", "", "c|b|a", "bbbb", "acbc", "cc"]


class TinyTranslator(Translator):
    """A letter is a token, on both sides, and a bar ends a sentence."""

    def __init__(self) -> None:
        self.name, self.version, self.device, self.precision = "tiny", "0", "cpu", "fp32"
        torch.manual_seed(8)
        sizes = {"embedding_dim": 8, "encoder_dim": 8, "decoder_dim": 8, "attention_dim": 8, "readout_dim": 8}
        config = replace(PRESETS["small"].model, src_vocab_size=7, tgt_vocab_size=7, **sizes)  # type: ignore[arg-type]
        network = Seq2Seq(config).eval()
        with torch.no_grad():  # far from even, and different from sentence to sentence
            for weights in network.parameters():
                weights.mul_(3.5)
            network.decoder.output.bias[EOS_ID] -= 0.4
        self.network = InferenceNetwork(network, "fp32")
        letters = SimpleNamespace(
            decode=lambda ids: "".join(chr(ord("a") + i - 4) for i in ids),
            tokens=lambda ids: [chr(ord("a") + i - 4) for i in ids],
        )
        self.src_tokenizer = self.tgt_tokenizer = cast(Any, letters)

    def prepare(self, text: str, *, prefix: str = "") -> Prepared:
        sentences = text.split("|") if text else []
        return Prepared(
            segments=[[*(4 + ord(c) - ord("a") for c in sentence), EOS_ID] for sentence in sentences],
            layout=["", *[" "] * (len(sentences) - 1), ""] if sentences else [""],
            sentences=[(sentence, 0) for sentence in sentences],
        )


@pytest.fixture(scope="module")
def translator() -> TinyTranslator:
    return TinyTranslator()


def every_translation(
    translator: Translator, src_ids: list[int], length_penalty: float
) -> dict[tuple[int, ...], float]:
    """Score of each hypothesis that ends itself within the limit."""
    memory, first = translator.network.encode(torch.tensor([src_ids]), [len(src_ids)])
    scores: dict[tuple[int, ...], float] = {}

    def extend(words: tuple[int, ...], log_prob: float, state: Any) -> None:
        last = words[-1] if words else BOS_ID
        step = translator.network.step(torch.tensor([last]), state, (memory,))
        costs = step.scores.log_probs()[0].tolist()
        scores[words] = (log_prob + costs[EOS_ID]) / (len(words) + 1) ** length_penalty
        if len(words) + 2 <= LIMIT:
            for word in WORDS:
                extend((*words, word), log_prob + costs[word], step.state)

    with torch.inference_mode():
        extend((), 0.0, first)
    return scores


def search(translator: Translator, src_ids: list[int], k: int, length_penalty: float) -> Hypothesis:
    options = SearchOptions(search="greedy" if k == 1 else "beam", k=k, length_penalty=length_penalty, max_length=LIMIT)
    decoder = StepDecoder(translator.network)
    decoder.add([(src_ids, options)])
    while True:
        for _, result in decoder.step():
            return result.hypotheses[0]


def measured(translator: Translator, length_penalty: float = 0.0, **options: Any) -> SearchErrors:
    options = {"widths": (1, 2), "max_length": LIMIT, **options}
    return measure(translator, TEXTS, length_penalty=length_penalty, **options)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize(("k", "name"), [(1, "greedy"), (2, "beam 2")])
def test_what_is_missed_and_by_how_much_equals_brute_force(
    translator: TinyTranslator, length_penalty: float, k: int, name: str
) -> None:
    report = measured(translator, length_penalty)
    segments = [ids for text in TEXTS for ids in translator.prepare(text).segments]
    assert (report.num_sentences, report.num_proven) == (len(segments), len(segments))
    gaps: list[float] = []
    num_cut_off = num_longer = num_empty = num_tokens = 0
    for ids in segments:
        scores = every_translation(translator, ids, length_penalty)
        best = max(scores, key=lambda words: scores[words])
        found = search(translator, ids, k, length_penalty)
        num_empty += best == ()
        num_tokens += len(found.token_ids)
        num_longer += len(found.token_ids) > len(best)
        num_cut_off += found.finish != "eos"
        if found.finish == "eos" and scores[best] > found.score + 1e-5:
            gaps.append(scores[best] - found.score)
    entry = {search.name: search for search in report.searches}[name]
    assert entry.num_missed == len(gaps) + num_cut_off
    assert entry.num_missed > 0 or name != "greedy"
    assert (entry.num_cut_off, entry.num_longer) == (num_cut_off, num_longer)
    assert report.num_empty == num_empty
    assert entry.mean_tokens == pytest.approx(num_tokens / len(segments))
    expected = Spread.of(gaps)
    assert (entry.score_gap is None) == (expected is None)
    if expected is not None and entry.score_gap is not None:
        for field in ("mean", "median", "max"):
            assert getattr(entry.score_gap, field) == pytest.approx(getattr(expected, field), abs=1e-4)


def test_exact_misses_nothing_and_extends_more_than_its_beam(translator: TinyTranslator) -> None:
    *_, beam, exact = measured(translator).searches
    assert (exact.name, exact.num_missed, exact.num_longer, exact.score_gap) == ("exact", 0, 0, None)
    assert exact.mean_nodes > beam.mean_nodes > 0
    assert exact.mean_steps > beam.mean_steps > 0


def test_proofs_without_nodes_or_time_are_counted_apart(translator: TinyTranslator) -> None:
    few = measured(translator, 1.0, max_nodes=1)
    assert few.num_proven + few.num_given_up == few.num_sentences
    assert few.num_given_up > 0 == few.num_out_of_time
    assert few.searches[-1].num_missed == 0
    late = measured(translator, 1.0, max_seconds=1e-9)
    assert late.num_out_of_time == late.num_sentences - late.num_proven > 0
    assert late.num_given_up == 0
    assert late.searches[0].mean_steps == few.searches[0].mean_steps  # beams are finished all the same


def test_bleu_is_that_of_the_texts_put_together_again(translator: TinyTranslator) -> None:
    references = [["a b"], ["c"], ["b b c a"], ["c a"], ["x"], ["a b c"], ["b"], ["b c"], ["a"]]
    report = measured(translator, references=references)
    for entry, k in zip(report.searches, (1, 2), strict=False):
        texts = [
            " ".join(
                translator.tgt_tokenizer.decode(list(search(translator, ids, k, 0.0).token_ids))
                for ids in translator.prepare(text).segments
            )
            for text in TEXTS
        ]
        assert entry.bleu == entry.proven_bleu == corpus_bleu(texts, references)
    assert measured(translator).searches[0].bleu is None


def test_the_example_is_a_sentence_that_greedy_misses_with_the_probability_of_each_token(
    translator: TinyTranslator,
) -> None:
    example = measured(translator).example
    assert example is not None
    (ids,) = translator.prepare(example.source).segments
    scores = every_translation(translator, ids, 0.0)
    for spelled in (example.greedy, example.best):
        words = tuple(4 + ord(token) - ord("a") for token in spelled.tokens if token != "<eos>")
        assert math.log(math.prod(spelled.probabilities)) == pytest.approx(spelled.log_prob, abs=1e-4)
        assert scores[words] == pytest.approx(spelled.log_prob, abs=1e-4)
    assert example.best.score == pytest.approx(max(scores.values()), abs=1e-4)
    assert example.greedy.score < example.best.score


def test_progress_counts_every_search_of_every_sentence(translator: TinyTranslator) -> None:
    seen: list[tuple[int, int]] = []
    report = measured(translator, on_progress=lambda done, num_all: seen.append((done, num_all)))
    assert seen[-1] == (3 * report.num_sentences, 3 * report.num_sentences)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_equal_scores_are_no_miss_and_a_cut_off_translation_is_one() -> None:
    best = Hypothesis(token_ids=(4,), log_prob=-1.0, score=-1.0, finish="eos")
    assert not is_missed(replace(best, token_ids=(5,), score=-1.000001), best)
    assert is_missed(replace(best, token_ids=(5,), score=-1.001), best)
    assert is_missed(replace(best, token_ids=(4, 4), score=-0.1, finish="length"), best)


def test_wrong_widths_and_no_sentence_are_refused(translator: TinyTranslator) -> None:
    for widths in ((), (2, 2), (0,)):
        with pytest.raises(InvalidValue, match=r"^k is"):
            measured(translator, widths=widths)
    with pytest.raises(InvalidValue, match="at least one sentence"):
        measure(translator, ["", ""])
