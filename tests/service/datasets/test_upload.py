"""From a form to a stored dataset, in this process."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.corpus import CleaningRules, Pair, clean
from model.data.statistics import CorpusStatistics
from model.errors import InvalidValue
from service.datasets.errors import BrokenForm, DatasetError, DiskFull, UnusableData, UploadTooLarge, told_apart
from service.datasets.formats import UnpackLimit
from service.datasets.intake import Intake
from service.datasets.parts import Form
from service.datasets.store import DatasetStore
from service.datasets.upload import store_upload

PAIRS = [Pair("Go.", "Va !"), Pair("I'm cold.", "J'ai froid."), Pair("Fête & <co>", "Fête")]
TSV = "".join(f"{src}\t{tgt}\n" for src, tgt in PAIRS).encode()
SRC, TGT = ("".join(f"{text}\n" for text in side).encode() for side in zip(*PAIRS, strict=True))
TMX = (
    '<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4"><header/><body>\n'
    + "".join(
        f'<tu><tuv xml:lang="EN-us"><seg>{src}</seg></tuv><tuv xml:lang="fr"><seg>{tgt}</seg></tuv></tu>\n'
        for src, tgt in ((s.replace("&", "&amp;").replace("<", "&lt;"), t) for s, t in PAIRS)
    )
    + "</body></tmx>"
)
DIRTY = TSV + b"\n \t \nGo.\tVa !\textra column\nGo .\tVa\xe2\x80\xaf!\na\tb c d e f\n" + b"w " * 101 + b"\tx\n"

text = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=12)


@pytest.mark.parametrize(
    "files",
    [
        {"pairs": TSV},
        {"pairs": b"\xef\xbb\xbf" + TSV.replace(b"\n", b"\r\n")},
        {"pairs": gzip.compress(TSV)},
        {"source_file": SRC, "target_file": gzip.compress(TGT)},
        {"target_file": TGT, "source_file": SRC},
        {"pairs": TMX.encode()},
        {"pairs": gzip.compress(TMX.encode())},
        {"pairs": TMX.encode("utf-16")},
        {"pairs": b"\xef\xbb\xbf" + TMX.encode()},
    ],
    ids=["tsv", "dos", "gzip", "aligned", "target-first", "tmx", "tmx-gzip", "tmx-utf-16", "tmx-bom"],
)
@pytest.mark.parametrize("files_first", [False, True])
def test_the_same_pairs_are_the_same_dataset_however_they_are_sent(
    send: Any, files: dict[str, bytes], files_first: bool
) -> None:
    first, _ = send(pairs=TSV, name="first")
    dataset, is_new = send(**files, files_first=files_first)
    assert list(dataset.pairs()) == PAIRS
    assert (dataset.sha256, is_new) == (first.sha256, True)


def test_pairs_are_cleaned_by_the_rules_of_the_corpus_and_counted(send: Any) -> None:
    lines = [line.split("\t") for line in DIRTY.decode().split("\n")[:-1]]
    expected, report = clean(Pair(line[0], line[1]) if len(line) > 1 else Pair("", "") for line in lines)
    dataset, _ = send(pairs=DIRTY)
    assert list(dataset.pairs()) == expected
    shown = report.to_json()
    shown["examples"]["too_long"] = [[shown["examples"]["too_long"][0][0][:200], "x"]]
    assert {name: dataset.report[name] for name in shown} == json.loads(json.dumps(shown))
    statistics = CorpusStatistics.from_pairs(expected, names=("en", "fr")).to_json()
    assert dataset.report["statistics"] == json.loads(json.dumps(statistics))
    assert dataset.num_bytes == (dataset.folder / "pairs.tsv").stat().st_size


@settings(max_examples=50)
@given(st.lists(st.builds(Pair, text, text), max_size=40), st.floats(1, 3), st.integers(1, 4))
def test_cleaning_in_two_passes_keeps_what_cleaning_in_memory_keeps(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair], max_ratio: float, max_words: int
) -> None:
    rules = CleaningRules(max_ratio=max_ratio, max_words=max_words)
    pairs = [*pairs, *pairs[::2], Pair("x", "y")]
    expected, report = clean(pairs, rules)
    folder = tmp_path_factory.mktemp("intake")
    intake = Intake(folder, rules)
    intake.add(pairs)
    found = intake.finish(src_lang="en", tgt_lang="fr")
    assert (folder / "pairs.tsv").read_bytes().decode() == "".join(f"{src}\t{tgt}\n" for src, tgt in expected)
    assert found["num_pairs"] == len(expected)
    assert found["report"]["dropped"] == report.dropped
    assert [path.name for path in folder.iterdir()] == ["pairs.tsv"]


def test_rules_of_cleaning_can_be_set(send: Any) -> None:
    dataset, _ = send(pairs=DIRTY, max_ratio="8.5", max_words="200")
    assert dataset.report["dropped"] == {"empty": 2, "too_long": 0, "ratio": 1, "duplicate": 1}
    assert dataset.report["rules"] == {"max_words": 200, "max_ratio": 8.5}


def test_another_language_than_was_declared_is_a_warning(send: Any) -> None:
    german = (
        "Ich wohne in einem kleinen Haus am Rande der Stadt.\tJ'habite dans une petite maison au bord de la ville.\n"
    )
    dataset, _ = send(pairs=german.encode())
    assert dataset.report["languages"]["source"] == {"language": "de", "share": 1.0}
    assert dataset.report["warnings"] == ["source was declared as en and looks like de (100% of a sample)"]


@pytest.mark.parametrize(
    ("given", "field", "allowed"),
    [
        ({"name": None}, "name", "required"),
        ({"target": None}, "target", "required"),
        ({"name": "../x"}, "name", "a-z"),
        ({"name": "Upper"}, "name", "a-z"),
        ({"name": "x" * 65}, "name", "1 to 64"),
        ({"source": "english"}, "source", "language code"),
        ({"surprise": "1"}, "surprise", "only name, source"),
        ({"max_words": "many"}, "max_words", "whole number"),
        ({"max_ratio": "nan"}, "max_ratio", "from 1"),
        ({"pairs": None}, "pairs", "one file pairs, or two"),
        ({"pairs": None, "source_file": SRC}, "pairs", "one file pairs, or two"),
        ({"source_file": SRC}, "source_file", "one file pairs, or two"),
    ],
)
def test_a_wrong_field_is_named(send: Any, is_empty: Any, given: dict[str, Any], field: str, allowed: str) -> None:
    files = {} if given.get("pairs", b"") is None else {"pairs": TSV}
    with pytest.raises(InvalidValue) as refusal:
        send(**{**files, **{name: value for name, value in given.items() if name != "pairs"}})
    assert refusal.value.field == field
    assert allowed in refusal.value.allowed
    assert is_empty()


def test_a_rule_after_the_files_is_refused(send: Any, is_empty: Any) -> None:
    with pytest.raises(InvalidValue, match="before the files"):
        send(pairs=TSV, max_words="9", files_first=True)
    assert is_empty()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pairs": b"a\tb\nF\xeate\tx\n"}, "pairs, line 2: not UTF-8 (byte 0xea at column 2)"),
        ({"source_file": b"a\n\xff\n", "target_file": b"a\nb\n"}, "source_file, line 2: not UTF-8 (byte 0xff"),
        ({"pairs": b"a\tb\nno tab\n"}, "pairs, line 2: there is no TAB"),
        ({"pairs": TSV.decode().encode("utf-16")}, "this is UTF-16"),
        ({"pairs": b"PK\x03\x04 and so on"}, "ZIP"),
        ({"pairs": gzip.compress(random.Random(1).randbytes(9000).hex().encode())[:-2000]}, "cut off"),
        ({"pairs": gzip.compress(TSV)[:-8] + b"12345678"}, "damaged"),
        ({"source_file": b"a\n" * 3, "target_file": b"b\n" * 5}, "ends after 3 lines, but target_file has 5"),
        ({"source_file": b"a\n" * 7, "target_file": b"b\n" * 5}, "ends after 5 lines, but source_file has 7"),
        ({"target_file": b"a\n" * 7, "source_file": b"b\n" * 5}, "ends after 5 lines, but target_file has 7"),
        ({"pairs": b"\n\n"}, "no pair is left"),
        ({"pairs": b""}, "no pair is left"),
        ({"pairs": b"a\t" + b"b" * (1 << 20)}, "longer than"),
        (
            {"pairs": TMX.replace("fr", "de").encode()},
            "no unit has both en and fr; the languages are en-us (3), de (3)",
        ),
        ({"pairs": TMX.encode()[:-20]}, "the file ends in the middle"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_cause(
    send: Any, is_empty: Any, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(UnusableData) as refusal:
        send(**files)
    assert message in str(refusal.value)
    assert is_empty()


@pytest.mark.parametrize("files_first", [False, True])
def test_a_bomb_is_refused_by_its_ratio(send: Any, is_empty: Any, files_first: bool) -> None:
    bomb = gzip.compress((b"a" * 5000 + b"\tb\n") * 3200)  # 16 MB in 16 KB
    with pytest.raises(UploadTooLarge, match="200 times its size"):
        send(pairs=bomb, files_first=files_first)
    assert is_empty()


def test_what_unpacks_to_more_than_the_limit_is_refused_with_the_setting(send: Any, is_empty: Any) -> None:
    with pytest.raises(UploadTooLarge, match="RECURRA_MAX_DATASET_UNPACKED_BYTES"):
        send(pairs=gzip.compress(TSV), max_bytes=len(TSV) - 1)
    assert is_empty()
    assert send(pairs=gzip.compress(TSV), max_bytes=len(TSV))[1]


def test_a_full_disk_is_told_and_leaves_nothing(send: Any, is_empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.datasets.intake.PAIRS_FILE", "/dev/full")
    with pytest.raises(DiskFull, match="no room"):
        send(pairs=TSV)
    assert is_empty()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_a_form_that_breaks_off_leaves_nothing(
    store: DatasetStore, make_form: Any, is_empty: Callable[[], bool], share: float
) -> None:
    body, boundary = make_form({"name": "a", "source": "en", "target": "fr"}, {"pairs": TSV * 20_000})
    cut = io.BytesIO(body[: int(len(body) * share)])
    with pytest.raises(BrokenForm, match="broken off"):
        store_upload(Form(cut, boundary).parts(), store, UnpackLimit(max_bytes=10**9))
    assert is_empty()


def test_a_file_field_that_a_browser_left_empty_counts_as_not_given(store: DatasetStore, make_form: Any) -> None:
    body, boundary = make_form({"name": "a", "source": "en", "target": "fr"}, {"pairs": TSV})
    head = b'--%s\r\nContent-Disposition: form-data; name="source_file"; filename=""\r\n\r\n\r\n' % boundary
    parts = Form(io.BytesIO(head + body), boundary).parts()
    assert list(store_upload(parts, store, UnpackLimit(max_bytes=10**9))[0].pairs()) == PAIRS


def test_the_same_name_with_other_content_is_refused_and_keeps_what_was_there(send: Any, store: DatasetStore) -> None:
    send(pairs=TSV)
    with pytest.raises(DatasetError, match="other content"):
        send(pairs=TSV + b"More.\tPlus.\n")
    assert list(store.get("small").pairs()) == PAIRS


def test_the_same_name_and_content_is_no_second_dataset(send: Any) -> None:
    first, is_new = send(pairs=TSV)
    again, is_new_again = send(pairs=gzip.compress(TSV + TSV))
    assert (is_new, is_new_again) == (True, False)
    assert again == first


def test_errors_of_a_file_keep_their_field(send: Any) -> None:
    with pytest.raises(UnusableData) as refusal, told_apart():
        send(pairs=b"a\tb\n\xff")
    assert (refusal.value.field, refusal.value.value) == ("pairs", "line 2")


def test_nothing_of_the_work_is_left_beside_the_dataset(send: Any, store: DatasetStore) -> None:
    dataset, _ = send(source_file=SRC, target_file=TGT)
    assert sorted(path.name for path in dataset.folder.iterdir()) == ["dataset.json", "pairs.tsv"]
    assert list((Path(store.root) / ".incoming").iterdir()) == []
