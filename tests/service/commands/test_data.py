"""`recurra data`: what is printed and written; the checks themselves are in tests/service/datasets."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model.data.corpus import Pair, read_pairs
from model.errors import InvalidValue
from service.cli import app
from service.datasets.errors import UnusableData
from service.datasets.store import DatasetStore

TSV = b"Go.\tVa !\nI'm cold.\tJ'ai froid.\nGo.\tVa !\n"


@pytest.fixture
def recurra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`recurra("list")`: what `recurra data list` printed on standard output; its error raised."""
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path / "data"))

    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(app, ["data", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def url() -> Iterator[str]:
    """Where an archive is published."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("fra.txt", "Go.\tVa !\tCC-BY #1\n")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content.getvalue())))
            self.end_headers()
            self.wfile.write(content.getvalue())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/fra-eng.zip"
        server.shutdown()
        thread.join()


def test_what_is_downloaded_can_be_added_and_is_listed(recurra: Any, tmp_path: Path, url: str) -> None:
    out = recurra("download", "tatoeba-en-fr", "--url", url)
    path = tmp_path / "data" / "downloads" / "tatoeba-en-fr.tsv"
    digest = hashlib.sha256((path.parent / "fra-eng.zip").read_bytes()).hexdigest()
    assert f"fetched: fra-eng.zip, sha256 {digest}\n1 pairs: {path}\n" in out
    assert list(read_pairs(path)) == [Pair("Go.", "Va !")]
    assert recurra("download", "tatoeba-en-fr", "--url", url, "--sha256", digest).startswith("there already: ")
    recurra("add", "tatoeba", path, "--src", "en", "--tgt", "fr")
    assert recurra("list").splitlines()[1].split()[:3] == ["tatoeba", "en→fr", "1"]


def test_files_are_added_with_the_checks_of_an_upload(recurra: Any, tmp_path: Path) -> None:
    tsv, src, tgt = (tmp_path / name for name in ("pairs.tsv", "a.en", "a.fr"))
    tsv.write_bytes(gzip.compress(TSV))
    src.write_bytes(b"Go.\nI'm cold.\n")
    tgt.write_bytes(b"Va !\nJ'ai froid.\n")
    languages = ("--src", "en", "--tgt", "fr")
    out = recurra("add", "one", tsv, *languages)
    assert out.startswith("stored: one, sha256 ")
    assert out.endswith("3 pairs read, 2 kept, dropped: duplicate 1\n")
    recurra("add", "two", src, tgt, *languages)
    assert recurra("add", "two", tsv, *languages).startswith("there already: two")
    assert [dataset.num_pairs for dataset in DatasetStore(tmp_path / "data" / "datasets").list()] == [2, 2]
    tsv.write_bytes(b"no tab\n")
    with pytest.raises(UnusableData, match="pairs, line 1: there is no TAB"):
        recurra("add", "three", tsv, *languages)
    with pytest.raises(UnusableData, match="No such file"):
        recurra("add", "three", tmp_path / "missing", *languages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["download", "europarl"], "NAME is 'europarl'; allowed is tatoeba-en-XX"),
        (["download", "tatoeba-en-fr", "--sha256", "abc"], "--sha256 is 'abc'"),
        (["add", "../x", __file__, "--src", "en", "--tgt", "fr"], "name is '../x'"),
        (["add", "x", __file__], "source is ''"),
    ],
)
def test_a_wrong_argument_is_named(recurra: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        recurra(*arguments)
