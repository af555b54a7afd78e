"""The public class: texts in, texts out, in their layout, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import InvalidValue, Translator
from model.decoding.search import Hypothesis, SegmentResult


@pytest.fixture(scope="module")
def translator(tiny_checkpoint: Path) -> Translator:
    return Translator.load(tiny_checkpoint, device="cpu", precision="fp32")


def test_a_text_gives_a_translation_and_a_list_a_list(translator: Translator) -> None:
    single = translator.translate("Hello.", k=2)
    assert translator.translate(["Hello.", "I am here."], k=2)[0] == single
    assert translator.translate([], k=2) == []


@pytest.mark.parametrize("k", [1, 4])
def test_a_list_is_translated_as_one_by_one(translator: Translator, k: int) -> None:
    texts = ["I am cold.", "She sleeps.", "Where is the cat now?", "", "No!", "We eat bread and drink water."] * 3
    assert [t.text for t in translator.translate(texts, k=k)] == [translator.translate(x, k=k).text for x in texts]


@pytest.mark.parametrize("blank", ["", " ", "\n", "\t\n  \n", "\u00a0"])
def test_a_blank_text_comes_back_as_it_is(translator: Translator, blank: str) -> None:
    assert translator.translate(blank).text == blank


def test_line_breaks_spaces_and_empty_lines_are_kept(translator: Translator) -> None:
    prepared = translator.prepare("  Hello.\n\nI am here. She sleeps.\r\nNo! \n")
    ids = tuple(translator.tgt_tokenizer.encode("Oui."))
    yes = SegmentResult(hypotheses=(Hypothesis(token_ids=ids, log_prob=-1.0, score=-0.5, finish="eos"),), num_steps=3)
    translation = translator.finish(prepared, [yes] * len(prepared.segments))
    assert translation.text == "  Oui.\n\nOui. Oui.\r\nOui. \n"
    assert translation.log_prob == -4.0


def test_sentences_of_a_line_are_translated_on_their_own_and_joined(translator: Translator) -> None:
    first, second = (translator.translate(text, k=3).text for text in ("I am cold.", "She sleeps."))
    assert translator.translate("I am cold. She sleeps.", k=3).text == f"{first} {second}"


@pytest.mark.parametrize(
    "text", ["🙂", "\ud83d", "\x00\x01", "日本語", "a" * 5000, "word " * 700, "\u202e", "...", "<unk>", "</s>"]
)
def test_strange_text_is_translated_to_some_text(translator: Translator, text: str) -> None:
    translation = translator.translate(text, k=2, max_length=20)
    translation.text.encode()


@pytest.mark.parametrize("text", ["🙂", "日本語", "🙂 🙂\n日本"])
def test_a_text_without_one_known_token_is_copied(translator: Translator, text: str) -> None:
    assert translator.translate(text, k=2).text == text


def test_n_best_gives_alternatives_best_first(translator: Translator) -> None:
    translation = translator.translate("Hello.", k=4, n_best=3)
    scores = [translation.score, *(a.score for a in translation.alternatives)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_a_prefix_starts_the_translation(translator: Translator) -> None:
    assert translator.translate("Hello.", k=2, prefix="Bon").text.startswith("Bon")


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"k": 10_000}, {"beam": 5}, {"search": "best"}, {"search": "greedy", "k": 2}]
)
def test_a_wrong_option_is_refused(translator: Translator, options: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        translator.translate("Hello.", **options)


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"precision": "int1"}])
def test_a_wrong_device_or_precision_is_refused(tiny_checkpoint: Path, options: dict[str, str]) -> None:
    with pytest.raises(InvalidValue):
        Translator.load(tiny_checkpoint, **options)


def test_automatic_precision_is_one_of_those_there_are(tiny_checkpoint: Path) -> None:
    assert Translator.load(tiny_checkpoint, device="cpu").precision in {"fp32", "bf16"}
