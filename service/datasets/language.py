"""Which language a side of a dataset seems to be written in. A guess: it warns, and refuses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pycld2

_TEXTS_PER_VOTE = 5  # short sentences alone are guessed wrong too often
_UNKNOWN = "un"
_SAME = {"nb": "no", "nn": "no", "cmn": "zh", "zh-hant": "zh", "iw": "he", "jw": "jv", "fil": "tl", "in": "id"}


def guess(texts: Sequence[str]) -> dict[str, Any]:
    """`language`, the code that most groups of texts were guessed to be, or None; `share`, how many of them."""
    votes: Counter[str] = Counter()
    for start in range(0, len(texts), _TEXTS_PER_VOTE):
        votes[_language_of(" ".join(texts[start : start + _TEXTS_PER_VOTE]))] += 1
    known = [(language, count) for language, count in votes.most_common() if language != _UNKNOWN]
    if not known:
        return {"language": None, "share": 0.0}
    language, count = known[0]
    return {"language": language, "share": round(count / votes.total(), 3)}


def warnings_about(declared: dict[str, str], guesses: dict[str, dict[str, Any]]) -> list[str]:
    """One for each side whose guess is another language than what was declared; one where the sides seem swapped."""
    found = {side: guess["language"] for side, guess in guesses.items() if guess["share"] > 0.5}
    wrong = {side: code for side, code in found.items() if _primary(code) != _primary(declared[side])}
    if len(wrong) == 2 and {_primary(code) for code in found.values()} == {_primary(c) for c in declared.values()}:
        return [f"source and target seem to be swapped: they look like {found['source']} and {found['target']}"]
    return [
        f"{side} was declared as {declared[side]} and looks like {code} ({guesses[side]['share']:.0%} of a sample)"
        for side, code in wrong.items()
    ]


def _primary(code: str) -> str:
    code = code.lower()
    return _SAME.get(code) or _SAME.get(code.split("-")[0]) or code.split("-")[0]


def _language_of(text: str) -> str:
    try:
        return str(pycld2.detect(text, bestEffort=True)[2][0][1]).lower()
    except pycld2.error:  # a character that it refuses, such as an unassigned one
        return _UNKNOWN
