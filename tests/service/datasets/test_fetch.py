"""Downloads from a server of this test, which breaks off, changes its file, or knows no ranges, as it is told."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.datasets.fetch import DownloadError, fetch

CONTENT = random.Random(1).randbytes(300_000)


class FileServer(http.server.ThreadingHTTPServer):
    """Serves one file. `requests` has what each request asked for: its Range and If-Range."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.mark = {"ETag": '"1"'}
        self.knows_ranges = True
        self.statuses: list[int] = []  # of the next requests, before one is answered
        self.breaks_at: list[int] = []  # bytes of the next answers after which the connection is closed
        self.requests: list[tuple[str | None, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/fra-eng.zip"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked, if_range = self.headers.get("Range"), self.headers.get("If-Range")
        self.server.requests.append((asked, if_range))
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        content, start = self.server.content, 0
        is_partial = self.server.knows_ranges and asked and if_range in self.server.mark.values()
        if is_partial:
            start = int(str(asked).removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if is_partial else 200)
        if is_partial:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in self.server.mark.items():
            self.send_header(name, value)
        self.end_headers()
        stop = start + self.server.breaks_at.pop(0) if self.server.breaks_at else len(content)
        self.wfile.write(content[start:stop])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fra-eng.zip"


def fetched(server: FileServer, path: Path, **options: Any) -> list[float]:
    """Fetches; the pauses that were made between attempts."""
    pauses: list[float] = []
    fetch(server.url, path, pause=pauses.append, **options)
    assert path.read_bytes() == server.content
    assert list(path.parent.iterdir()) == [path]
    return pauses


def break_off(server: FileServer, path: Path, num_bytes: int = 100_000) -> None:
    """A download that five times in a row came no further."""
    server.breaks_at = [num_bytes, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="run it again to go on"):
        fetch(server.url, path, pause=lambda _: None)
    assert not path.exists()
    assert path.with_name("fra-eng.zip.part").stat().st_size == num_bytes
    server.requests.clear()


def test_a_file_is_fetched_with_progress(server: FileServer, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert fetched(server, path, on_progress=lambda *place: seen.append(place)) == []
    assert (seen[0], seen[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert server.requests == [(None, None)]


@pytest.mark.parametrize("mark", [{"ETag": '"1"'}, {"Last-Modified": "Tue, 03 Nov 2026 10:00:00 GMT"}])
def test_an_attempt_that_breaks_off_goes_on_where_it_was(server: FileServer, path: Path, mark: dict[str, str]) -> None:
    server.mark = mark
    server.breaks_at = [100_000, 50_000]
    assert fetched(server, path) == [1.0, 2.0]
    value = next(iter(mark.values()))
    assert server.requests == [(None, None), ("bytes=100000-", value), ("bytes=150000-", value)]


def test_a_later_call_goes_on_where_an_earlier_one_ended(server: FileServer, path: Path) -> None:
    break_off(server, path)
    seen: list[int] = []
    fetched(server, path, on_progress=lambda num_bytes, _: seen.append(num_bytes))
    assert server.requests == [("bytes=100000-", '"1"')]
    assert seen[0] == 100_000


def test_another_version_of_the_file_starts_over(server: FileServer, path: Path) -> None:
    break_off(server, path)
    server.content, server.mark = CONTENT[::-1], {"ETag": '"2"'}
    fetched(server, path)


def test_a_server_that_knows_no_ranges_starts_over(server: FileServer, path: Path) -> None:
    break_off(server, path)
    server.knows_ranges = False
    fetched(server, path)


@pytest.mark.parametrize("mark", [{}, {"ETag": 'W/"1"'}])
def test_without_a_mark_that_tells_versions_apart_it_starts_over(
    server: FileServer, path: Path, mark: dict[str, str]
) -> None:
    server.mark = mark
    server.breaks_at = [100_000]
    fetched(server, path)
    assert server.requests == [(None, None)] * 2


def test_what_came_from_another_address_is_not_gone_on_with(server: FileServer, path: Path) -> None:
    break_off(server, path)
    fetch(server.url + "?mirror", path)
    assert server.requests == [(None, None)]
    assert path.read_bytes() == CONTENT


def test_more_than_the_file_has_starts_over(server: FileServer, path: Path) -> None:
    break_off(server, path)
    path.with_name("fra-eng.zip.part").write_bytes(CONTENT + b"more")
    fetched(server, path)


def test_a_server_that_is_busy_is_asked_again(server: FileServer, path: Path) -> None:
    server.statuses = [503, 429]
    assert fetched(server, path) == [1.0, 2.0]


def test_a_refusal_is_told_at_once(server: FileServer, path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadError, match="answers 404 Not Found"):
        fetch(server.url, path)
    assert len(server.requests) == 1
    assert list(path.parent.iterdir()) == []


def test_a_server_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(DownloadError, match="5 times"):
        fetch("http://127.0.0.1:9/x", path, pause=lambda _: None)
    with pytest.raises(DownloadError, match="protocol"):
        fetch("nowhere", path)


def test_a_checksum_is_checked_and_a_wrong_file_not_kept(server: FileServer, path: Path) -> None:
    with pytest.raises(DownloadError, match="allowed is 000"):
        fetch(server.url, path, sha256="0" * 64)
    assert list(path.parent.iterdir()) == []
    fetched(server, path, sha256=hashlib.sha256(CONTENT).hexdigest().upper())


def test_two_processes_do_not_fetch_one_file_together(server: FileServer, path: Path) -> None:
    with path.with_name("fra-eng.zip.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process"):
            fetch(server.url, path)
    assert server.requests == []
