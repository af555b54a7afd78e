"""Fetches sentence pairs of Tatoeba from where they are published, and makes a TSV of them.

    FOLDER/fra-eng.zip            as it was published
    FOLDER/fra-eng.zip.sha256     its checksum, in the form that `sha256sum -c` reads
    FOLDER/fra-eng.zip.part       a download that was broken off, and .part.json, which version of the file it is
    FOLDER/tatoeba-en-fr.tsv      source TAB target TAB attribution
    FOLDER/tatoeba-en-fr.txt      licence and attribution, as published

The site publishes no checksums: what was fetched once is recorded, and a caller can ask for a certain one.
"""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from model.data.lines import read_lines
from model.errors import DataError, InvalidValue
from model.files import sha256_of, write_atomically
from service.datasets.fetch import DownloadError, fetch

HOME = "https://www.manythings.org/anki"
# ISO 639-1 code → what the site calls it. Pairs are always with English.
LANGUAGES = {
    "af": "afr", "ar": "ara", "az": "aze", "be": "bel", "bg": "bul", "bn": "ben", "ca": "cat", "cs": "ces", "da": "dan",
    "de": "deu", "el": "ell", "es": "spa", "et": "est", "eu": "eus", "fi": "fin", "fr": "fra", "he": "heb", "hi": "hin",
    "hr": "hrv", "hu": "hun", "id": "ind", "is": "isl", "it": "ita", "ja": "jpn", "ka": "kat", "ko": "kor", "lt": "lit",
    "lv": "lvs", "mk": "mkd", "mr": "mar", "ms": "zsm", "nb": "nob", "nl": "nld", "pl": "pol", "pt": "por", "ro": "ron",
    "ru": "rus", "sk": "slk", "sl": "slv", "sq": "sqi", "sr": "srp", "sv": "swe", "th": "tha", "tl": "tgl", "tr": "tur",
    "uk": "ukr", "vi": "vie", "zh": "cmn",
}  # fmt: skip
_NAME = re.compile(r"tatoeba-(?:en-(?P<other>[a-z]{2,3})|(?P<first>[a-z]{2,3})-en)")
_ABOUT = "_about.txt"
_MAX_RATIO = 200  # text packs to a third or a tenth; what unpacks to more than this is a bomb


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One direction of a language pair, and where it is published."""

    name: str
    url: str
    is_reversed: bool  # English is the target

    @property
    def file_name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """`sha256` is the archive's."""

    tsv_path: Path
    sha256: str
    num_pairs: int
    is_fetched: bool


def corpus_named(name: str, *, url: str = "") -> Corpus:
    """Raises InvalidValue for a name that is not `tatoeba-en-XX` or `tatoeba-XX-en`, or an unknown language."""
    found = _NAME.fullmatch(name)
    other = (found["other"] or found["first"]) if found else ""
    if not found or other == "en" or (not url and other not in LANGUAGES):
        allowed = f"tatoeba-en-XX or tatoeba-XX-en with XX one of {', '.join(LANGUAGES)}"
        raise InvalidValue("NAME", name, allowed)
    return Corpus(name=name, url=url or f"{HOME}/{LANGUAGES[other]}-eng.zip", is_reversed=bool(found["first"]))


def download(
    corpus: Corpus, folder: Path, *, sha256: str = "", on_progress: Callable[[int, int | None], None] | None = None
) -> Downloaded:
    """Fetches the archive, unless it is there already, and unpacks it.

    Args:
        sha256: what the archive's has to be.
        on_progress: called with the bytes that are there, and how many there will be, where the server says.

    Raises:
        DownloadError: the server cannot be reached, refuses, or sends something else than was asked for.
        DataError: what came is no archive of sentence pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / (corpus.file_name or "archive.zip")
    record = archive.with_name(f"{archive.name}.sha256")
    is_fetched = not _is_there(archive, record, sha256)
    if is_fetched:
        fetch(corpus.url, archive, sha256=sha256, on_progress=on_progress)
        write_atomically(record, f"{sha256_of(archive)}  {archive.name}\n".encode())
    num_pairs = _unpack(archive, folder / f"{corpus.name}.tsv", is_reversed=corpus.is_reversed)
    digest = record.read_text().split()[0]
    return Downloaded(tsv_path=folder / f"{corpus.name}.tsv", sha256=digest, num_pairs=num_pairs, is_fetched=is_fetched)


def _is_there(archive: Path, record: Path, sha256: str) -> bool:
    """Whether the archive was fetched before, whole, and is the one that is asked for."""
    if not archive.is_file() or not record.is_file():
        return False
    digest = sha256_of(archive)
    if digest != record.read_text().split()[0]:
        raise DownloadError(f"{archive} is not what was fetched: its sha256 is {digest}; remove it to fetch it again")
    if sha256 and digest != sha256.lower():
        raise DownloadError(f"{archive} is there already, but its sha256 is {digest}; allowed is {sha256}")
    return True


def _unpack(archive: Path, tsv_path: Path, *, is_reversed: bool) -> int:
    """The archive's sentences as TSV, whole or not at all; how many pairs."""
    try:
        with zipfile.ZipFile(archive) as packed:
            member = _sentences_in(packed, archive)
            with cast(zipfile.ZipExtFile, packed.open(member)) as stream:
                rows = _rows(read_lines(stream, f"{archive}/{member}"), archive, is_reversed=is_reversed)
                num_pairs = _write_lines(tsv_path, rows)
            if _ABOUT in packed.namelist():
                write_atomically(tsv_path.with_suffix(".txt"), packed.read(_ABOUT))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as exc:  # the last two: encrypted
        raise DataError(
            f"this is no ZIP archive that can be read ({exc}); remove it to fetch it again", archive
        ) from exc
    return num_pairs


def _sentences_in(packed: zipfile.ZipFile, archive: Path) -> str:
    texts = [info for info in packed.infolist() if info.filename.endswith(".txt") and info.filename != _ABOUT]
    if len(texts) != 1:
        names = ", ".join(packed.namelist()[:10]) or "nothing"
        raise DataError(f"one .txt file with sentences was expected; there is {names}", archive)
    if texts[0].file_size > _MAX_RATIO * max(texts[0].compress_size, 1):
        raise DataError(f"{texts[0].filename} unpacks to more than {_MAX_RATIO} times its size", archive)
    return texts[0].filename


def _rows(lines: Iterable[str], archive: Path, *, is_reversed: bool) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise DataError("there is no TAB; English TAB the other language was expected", archive, number)
        if is_reversed:
            columns[:2] = columns[1], columns[0]
        yield "\t".join(columns) + "\n"


def _write_lines(path: Path, lines: Iterable[str]) -> int:
    num_lines = 0
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", newline="\n",
                                     delete=False) as out:  # fmt: skip
        try:
            for line in lines:
                out.write(line)
                num_lines += 1
            out.flush()
            os.fsync(out.fileno())
            Path(out.name).chmod(0o644)
            Path(out.name).replace(path)
        finally:
            Path(out.name).unlink(missing_ok=True)
    return num_lines
