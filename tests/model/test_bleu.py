"""The course's BLEU against its worked example and a plain oracle; sacreBLEU against its own laws."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from model.bleu import METRICS, MetricScore, corpus_bleu, score, sentence_bleu_d2l
from model.errors import InvalidValue

HYPOTHESES = ["Le chat dort sur la table.", "Il fait très beau.", "Oui"]
REFERENCES = [["Le chat dort sur une table.", "Un chat dort sur la table."], ["Il fait beau."], ["Oui.", "Si.", "Oui"]]

words = st.lists(st.sampled_from("abc"), max_size=7)
sentences = st.lists(st.sampled_from("abc"), min_size=1, max_size=7).map(" ".join)


def course_bleu(hyp: Sequence[str], ref: Sequence[str], k: int) -> float:
    """The formula, word by word and slow: each n-gram of the hypothesis takes its match out of the reference."""
    if not hyp:
        return 0.0
    result = math.exp(min(0, 1 - len(ref) / len(hyp)))
    for n in range(1, min(k, len(hyp)) + 1):
        left = [list(ref[i : i + n]) for i in range(len(ref) - n + 1)]
        num_matches = 0
        for i in range(len(hyp) - n + 1):
            if list(hyp[i : i + n]) in left:
                left.remove(list(hyp[i : i + n]))
                num_matches += 1
        result *= (num_matches / (len(hyp) - n + 1)) ** (1 / 2**n)
    return result


# the course's sentence BLEU


def test_the_worked_example_of_the_course() -> None:
    bleu = sentence_bleu_d2l("A B B C D", "A B C D E F")
    assert bleu.precisions == (4 / 5, 3 / 4, 1 / 3, 0)
    assert bleu.brevity_penalty == pytest.approx(math.exp(1 - 6 / 5))
    assert bleu.score == 0


def test_the_worked_example_with_bigrams_at_most() -> None:
    bleu = sentence_bleu_d2l("A B B C D", "A B C D E F", k=2)
    assert bleu.score == pytest.approx(math.exp(-0.2) * (4 / 5) ** (1 / 2) * (3 / 4) ** (1 / 4))


@given(words, words, st.integers(1, 5))
def test_the_score_is_the_formula(hyp: list[str], ref: list[str], k: int) -> None:
    assert sentence_bleu_d2l(hyp, ref, k=k).score == pytest.approx(course_bleu(hyp, ref, k))


@given(words, words)
def test_the_score_lies_between_0_and_1(hyp: list[str], ref: list[str]) -> None:
    assert 0 <= sentence_bleu_d2l(hyp, ref).score <= 1


@pytest.mark.parametrize("text", ["va", "va !", "je suis là .", "a a a a a a a"])
def test_a_perfect_sentence_scores_1_however_short(text: str) -> None:
    assert sentence_bleu_d2l(text, text).score == 1


@pytest.mark.parametrize(("hyp", "ref"), [("", "a"), ("", ""), (" ", "a b"), ("a", ""), ([], ["a"])])
def test_an_empty_side_scores_0(hyp: str, ref: str) -> None:
    assert sentence_bleu_d2l(hyp, ref).score == 0


def test_a_text_is_its_tokens_at_white_space() -> None:
    assert sentence_bleu_d2l(" va\u00a0! ", "va !") == sentence_bleu_d2l(["va", "!"], ["va", "!"])


def test_no_ngrams_at_all_are_refused() -> None:
    with pytest.raises(InvalidValue, match="k is 0"):
        sentence_bleu_d2l("a", "a", k=0)


# scores of a list


def test_bleu_is_what_sacrebleu_says() -> None:
    result = score(HYPOTHESES, REFERENCES)["bleu"]
    streams: list[Any] = [[refs[0] for refs in REFERENCES], [REFERENCES[0][1], None, "Si."], [None, None, "Oui"]]
    expected = sacrebleu.corpus_bleu(HYPOTHESES, streams)
    assert result.score == expected.score
    assert result.precisions == tuple(expected.precisions)
    assert (result.brevity_penalty, result.hypothesis_length, result.reference_length) == (
        expected.bp,
        expected.sys_len,
        expected.ref_len,
    )
    assert result.signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_corpus_bleu_is_the_score_alone() -> None:
    assert corpus_bleu(HYPOTHESES, REFERENCES) == score(HYPOTHESES, REFERENCES)["bleu"].score


def test_chrf_and_ter_are_what_sacrebleu_says() -> None:
    refs = [refs[:1] for refs in REFERENCES]
    results = score(HYPOTHESES, refs, metrics=["chrf", "ter"])
    stream = [ref for (ref,) in refs]
    assert results["chrf"].score == sacrebleu.corpus_chrf(HYPOTHESES, [stream]).score
    assert results["ter"].score == sacrebleu.corpus_ter(HYPOTHESES, [stream]).score
    assert "nrefs:1" in results["chrf"].signature
    assert results["ter"].brevity_penalty is None


@pytest.mark.parametrize("name", list(METRICS))
def test_perfect_translations_have_the_best_score(name: str) -> None:
    result = score(HYPOTHESES, [["Non.", hyp] for hyp in HYPOTHESES], metrics=[name])[name]
    best = {"ter": 0, "bleu-d2l": 1}.get(name, 100)
    assert result.score == pytest.approx(best)
    assert result.sentence_scores == pytest.approx([best] * 3)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_no_score_exceeds_100(name: str) -> None:
    result = score(HYPOTHESES, [[hyp] for hyp in HYPOTHESES], metrics=[name])[name]
    assert max(result.score, *result.sentence_scores) <= 100


@pytest.mark.parametrize("name", list(METRICS))
@given(pairs=st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=2, max_size=5))
def test_the_score_does_not_depend_on_the_order_of_sentences(name: str, pairs: list[tuple[str, list[str]]]) -> None:
    forward, backward = (
        score([hyp for hyp, _ in some], [refs for _, refs in some], metrics=[name])[name]
        for some in (pairs, pairs[::-1])
    )
    assert forward.score == pytest.approx(backward.score)
    assert forward.sentence_scores == backward.sentence_scores[::-1]


@pytest.mark.parametrize("name", list(METRICS))
@given(hyp=sentences, refs=st.lists(sentences, min_size=1, max_size=3))
def test_a_sentence_has_its_score_in_whatever_company(name: str, hyp: str, refs: list[str]) -> None:
    alone = score([hyp], [refs], metrics=[name])[name]
    among = score([*HYPOTHESES, hyp], [*REFERENCES, refs], metrics=[name])[name]
    assert among.sentence_scores[-1] == alone.sentence_scores[0]


@given(st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_course_bleu_of_a_list_is_the_mean_over_the_best_references(pairs: list[tuple[str, list[str]]]) -> None:
    result = score([hyp for hyp, _ in pairs], [refs for _, refs in pairs], metrics=["bleu-d2l"])["bleu-d2l"]
    expected = [max(course_bleu(hyp.split(), ref.split(), 4) for ref in refs) for hyp, refs in pairs]
    assert result.sentence_scores == pytest.approx(expected)
    assert result.score == pytest.approx(sum(expected) / len(expected))


def test_course_bleu_of_one_sentence_shows_its_precisions() -> None:
    result = score(["A B B C D"], [["A B C D E F"]], metrics=["bleu-d2l"])["bleu-d2l"]
    assert result.precisions == (4 / 5, 3 / 4, 1 / 3, 0)
    assert (result.hypothesis_length, result.reference_length) == (5, 6)


def test_a_short_perfect_sentence_is_no_zero_in_bleu() -> None:
    assert score(["Oui"], [["Oui"]])["bleu"].sentence_scores == pytest.approx([100])


@pytest.mark.parametrize("name", list(METRICS))
@pytest.mark.parametrize("hyp", ["", " ", "\ud83d", "\x00"])
def test_any_text_can_be_scored(name: str, hyp: str) -> None:
    result = score([hyp], [["Oui."]], metrics=[name])[name]
    assert result.score == pytest.approx(100 if name == "ter" else 0)


def test_sentence_scores_can_be_left_out() -> None:
    for result in score(HYPOTHESES, REFERENCES, metrics=list(METRICS), sentence_scores=False).values():
        assert result.sentence_scores == ()


def test_scoring_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score(HYPOTHESES, REFERENCES, metrics=list(METRICS))
    assert caplog.records == []


def test_a_score_becomes_json() -> None:
    assert MetricScore(score=1.5, signature="s").to_json() == {
        "score": 1.5,
        "precisions": (),
        "brevity_penalty": None,
        "hypothesis_length": None,
        "reference_length": None,
        "signature": "s",
        "sentence_scores": (),
    }


@pytest.mark.parametrize(
    ("hypotheses", "references", "metrics", "field"),
    [
        ([], [], ["bleu"], "hypotheses"),
        ("Oui", [["Oui"]], ["bleu"], "hypotheses"),
        (["a", "b"], [["a"]], ["bleu"], "references"),
        (["a", "b"], [["a"], []], ["bleu"], r"references\[1\]"),
        (["a"], ["a"], ["bleu"], r"references\[0\]"),
        (["a"], [["a"]], [], "metrics"),
        (["a"], [["a"]], "bleu", "metrics"),
        (["a"], [["a"]], ["bleu", "rouge"], r"metrics\[1\] is 'rouge'; allowed is bleu or chrf or ter or bleu-d2l"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    hypotheses: list[str], references: list[list[str]], metrics: list[str], field: str
) -> None:
    with pytest.raises(InvalidValue, match=field):
        score(hypotheses, references, metrics=metrics)
