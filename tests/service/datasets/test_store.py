"""Datasets on disk: whole or not at all, by name, for several processes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from model.errors import InvalidValue
from service.datasets.errors import DatasetExists, UnknownDataset
from service.datasets.store import DatasetStore

TSV = b"Go.\tVa !\nI'm cold.\tJ'ai froid.\n"


def test_an_empty_store_needs_no_folder(store: DatasetStore) -> None:
    assert store.list() == []
    assert store.sweep() == 0
    assert not store.root.exists()


def test_datasets_are_listed_by_name_and_read_back_by_another_store(send: Any, store: DatasetStore) -> None:
    made = [send(pairs=TSV, name=name)[0] for name in ("b", "a.1")]
    assert DatasetStore(store.root).list() == made[::-1]
    assert DatasetStore(store.root).get("b") == made[0]
    assert (made[0].src_lang, made[0].tgt_lang, made[0].num_pairs) == ("en", "fr", 2)


@pytest.mark.parametrize("name", ["", ".", "..", "../b", "a/b", ".incoming", "-a", "A", "é", "a\n", "a" * 65])
def test_what_is_no_name_is_refused_everywhere(store: DatasetStore, name: str) -> None:
    for refuse in (store.get, store.delete):
        with pytest.raises(InvalidValue, match="name is"):
            refuse(name)


def test_an_unknown_name_says_which_there_are(send: Any, store: DatasetStore) -> None:
    send(pairs=TSV, name="b")
    for refuse in (store.get, store.delete):
        with pytest.raises(UnknownDataset, match="there is b"):
            refuse("c")


def test_a_deleted_dataset_is_gone_and_its_name_free_while_a_reader_reads_on(send: Any, store: DatasetStore) -> None:
    pairs = send(pairs=TSV)[0].pairs()
    first = next(pairs)
    store.delete("small")
    assert store.list() == []
    assert [first, *pairs] == [("Go.", "Va !"), ("I'm cold.", "J'ai froid.")]
    assert send(pairs=b"a\tb\n")[1]


def test_the_same_pairs_under_two_names_lie_on_the_disk_once(send: Any, store: DatasetStore) -> None:
    first, second = (send(pairs=TSV, name=name)[0] for name in "ab")
    assert (first.folder / "pairs.tsv").samefile(second.folder / "pairs.tsv")
    assert store.names_with_content_of(first) == ["b"]
    store.delete("a")
    assert len(list(second.pairs())) == 2


def test_the_same_pairs_in_other_languages_are_other_content(send: Any) -> None:
    send(pairs=TSV)
    with pytest.raises(DatasetExists, match="en-fr"):
        send(pairs=TSV, target="de")


@pytest.mark.parametrize("content", [None, "", "{}", '{"format_version": 2}', "[1]"])
def test_a_folder_that_is_no_dataset_is_left_out_and_not_overwritten(
    send: Any, store: DatasetStore, content: str | None
) -> None:
    folder = store.root / "small"
    folder.mkdir(parents=True)
    (folder / "note").touch()
    if content is not None:
        (folder / "dataset.json").write_text(content)
    assert store.list() == []
    with pytest.raises(DatasetExists, match="none"):
        send(pairs=TSV)
    assert (folder / "note").exists()


def test_a_sweep_removes_what_the_dead_left_and_spares_what_is_in_use(store: DatasetStore) -> None:
    leftover = store.root / ".incoming" / "x"
    leftover.mkdir(parents=True)
    (leftover / "candidates").touch()
    with store.incoming() as live:
        assert DatasetStore(store.root).sweep() == 1
        assert live.exists()
    assert list((store.root / ".incoming").iterdir()) == []


def test_a_folder_that_a_sweep_takes_before_it_is_locked_is_made_again(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    truly_open, num_sweeps = os.open, 0

    def open_late(*args: Any) -> int:
        nonlocal num_sweeps
        if num_sweeps == 0:
            num_sweeps = 1
            monkeypatch.setattr(os, "open", truly_open)
            handle = truly_open(*args)
            num_sweeps = store.sweep()
            return handle
        return truly_open(*args)

    (store.root / ".incoming").mkdir(parents=True)
    monkeypatch.setattr(os, "open", open_late)
    with store.incoming() as folder:
        assert num_sweeps == 1
        assert folder.exists()
