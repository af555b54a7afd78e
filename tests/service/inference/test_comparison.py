"""Paired bootstrap over two systems' translations of one test set."""

from __future__ import annotations

import random
from typing import Any

import pytest

from model.bleu import corpus_bleu
from model.errors import InvalidValue
from service.inference.comparison import compare, translate_test_set

WORDS = [f"w{i}" for i in range(50)]


def sentences(num: int, seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [[rng.choice(WORDS) for _ in range(12)] for _ in range(num)]


def with_mistakes(texts: list[list[str]], rate: float, seed: int) -> list[str]:
    """Each word replaced with that probability."""
    rng = random.Random(seed)
    return [" ".join("x" if rng.random() < rate else word for word in words) for words in texts]


TEXTS = sentences(200, 1)
REFERENCES = [[" ".join(words)] for words in TEXTS]


def test_fewer_mistakes_are_better_and_that_is_no_chance() -> None:
    found = compare(with_mistakes(TEXTS, 0.3, 2), with_mistakes(TEXTS, 0.1, 3), REFERENCES)
    assert found.bleu_candidate > found.bleu_live
    assert found.p_value < 0.01
    assert found.is_better


def test_more_mistakes_are_significant_but_not_better() -> None:
    found = compare(with_mistakes(TEXTS, 0.1, 2), with_mistakes(TEXTS, 0.3, 3), REFERENCES)
    assert found.p_value < 0.01
    assert not found.is_better


def test_other_mistakes_at_the_same_rate_are_chance() -> None:
    found = compare(with_mistakes(TEXTS, 0.2, 2), with_mistakes(TEXTS, 0.2, 3), REFERENCES)
    assert found.p_value > 0.05
    assert not found.is_better


def test_equal_translations_differ_in_nothing() -> None:
    same = with_mistakes(TEXTS, 0.2, 2)
    found = compare(same, same, REFERENCES)
    assert (found.p_value, found.is_better) == (1.0, False)


def test_the_scores_are_those_of_corpus_bleu_whatever_the_number_of_references() -> None:
    references = [[*refs, "something else"] if i % 2 else list(refs) for i, refs in enumerate(REFERENCES)]
    live, candidate = with_mistakes(TEXTS, 0.3, 2), with_mistakes(TEXTS, 0.1, 3)
    found = compare(live, candidate, references)
    assert found.bleu_live == pytest.approx(corpus_bleu(live, references))
    assert found.bleu_candidate == pytest.approx(corpus_bleu(candidate, references))


def test_the_same_seed_gives_the_same_p_and_stands_in_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    live, candidate = with_mistakes(TEXTS, 0.22, 2), with_mistakes(TEXTS, 0.2, 3)
    p_values = [compare(live, candidate, REFERENCES, seed=seed).p_value for seed in (7, 7, 8)]
    assert p_values[0] == p_values[1] != p_values[2]
    assert "seed:7" in compare(live, candidate, REFERENCES, seed=7).signature


@pytest.mark.parametrize(
    ("baseline", "candidate", "references", "options", "field"),
    [
        ([], [], [], {}, "references"),
        (["a"], ["a", "b"], [["a"]], {}, "candidate"),
        (["a", "b"], ["a"], [["a"]], {}, "baseline"),
        (["a"], ["a"], [[]], {}, r"references\[0\]"),
        (["a"], ["a"], ["a"], {}, r"references\[0\]"),
        (["a"], ["a"], [["a"]], {"seed": 0}, "seed"),
        (["a"], ["a"], [["a"]], {"num_samples": 0}, "num_samples"),
    ],
)
def test_what_cannot_be_compared_is_named(
    baseline: Any, candidate: Any, references: Any, options: dict[str, int], field: str
) -> None:
    with pytest.raises(InvalidValue, match=f"^{field} is"):
        compare(baseline, candidate, references, **options)


def test_empty_translations_are_compared_too() -> None:
    found = compare([""] * 200, with_mistakes(TEXTS, 0.1, 3), REFERENCES)
    assert (found.bleu_live, found.is_better) == (0.0, True)


def test_a_test_set_is_translated_in_order() -> None:
    class Translator:
        def translate(self, texts: list[str], *, k: int) -> list[Any]:
            return [type("T", (), {"text": f"{text} {k}"}) for text in texts]

    assert translate_test_set(Translator(), ["a", "b"], k=3) == ["a 3", "b 3"]  # type: ignore[arg-type]
