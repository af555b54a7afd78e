"""Reading, normalising and cleaning of sentence pairs."""

from __future__ import annotations

import bz2
import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.corpus import CleaningRules, Example, Pair, clean, normalize, read_examples, read_pairs
from model.errors import DataError, InvalidValue

TINY = Path(__file__).parents[2] / "data"
TSV = "Go.\tVa !\nI'm cold.\tJ'ai froid.\n"
PAIRS = [Pair("Go.", "Va !"), Pair("I'm cold.", "J'ai froid.")]

any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t\ufeff"))


def written(tmp_path: Path, content: str | bytes, name: str = "corpus.tsv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Va\u202f!", "Va !"),
        ("Va\u00a0!", "Va !"),
        ("a\u2003\u3000b", "a b"),
        ("  a\t b\r\n\u2028c ", "a b c"),
        ("e\u0301te\u0301", "été"),
        ("e\x00\u0301", "é"),
        ("a\x07\x1b\x7f\u200b\ufeff\u00ad\u202eb", "ab"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
        ("a\ud83d b", "a\ufffd b"),
        ("\x00\u200b \n", ""),
    ],
    ids=[
        "narrow-nbsp",
        "nbsp",
        "wide-spaces",
        "line-breaks",
        "nfc",
        "nfc-after-removal",
        "invisible",
        "joined-emoji-stays",
        "lone-surrogate",
        "nothing-left",
    ],
)
def test_normalize_gives_one_spelling(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(any_text)
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@given(any_text)
def test_normalized_text_is_nfc_with_single_spaces_and_can_be_written(text: str) -> None:
    normalized = normalize(text)
    normalized.encode("utf-8")
    assert unicodedata.is_normalized("NFC", normalized)
    assert normalized == " ".join(normalized.split())


# read_pairs


@pytest.mark.parametrize(
    "content",
    [
        TSV.encode(),
        TSV.rstrip("\n").encode(),
        TSV.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + TSV.encode(),
        gzip.compress(TSV.encode()),
        gzip.compress(TSV.encode()[:9]) + gzip.compress(TSV.encode()[9:]),
        gzip.compress(b"\xef\xbb\xbf" + TSV.replace("\n", "\r\n").encode()),
        TSV.replace("\n", "\tCC-BY 2.0 (France) Attribution: tatoeba.org #1\tmore\n").encode(),
    ],
    ids=["plain", "no-last-newline", "crlf", "bom", "gzip", "two-gzip-members", "gzip-bom-crlf", "more-columns"],
)
@pytest.mark.parametrize("name", ["corpus.tsv", "corpus.tsv.gz", "corpus"])
def test_pairs_are_read_whatever_the_packing_and_the_name(tmp_path: Path, content: bytes, name: str) -> None:
    assert list(read_pairs(written(tmp_path, content, name))) == PAIRS


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_two_aligned_files_pair_line_by_line(tmp_path: Path, pack: type[bytes]) -> None:
    src = written(tmp_path, pack(b"Go.\n\nI'm cold.\n"), "a.en")
    tgt = written(tmp_path, "Va !\nRien.\nJ'ai froid.", "a.fr")
    assert list(read_pairs(src, tgt_path=tgt)) == [PAIRS[0], Pair("", "Rien."), PAIRS[1]]


@given(st.lists(st.tuples(plain_text, plain_text).filter(lambda pair: any(text.strip() for text in pair))))
def test_what_is_written_as_tsv_is_read_back_as_it_stands(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    content = "".join(f"{src}\t{tgt}\n" for src, tgt in pairs)
    assert list(read_pairs(written(tmp_path_factory.mktemp("tsv"), content))) == pairs


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a\u2028b\x85c\x0bd\te\n")
    assert list(read_pairs(path)) == [Pair("a\u2028b\x85c\x0bd", "e")]


def test_a_blank_line_is_an_empty_pair(tmp_path: Path) -> None:
    assert list(read_pairs(written(tmp_path, "a\tb\n\n  \nc\td\n"))) == [("a", "b"), ("", ""), ("", ""), ("c", "d")]


def test_an_empty_file_holds_no_pair(tmp_path: Path) -> None:
    assert list(read_pairs(written(tmp_path, ""))) == []


@pytest.mark.parametrize(
    ("content", "line", "cause"),
    [
        ("a\tb\nFête\tFête\n".encode("latin-1"), 2, "not UTF-8 (byte 0xea at column 2)"),
        (b"a\tb\n\xed\xa0\xbd\tb\n", 2, "not UTF-8"),
        (b"a\tb\nno tab here\n", 2, "no TAB"),
        (b"a\tb\rc\td\r", 1, "carriage return"),
        (b"a\t" + b"b" * (1 << 20), 1, "longer than"),
        (gzip.compress(b"a\t" + b"b" * (1 << 21)), 1, "longer than"),
        (TSV.encode("utf-16"), None, "UTF-16"),
        (bz2.compress(TSV.encode()), None, "bzip2"),
        (b"PK\x03\x04 and so on", None, "ZIP"),
    ],
    ids=["latin-1", "surrogate", "no-tab", "old-mac", "long-line", "gzip-bomb", "utf-16", "bzip2", "zip"],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line_and_cause(
    tmp_path: Path, content: bytes, line: int | None, cause: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        list(read_pairs(path))
    assert (caught.value.path, caught.value.line) == (path, line)
    assert cause in str(caught.value)


def test_a_cut_off_gzip_file_is_refused_at_the_line_of_the_cut(tmp_path: Path) -> None:
    lines = "".join(f"{i * 7919 % 1009}\t{i * 104729 % 10007}\n" for i in range(5000)).encode()
    path = written(tmp_path, gzip.compress(lines)[:-2000])
    pairs: list[Pair] = []
    with pytest.raises(DataError, match="cut off") as caught:
        pairs.extend(read_pairs(path))
    assert len(pairs) > 0
    assert caught.value.line == len(pairs) + 1


def test_a_gzip_file_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(TSV.encode()))
    packed[-6] ^= 0xFF
    with pytest.raises(DataError, match="damaged"):
        list(read_pairs(written(tmp_path, bytes(packed))))


@pytest.mark.parametrize(("num_src", "num_tgt"), [(3, 5), (5, 3), (0, 1)])
def test_files_of_unequal_length_are_refused_with_the_shorter_one(tmp_path: Path, num_src: int, num_tgt: int) -> None:
    src = written(tmp_path, "a\n" * num_src, "a.en")
    tgt = written(tmp_path, "b\n" * num_tgt, "a.fr")
    with pytest.raises(DataError, match="not aligned") as caught:
        list(read_pairs(src, tgt_path=tgt))
    assert caught.value.path == (src if num_src < num_tgt else tgt)
    assert caught.value.line == min(num_src, num_tgt) + 1


@pytest.mark.parametrize(
    ("name", "cause"), [("missing.tsv", "no such file"), (".", "directory"), ("a\0b", "cannot be read")]
)
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        list(read_pairs(tmp_path / name))


# read_examples


def test_examples_have_all_references_in_either_direction(tmp_path: Path) -> None:
    row = {"en": "Go.", "fr": ["Va !", "Pars !"], "en_refs": ["Go.", "Leave."]}
    path = written(tmp_path, json.dumps(row) + "\n\n")
    assert read_examples(path, src_lang="en", tgt_lang="fr") == [Example(src="Go.", refs=("Va !", "Pars !"))]
    assert read_examples(path, src_lang="fr", tgt_lang="en") == [Example(src="Va !", refs=("Go.", "Leave."))]


def test_a_single_text_is_a_single_reference(tmp_path: Path) -> None:
    path = written(tmp_path, '{"en": "Go.", "fr": "Va !"}\n')
    assert read_examples(path, src_lang="fr", tgt_lang="en") == [Example(src="Va !", refs=("Go.",))]


def test_examples_of_a_tsv_file_have_one_reference_each_and_no_empty_side(tmp_path: Path) -> None:
    path = written(tmp_path, TSV + "\na\t \n")
    examples = [Example(src=pair.src, refs=(pair.tgt,)) for pair in PAIRS]
    assert read_examples(path, src_lang="en", tgt_lang="fr") == examples


def test_examples_of_two_files_may_begin_with_a_brace(tmp_path: Path) -> None:
    src, tgt = written(tmp_path, "{a}\n", "a.en"), written(tmp_path, "{b}\n", "a.fr")
    assert read_examples(src, src_lang="en", tgt_lang="fr", tgt_path=tgt) == [Example(src="{a}", refs=("{b}",))]


def test_a_lone_surrogate_of_a_json_escape_can_be_written_again(tmp_path: Path) -> None:
    path = written(tmp_path, '{"en": "a \\ud83d", "fr": ["b \\ud83d\\ude00"]}\n')
    assert read_examples(path, src_lang="en", tgt_lang="fr") == [Example(src="a \ufffd", refs=("b \U0001f600",))]


@pytest.mark.parametrize(
    ("content", "line", "cause"),
    [
        ('{"en": "a", "fr": ["b"]}\n{"en": \n', 2, "not JSON"),
        ('{"en": "a", "fr": ["b"]}\n[1]\n', 2, "a JSON object"),
        ('{"en": "a", "de": ["b"]}\n', 1, 'no "fr"; the keys are de, en'),
        ('{"en": "a", "fr": [1]}\n', 1, '"fr" must be a text'),
        ('{"en": null, "fr": ["b"]}\n', 1, '"en" must be a text'),
        ('{"en": "a", "fr": []}\n', 1, '"fr" holds no text'),
        ('{"en": " ", "fr": ["b"]}\n', 1, '"en" holds no text'),
        ('{"en": ' + "[" * 100_000 + "\n", 1, "not JSON"),
        ("\n\n", None, "no sentence"),
        ("", None, "no sentence"),
    ],
)
def test_examples_that_cannot_be_used_are_refused_with_their_line(
    tmp_path: Path, content: str, line: int | None, cause: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(written(tmp_path, content), src_lang="en", tgt_lang="fr")
    assert caught.value.line == line
    assert cause in str(caught.value)


# clean


def test_each_dropped_pair_is_counted_under_the_first_cause_that_holds() -> None:
    kept = Pair("a b", "c d e")
    empty, long, lopsided = Pair("\u00a0", "x " * 9), Pair("a", "b " * 9), Pair("a", "b c d e")
    pairs, report = clean([kept, empty, long, lopsided, kept, empty], CleaningRules(max_words=8, max_ratio=3.0))
    assert pairs == [kept]
    assert (report.num_read, report.num_kept) == (6, 1)
    assert report.dropped == {"empty": 2, "too_long": 1, "ratio": 1, "duplicate": 1}
    assert report.examples["ratio"] == [lopsided]
    assert str(report) == "6 pairs read, 1 kept, dropped: empty 2, too_long 1, ratio 1, duplicate 1"


def test_the_rules_allow_their_own_bounds() -> None:
    pair = Pair("a b", "a b c d e f")
    assert clean([pair], CleaningRules(max_words=6, max_ratio=3.0))[0] == [pair]


def test_pairs_that_differ_in_spelling_only_are_duplicates() -> None:
    pairs = [Pair("Go!", "Va\u202f!"), Pair(" Go!", "Va !")]
    assert clean(pairs)[0] == [Pair("Go!", "Va !")]
    assert clean(pairs, CleaningRules(drop_duplicates=False))[0] == [Pair("Go!", "Va !")] * 2


def test_one_source_with_two_translations_is_no_duplicate() -> None:
    pairs = [Pair("Go!", "Va !"), Pair("Go!", "Pars !")]
    assert clean(pairs)[0] == pairs


def test_the_report_shows_a_few_examples_of_a_cause_and_survives_json() -> None:
    _, report = clean([Pair("a", "b")] * 100)
    data = json.loads(json.dumps(report.to_json()))
    assert data["dropped"]["duplicate"] == 99
    assert data["examples"]["duplicate"] == [["a", "b"]] * 5


@given(st.lists(st.builds(Pair, any_text, any_text)), st.booleans())
def test_cleaning_loses_no_pair_from_its_books_and_cleans_once_for_all(pairs: list[Pair], drop: bool) -> None:
    rules = CleaningRules(max_words=3, max_ratio=2.0, drop_duplicates=drop)
    kept, report = clean(pairs, rules)
    assert report.num_read == len(pairs) == report.num_kept + sum(report.dropped.values())
    assert clean(kept, rules)[0] == kept


@pytest.mark.parametrize("rules", [{"max_words": 0}, {"max_ratio": 0.5}, {"max_ratio": float("nan")}])
def test_rules_that_no_pair_could_meet_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(rules))):
        CleaningRules(**rules)  # type: ignore[arg-type]


# the project's own data


def test_the_tiny_corpus_is_clean_and_shares_nothing_with_its_dev_set() -> None:
    pairs, report = clean(read_pairs(TINY / "tiny.en-fr.tsv"))
    dev = read_examples(TINY / "tiny-dev.en-fr.jsonl", src_lang="en", tgt_lang="fr")
    assert report.num_kept == report.num_read == 120
    assert {1, 2, 3} == {len(example.refs) for example in dev}
    assert {pair.src for pair in pairs}.isdisjoint(example.src for example in dev)
    assert {pair.tgt for pair in pairs}.isdisjoint(ref for example in dev for ref in example.refs)
