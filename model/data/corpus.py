"""Sentence pairs: reading them from files, normalising them, and dropping the bad ones with a reason.

Refuses to know tokens: a word here is what stands between two spaces. Every fault of a file is a `DataError` that names
the file and the line.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from model.data.lines import open_text, read_lines
from model.errors import DataError, InvalidValue

_MAX_REPORT_EXAMPLES = 5

# Characters that print nothing and would only split the vocabulary: controls that are no white space, soft hyphen,
# zero-width space, direction marks, word joiner, BOM. The zero-width (non-)joiner stays: emoji and Persian need it.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Pair(NamedTuple):
    """A source sentence and its translation."""

    src: str
    tgt: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """A sentence of a dev or test set, with all its references."""

    src: str
    refs: tuple[str, ...]


def normalize(text: str) -> str:
    """One spelling for one text; normalising twice changes nothing more.

    NFC; every Unicode space (non-breaking, narrow, tab, line break) a plain one, runs of them collapsed, ends stripped;
    invisible characters removed. A lone surrogate, which no UTF-8 file can hold, becomes U+FFFD.
    """
    text = _SURROGATE.sub("\ufffd", _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", " ".join(text.split()))


def normalize_all(texts: Sequence[str]) -> list[str]:
    """`normalize` of each text, four times as fast: what few texts need is looked for in all of them at once."""
    if has_normal_characters(" ".join(texts)):
        return [" ".join(text.split()) for text in texts]
    return [normalize(text) for text in texts]


def has_normal_characters(text: str) -> bool:
    """Whether `normalize` would at most change spaces."""
    if not text.isprintable() and (_INVISIBLE.search(text) or _SURROGATE.search(text)):  # ten times as fast where it is
        return False
    return unicodedata.is_normalized("NFC", text)


def _lines_of(path: Path) -> Iterator[str]:
    with open_text(path) as stream:
        yield from read_lines(stream, path)


def parse_tsv(lines: Iterable[str], path: str | Path) -> Iterator[Pair]:
    """The pairs in lines of source TAB target; further columns are ignored. `path` is for the message of a fault."""
    for number, line in enumerate(lines, start=1):
        src, tab, rest = line.partition("\t")
        if tab:
            yield Pair(src, rest.partition("\t")[0])
        elif not line.strip():
            yield Pair("", "")
        else:
            raise DataError("there is no TAB; source TAB target was expected", path, number)


def align(
    src_lines: Iterator[str], tgt_lines: Iterator[str], src_path: str | Path, tgt_path: str | Path
) -> Iterator[Pair]:
    """The pairs of two files, line by line. Where one is longer it is read to its end, for the message."""
    for number, (src, tgt) in enumerate(zip_longest(src_lines, tgt_lines), start=1):
        if src is None or tgt is None:
            short, long = (src_path, tgt_path) if src is None else (tgt_path, src_path)
            num_lines = number + sum(1 for _ in (tgt_lines if src is None else src_lines))
            raise DataError(
                f"the file ends after {number - 1} lines, but {long} has {num_lines}: they are not aligned",
                short,
                number,
            )
        yield Pair(src, tgt)


def read_pairs(path: str | Path, *, tgt_path: str | Path | None = None) -> Iterator[Pair]:
    """Reads sentence pairs, one at a time, as they stand in the file; nothing is opened before the first is asked for.

    One file is TSV: source TAB target, further columns ignored. With `tgt_path`, two files of which line n belongs to
    line n. UTF-8 with or without BOM, plain or gzip. An empty line is a pair of empty texts, which `clean` counts.

    Raises:
        DataError: missing, unreadable or damaged file, wrong encoding, no TAB, or files of unequal length.
    """
    if tgt_path is None:
        return parse_tsv(_lines_of(Path(path)), path)
    return align(_lines_of(Path(path)), _lines_of(Path(tgt_path)), path, tgt_path)


def _texts(value: Any, key: str, path: Path, line: int) -> list[str]:
    """The texts under a key of a JSON line: one, or a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f'"{key}" must be a text or a list of texts', path, line)
    texts = [_SURROGATE.sub("\ufffd", text).strip() for text in texts]
    if not any(texts):
        raise DataError(f'"{key}" holds no text', path, line)
    return [text for text in texts if text]


def _parse_example(text: str, src_lang: str, tgt_lang: str, path: Path, line: int) -> Example:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"not JSON: {exc}", path, line) from exc
    if not isinstance(row, dict):
        raise DataError("a JSON object keyed by language codes was expected", path, line)
    refs_key = f"{tgt_lang}_refs" if f"{tgt_lang}_refs" in row else tgt_lang
    for key in (src_lang, refs_key):
        if key not in row:
            raise DataError(f'there is no "{key}"; the keys are {", ".join(sorted(row)) or "none"}', path, line)
    src = _texts(row[src_lang], src_lang, path, line)[0]
    return Example(src=src, refs=tuple(_texts(row[refs_key], refs_key, path, line)))


