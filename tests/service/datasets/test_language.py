"""Guesses of languages, and when they are worth a warning."""

from __future__ import annotations

import pytest

from service.datasets.language import guess, warnings_about

ENGLISH = ["I live in a small house at the edge of the town.", "She has been working there for ten years."]
FRENCH = ["J'habite dans une petite maison au bord de la ville.", "Elle y travaille depuis dix ans."]


def test_a_language_is_guessed_with_the_share_of_the_sample() -> None:
    assert guess(ENGLISH * 10) == {"language": "en", "share": 1.0}
    mixed = guess(FRENCH * 10 + ENGLISH * 5)
    assert mixed["language"] == "fr"
    assert 0.5 < mixed["share"] < 1


@pytest.mark.parametrize("texts", [[], ["1 2 3", "?!"], ["\ufffe\U000e0001"]])
def test_nothing_is_guessed_where_there_is_no_language(texts: list[str]) -> None:
    assert guess(texts)["language"] is None


@pytest.mark.parametrize(
    ("declared", "guessed", "expected"),
    [
        (("en", "fr"), ("en", "fr"), []),
        (("en-GB", "fr-CA"), ("en", "fr"), []),
        (("nb", "cmn"), ("no", "zh-Hant"), []),
        (("en", "fr"), (None, "fr"), []),
        (("en", "fr"), ("en", "de"), ["target was declared as fr and looks like de (90% of a sample)"]),
        (("en", "fr"), ("fr", "en"), ["source and target seem to be swapped: they look like fr and en"]),
    ],
)
def test_a_guess_that_contradicts_what_was_declared_is_a_warning(
    declared: tuple[str, str], guessed: tuple[str | None, str], expected: list[str]
) -> None:
    sides = ("source", "target")
    guesses = {
        side: {"language": code, "share": 0.9 if code else 0.0} for side, code in zip(sides, guessed, strict=True)
    }
    assert warnings_about(dict(zip(sides, declared, strict=True)), guesses) == expected


def test_a_guess_of_less_than_half_of_the_sample_is_no_warning() -> None:
    guesses = {"source": {"language": "de", "share": 0.4}, "target": {"language": "fr", "share": 1.0}}
    assert warnings_about({"source": "en", "target": "fr"}, guesses) == []
