"""From a published archive to a TSV file; where the archive comes from is in test_fetch."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from model.data.corpus import Pair, read_pairs
from model.errors import DataError, InvalidValue
from service.datasets import download as module
from service.datasets.download import corpus_named, download
from service.datasets.fetch import DownloadError

ROWS = "Go.\tVa !\tCC-BY 2.0 (France) #1\nI'm cold.\tJ'ai froid.\tCC-BY 2.0 (France) #2\n"
URL = "http://mirror/anki/fra-eng.zip"


def archive_of(members: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in members.items():
            packed.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return content.getvalue()


ARCHIVE = archive_of({"_about.txt": "by Tatoeba", "fra.txt": ROWS})
Publish = Callable[[bytes], list[str]]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish(content)`: what every address gives from now on; the addresses that were fetched."""

    def publishing(content: bytes) -> list[str]:
        urls: list[str] = []

        def fetching(url: str, path: Path, **_: object) -> None:
            urls.append(url)
            path.write_bytes(content)

        monkeypatch.setattr(module, "fetch", fetching)
        return urls

    return publishing


@pytest.mark.parametrize(
    ("name", "url", "is_reversed"),
    [
        ("tatoeba-en-fr", "https://www.manythings.org/anki/fra-eng.zip", False),
        ("tatoeba-de-en", "https://www.manythings.org/anki/deu-eng.zip", True),
    ],
)
def test_a_name_is_an_address_and_a_direction(name: str, url: str, is_reversed: bool) -> None:
    corpus = corpus_named(name)
    assert (corpus.url, corpus.is_reversed, corpus.file_name) == (url, is_reversed, url.rpartition("/")[2])


@pytest.mark.parametrize("name", ["", "tatoeba", "tatoeba-en-en", "tatoeba-fr-de", "tatoeba-en-xx", "../tatoeba-en-fr"])
def test_an_unknown_name_says_which_there_are(name: str) -> None:
    with pytest.raises(InvalidValue, match="tatoeba-en-XX or tatoeba-XX-en with XX one of af, ar"):
        corpus_named(name)


def test_another_address_may_have_another_language() -> None:
    assert corpus_named("tatoeba-en-eo", url="http://mirror/epo.zip?v=1").file_name == "epo.zip"


@pytest.mark.parametrize("name", ["tatoeba-en-fr", "tatoeba-fr-en"])
def test_an_archive_becomes_pairs_with_attribution_and_a_record(publish: Publish, tmp_path: Path, name: str) -> None:
    urls = publish(ARCHIVE)
    result = download(corpus_named(name, url=URL), tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    pairs = [Pair("Go.", "Va !"), Pair("I'm cold.", "J'ai froid.")]
    assert list(read_pairs(result.tsv_path)) == (pairs if name.endswith("fr") else [Pair(t, s) for s, t in pairs])
    assert result.tsv_path.read_text().count("CC-BY") == result.num_pairs == 2
    assert (folder / f"{name}.txt").read_text() == "by Tatoeba"
    digest = hashlib.sha256(ARCHIVE).hexdigest()
    assert (folder / "fra-eng.zip.sha256").read_text() == f"{digest}  fra-eng.zip\n"
    assert (result.sha256, urls) == (digest, [URL])
    assert len(list(folder.iterdir())) == 4


def test_what_is_there_already_is_not_fetched_again(publish: Publish, tmp_path: Path) -> None:
    urls = publish(ARCHIVE)
    first, second = (download(corpus_named("tatoeba-en-fr"), tmp_path) for _ in range(2))
    assert (first.is_fetched, second.is_fetched, len(urls)) == (True, False, 1)
    with pytest.raises(DownloadError, match="there already, but its sha256 is"):
        download(corpus_named("tatoeba-en-fr"), tmp_path, sha256="0" * 64)


def test_an_archive_that_was_altered_since_is_refused(publish: Publish, tmp_path: Path) -> None:
    publish(ARCHIVE)
    download(corpus_named("tatoeba-en-fr"), tmp_path)
    (tmp_path / "fra-eng.zip").write_bytes(ARCHIVE + b"!")
    with pytest.raises(DownloadError, match="is not what was fetched"):
        download(corpus_named("tatoeba-en-fr"), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "no ZIP archive that can be read"),
        (ARCHIVE[:-30], "no ZIP archive that can be read"),
        (ARCHIVE.replace(b"fra.txt", b"fra.tab"), "one .txt file with sentences was expected"),
        (archive_of({"a.txt": ROWS, "b.txt": ROWS}), "there is a.txt, b.txt"),
        (archive_of({"fra.txt": "a\tb\nno tab\n"}), "line 2: there is no TAB"),
        (archive_of({"fra.txt": "a\tb\n" * 2_000_000}), "more than 200 times its size"),
    ],
)
def test_what_is_no_archive_of_pairs_is_refused_and_leaves_no_half(
    publish: Publish, tmp_path: Path, content: bytes, message: str
) -> None:
    publish(content)
    with pytest.raises(DataError, match=message):
        download(corpus_named("tatoeba-en-fr"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fra-eng.zip", "fra-eng.zip.sha256"]