def _read_json_examples(path: Path, src_lang: str, tgt_lang: str) -> Iterator[Example]:
    for number, line in enumerate(_lines_of(path), start=1):
        if line.strip():
            yield _parse_example(line, src_lang, tgt_lang, path, number)


def _is_json_lines(path: Path) -> bool:
    return next((line.lstrip()[0] == "{" for line in _lines_of(path) if line.strip()), False)


def read_examples(
    path: str | Path, *, src_lang: str, tgt_lang: str, tgt_path: str | Path | None = None
) -> list[Example]:
    """Reads a dev or test set.

    JSON lines have the languages as keys, each a text or a list: `{"en": "Go.", "fr": ["Va !", "Pars !"]}`. Read the
    other way round, the source is the first of a list, and `"en_refs"`, where there is one, holds the references.
    Everything else is read as `read_pairs` does, with one reference each; pairs with an empty side are left out.

    Raises:
        DataError: as `read_pairs`; also a line that is not such JSON, and a file without a sentence.
    """
    path = Path(path)
    if tgt_path is None and _is_json_lines(path):
        examples = list(_read_json_examples(path, src_lang, tgt_lang))
    else:
        pairs = (Pair(src.strip(), tgt.strip()) for src, tgt in read_pairs(path, tgt_path=tgt_path))
        examples = [Example(src=src, refs=(tgt,)) for src, tgt in pairs if src and tgt]
    if not examples:
        raise DataError("the file holds no sentence with a reference", path)
    return examples


@dataclass(frozen=True, kw_only=True)
class CleaningRules:
    """What a pair must be to train on.

    `max_ratio` bounds the words of the longer side over those of the shorter. Of 159,969 English-French
    Tatoeba pairs 12 exceed 4, most of them too free to learn from ("It takes one to know one." "Toi-même."). Raise it
    for languages written without spaces.
    """

    max_words: int = 100
    max_ratio: float = 4.0
    drop_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise InvalidValue("max_words", self.max_words, "a whole number from 1")
        if not self.max_ratio >= 1:  # also refuses NaN
            raise InvalidValue("max_ratio", self.max_ratio, "a number from 1")

    def fault_of(self, src: str, tgt: str) -> str | None:
        """Why a pair of normalised texts is dropped; None where it may stay."""
        if not src or not tgt:
            return "empty"
        num_short, num_long = src.count(" ") + 1, tgt.count(" ") + 1  # words: one space stands between two
        if num_short > num_long:
            num_short, num_long = num_long, num_short
        if num_long > self.max_words:
            return "too_long"
        return "ratio" if num_long > self.max_ratio * num_short else None


# In the order in which a pair is judged; the first that holds is its cause.
_CAUSES = ("empty", "too_long", "ratio", "duplicate")


@dataclass(kw_only=True)
class CleaningReport:
    """How many pairs were dropped for which cause, with the first few of each."""

    num_read: int = 0
    num_kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_CAUSES, 0))
    examples: dict[str, list[Pair]] = field(default_factory=lambda: {cause: [] for cause in _CAUSES})

    def add(self, pair: Pair, cause: str) -> None:
        self.dropped[cause] += 1
        if len(self.examples[cause]) < _MAX_REPORT_EXAMPLES:
            self.examples[cause].append(pair)

    def to_json(self) -> dict[str, Any]:
        return {
            "num_read": self.num_read,
            "num_kept": self.num_kept,
            "dropped": dict(self.dropped),
            "examples": {cause: [list(pair) for pair in pairs] for cause, pairs in self.examples.items()},
        }

    def __str__(self) -> str:
        causes = ", ".join(f"{cause} {count:,}" for cause, count in self.dropped.items() if count)
        return f"{self.num_read:,} pairs read, {self.num_kept:,} kept, dropped: {causes or 'none'}"


def clean(pairs: Iterable[Pair], rules: CleaningRules | None = None) -> tuple[list[Pair], CleaningReport]:
    """Normalises pairs and keeps those that the rules allow, in their order; the first of equal pairs stays."""
    rules = rules or CleaningRules()
    report = CleaningReport()
    kept: list[Pair] = []
    seen: set[Pair] = set()
    for raw in pairs:
        report.num_read += 1
        pair = Pair(normalize(raw.src), normalize(raw.tgt))
        cause = rules.fault_of(pair.src, pair.tgt)
        if cause is None and rules.drop_duplicates and pair in seen:
            cause = "duplicate"
        if cause is not None:
            report.add(pair, cause)
            continue
        kept.append(pair)
        seen.add(pair)
    report.num_kept = len(kept)
    return kept, report
