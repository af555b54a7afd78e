"""Datasets on disk: one folder a dataset, put there whole by a rename.

    datasets/tatoeba/dataset.json    name, languages, counts and the report; written last
    datasets/tatoeba/pairs.tsv       the cleaned pairs: source TAB target, UTF-8
    datasets/.incoming/…             what is being made or removed; its maker holds a lock on it

Several processes may use one folder. The same pairs under two names are one file with two links.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.corpus import Pair, read_pairs
from model.errors import InvalidValue
from model.files import sync, write_json
from service.datasets.errors import DatasetExists, UnknownDataset

PAIRS_FILE = "pairs.tsv"

_FORMAT_VERSION = 1
_DESCRIPTION = "dataset.json"
_INCOMING = ".incoming"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # what a rename to a folder that is not empty says
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAME_RULE = "1 to 64 of a-z, 0-9, dot, dash and underscore, the first a letter or digit"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A stored dataset. `sha256` is that of its pairs, `created_at` is in Unix seconds."""

    name: str
    sha256: str
    src_lang: str
    tgt_lang: str
    num_pairs: int
    num_bytes: int
    created_at: float
    report: dict[str, Any]
    folder: Path

    def pairs(self) -> Iterator[Pair]:
        """The cleaned pairs, one at a time."""
        return read_pairs(self.folder / PAIRS_FILE)

    def has_content_of(self, other: Dataset) -> bool:
        return (self.sha256, self.src_lang, self.tgt_lang) == (other.sha256, other.src_lang, other.tgt_lang)


class DatasetStore:
    """The datasets in a folder, which is made when the first one comes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, name: str) -> Dataset:
        """Raises InvalidValue for what cannot be a name, else UnknownDataset."""
        check_name(name)
        try:
            return _load(self.root / name)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            known = ", ".join(dataset.name for dataset in self.list()[:20]) or "none"
            message = f"there is no dataset {name!r}; there is {known}"
            raise UnknownDataset(message, field="dataset", value=name, allowed=f"one of {known}") from exc

    def list(self) -> list[Dataset]:
        """By name. A folder that is no dataset is left out."""
        if not self.root.is_dir():
            return []
        found = []
        for folder in sorted(self.root.iterdir()):
            with suppress(OSError, ValueError, KeyError, TypeError):
                found.append(_load(folder))
        return found

    def delete(self, name: str) -> None:
        """Raises InvalidValue or UnknownDataset. Whoever reads the pairs at this moment reads them to the end."""
        self.get(name)
        with self.incoming() as trash:
            try:
                (self.root / name).rename(trash / name)
            except FileNotFoundError as exc:  # another process was faster
                raise UnknownDataset(f"there is no dataset {name!r}", field="dataset", value=name) from exc

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A folder to work in, removed at the end unless it was published."""
        parent = self.root / _INCOMING
        parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _locked_folder(parent)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def publish(self, folder: Path, description: dict[str, Any]) -> tuple[Dataset, bool]:
        """Makes a folder with its pairs the dataset that `description` names; True where it is new.

        Where there is one of this name and content already, that is the answer.

        Raises:
            DatasetExists: the name is taken by other content.
        """
        facts = {"format_version": _FORMAT_VERSION, "created_at": round(time.time(), 3), **description}
        self._share(folder, facts["sha256"])
        write_json(folder / _DESCRIPTION, facts)
        sync(folder)
        made = _of(facts, folder)
        while True:
            try:
                folder.rename(self.root / made.name)
            except OSError as exc:
                if exc.errno not in _TAKEN:
                    raise
                existing = self._taken_by(made.name)
                if existing is not None:
                    return _same(existing, made), False
            else:
                sync(self.root)
                return self.get(made.name), True

    def names_with_content_of(self, dataset: Dataset) -> Sequence[str]:
        """Other names of the same pairs."""
        return [other.name for other in self.list() if other.sha256 == dataset.sha256 and other.name != dataset.name]

    def sweep(self) -> int:
        """Removes what dead processes left half-made; returns how many folders. Those in use are locked, and stay."""
        num_removed = 0
        for folder in sorted((self.root / _INCOMING).glob("*")):
            try:
                lock = os.open(folder, os.O_RDONLY)
            except OSError:
                continue  # gone by itself
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                num_removed += 1
            except BlockingIOError:
                pass
            finally:
                os.close(lock)
        return num_removed

    def _taken_by(self, name: str) -> Dataset | None:
        """The dataset of this name; None where it was deleted meanwhile."""
        try:
            return self.get(name)
        except UnknownDataset:
            if (self.root / name).exists():
                message = f"there is something called {name!r} among the datasets that is none; choose another name"
                raise DatasetExists(message, field="name", value=name, allowed="a name that is free") from None
            return None

    def _share(self, folder: Path, sha256: str) -> None:
        """Lets the pairs be those of a dataset that has the same, where the file system knows links."""
        for twin in self.list():
            if twin.sha256 == sha256:
                linked = folder / f"{PAIRS_FILE}.linked"
                with suppress(OSError):
                    linked.hardlink_to(twin.folder / PAIRS_FILE)
                    linked.replace(folder / PAIRS_FILE)
                return


def check_name(name: str) -> None:
    """Raises InvalidValue for what is no name of a dataset, `../x` among it."""
    if not _NAME.fullmatch(name):
        raise InvalidValue("name", name, _NAME_RULE)


def _same(existing: Dataset, made: Dataset) -> Dataset:
    if existing.has_content_of(made):
        return existing
    message = (
        f"there is a dataset {made.name!r} with other content ({existing.num_pairs:,} pairs "
        f"{existing.src_lang}-{existing.tgt_lang}); choose another name, or delete it first"
    )
    raise DatasetExists(message, field="name", value=made.name, allowed="a name that is free")


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else a sweep took it before it was locked
            folder.chmod(0o755)  # mkdtemp keeps it to its owner; training may run as another user
            return folder, lock
        os.close(lock)


def _load(folder: Path) -> Dataset:
    facts = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    if facts["format_version"] != _FORMAT_VERSION:
        raise ValueError(f"format {facts['format_version']}")
    return _of({**facts, "name": folder.name}, folder)


def _of(facts: dict[str, Any], folder: Path) -> Dataset:
    return Dataset(
        name=facts["name"],
        sha256=facts["sha256"],
        src_lang=facts["source"],
        tgt_lang=facts["target"],
        num_pairs=facts["num_pairs"],
        num_bytes=facts["num_bytes"],
        created_at=facts["created_at"],
        report=facts["report"],
        folder=folder,
    )
