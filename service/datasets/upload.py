"""An upload from its form to a published dataset; the rules of the form's fields are here."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.data.corpus import CleaningRules, Pair, align
from model.data.lines import open_text, read_lines
from model.errors import DataError, InvalidValue
from service.datasets.formats import UnpackLimit, UploadedFile
from service.datasets.intake import Intake
from service.datasets.parts import Part
from service.datasets.store import Dataset, DatasetStore, check_name

_FILES = ("pairs", "source_file", "target_file")
_FIELDS = ("name", "source", "target", "max_words", "max_ratio", *_FILES)
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def store_upload(parts: Iterable[Part], store: DatasetStore, limit: UnpackLimit) -> tuple[Dataset, bool]:
    """Reads a form to its end and publishes what it holds; True where that is new. Nothing is left of a failed one.

    Raises:
        InvalidValue: a field is missing, unknown, given twice or wrong.
        DataError: a file cannot be used.
        DatasetError: too much, the name is taken, or the form is broken.
    """
    with store.incoming() as folder:
        upload = _Upload(folder=folder, limit=limit)
        with closing(upload):
            for part in parts:
                upload.take(part)
            description = upload.finish()
        return store.publish(upload.result_folder, description)


def store_files(
    fields: Mapping[str, str], files: Mapping[str, Path], store: DatasetStore, limit: UnpackLimit
) -> tuple[Dataset, bool]:
    """`store_upload` of files on this machine; fields and files are named as in the form."""
    with ExitStack() as stack:
        parts = [
            Part(name=name, is_named_file=False, stream=io.BufferedReader(io.BytesIO(value.encode())))
            for name, value in fields.items()
        ]
        for name, path in files.items():
            try:
                stream = stack.enter_context(path.open("rb"))
            except OSError as exc:
                raise DataError(f"cannot be read: {exc.strerror}", path) from exc
            parts.append(Part(name=name, is_named_file=True, stream=stream))
        return store_upload(parts, store, limit)


@dataclass(kw_only=True)
class _Upload:
    """What is known of an upload so far. Fields may come in any order, but the rules of cleaning before the files."""

    folder: Path
    limit: UnpackLimit
    fields: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    format: str = ""
    intake: Intake | None = None

    @property
    def result_folder(self) -> Path:
        return self.folder / "result"

    @property
    def waiting_path(self) -> Path:
        """A file that has to wait for something that comes later in the form."""
        return self.folder / "waiting"

    def close(self) -> None:
        if self.intake is not None:
            self.intake.close()

    def take(self, part: Part) -> None:
        if part.name not in _FIELDS:
            raise InvalidValue(part.name[:80] or "a field", "given", "only " + ", ".join(_FIELDS))
        if part.name in self.fields or part.name in self.files:
            raise InvalidValue(part.name, "given twice", "a field that is given once")
        if part.name in _FILES:
            self._take_file(part)
        else:
            self.fields[part.name] = value = part.text()
            self._check(part.name, value)

    def finish(self) -> dict[str, Any]:
        for name in ("name", "source", "target"):
            if name not in self.fields:
                raise InvalidValue(name, "missing", "a value: this field is required")
        if self.intake is None or (self.waiting_path.exists() and self.format == "aligned"):
            given = ", ".join(self.files) or "missing"
            raise InvalidValue("pairs", given, "one file pairs, or two files source_file and target_file")
        if self.waiting_path.exists():
            with self.waiting_path.open("rb") as stream:
                self._add_pairs(UploadedFile("pairs", stream, self.limit))
            self.waiting_path.unlink()
        description = self.intake.finish(src_lang=self.fields["source"], tgt_lang=self.fields["target"])
        description["report"] = {"format": self.format, **description["report"]}
        return {"name": self.fields["name"], **description}

    def _check(self, name: str, value: str) -> None:
        if name == "name":
            check_name(value)
        elif name in ("source", "target") and not _LANGUAGE.fullmatch(value):
            raise InvalidValue(name, value, "a language code such as en, fr or pt-BR")
        elif name in ("max_words", "max_ratio"):
            if self.files:
                raise InvalidValue(
                    name, "given after the files", "before the files: they are cleaned while they arrive"
                )
            self._rules()

    def _rules(self) -> CleaningRules:
        options: dict[str, Any] = {}
        for name, kind, allowed in (
            ("max_words", int, "a whole number from 1"),
            ("max_ratio", float, "a number from 1"),
        ):
            if name in self.fields:
                try:
                    options[name] = kind(self.fields[name])
                except ValueError as exc:
                    raise InvalidValue(name, self.fields[name], allowed) from exc
        return CleaningRules(**options)

    def _take_file(self, part: Part) -> None:
        """A file that came empty and without a name is a field that a browser's form left out."""
        file = UploadedFile(part.name, part.stream, self.limit)
        if file.is_empty and not part.is_named_file:
            return
        if self.files and "pairs" in (part.name, *self.files):
            given = ", ".join((*self.files, part.name))
            raise InvalidValue(part.name, given, "one file pairs, or two files source_file and target_file")
        self.files.append(part.name)
        if self.intake is None:
            self.result_folder.mkdir()
            self.intake = Intake(self.result_folder, self._rules())
        if part.name == "pairs":
            self._take_pairs(file)
        elif len(self.files) == 1:
            self.format = "aligned"
            self._keep_lines(file)
        else:
            self._align(file)

    def _take_pairs(self, file: UploadedFile) -> None:
        self.format = "tmx" if file.is_tmx else "tsv"
        if not file.is_tmx or {"source", "target"} <= self.fields.keys():
            self._add_pairs(file)
            return
        with self.waiting_path.open("wb") as out:  # which of its languages are meant comes later
            while block := file.stream.read1():
                out.write(block)

    def _add_pairs(self, file: UploadedFile) -> None:
        assert self.intake is not None
        src_lang, tgt_lang = self.fields.get("source", ""), self.fields.get("target", "")
        self.intake.add(file.pairs(src_lang=src_lang, tgt_lang=tgt_lang))

    def _keep_lines(self, file: UploadedFile) -> None:
        """The first of two files, checked as it comes; its pairs can be made when the second comes."""
        with self.waiting_path.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(f"{line}\n" for line in file.lines())

    def _align(self, file: UploadedFile) -> None:
        assert self.intake is not None
        with open_text(self.waiting_path) as stream:
            waiting = read_lines(stream, self.files[0])
            self.intake.add(self._aligned(waiting, file.lines()))
        self.waiting_path.unlink()

    def _aligned(self, first: Iterator[str], second: Iterator[str]) -> Iterator[Pair]:
        if self.files[0] == "source_file":
            return align(first, second, *self.files)
        return align(second, first, *reversed(self.files))
