"""Fetches one file over HTTP: goes on where it was broken off, tries again, and is there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx

from model.errors import RecurraError
from model.files import sha256_of, write_json

_NUM_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 1.0
_TIMEOUT_SECONDS = 30.0
_HEADERS = {"User-Agent": "recurra", "Accept-Encoding": "identity"}  # else the bytes that come are not the file's
_WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)

Progress = Callable[[int, int | None], None]


class DownloadError(RecurraError):
    """A file could not be fetched; the message names its address and the cause."""


class _TryAgain(Exception):
    """What may be over in a moment."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    on_progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fetches `url` to `path`.

    What came of a file before it broke off stays beside it, with the mark (ETag or date) of the version that it is of.
    The next call asks for the rest of that same version (`Range` with `If-Range`); another version, or a server that
    knows no ranges, starts it over.

    Args:
        sha256: what the file's has to be; with another it is not kept.
        on_progress: called with the bytes that are there, and how many there will be, where the server says.
        pause: waits so many seconds before the next attempt.

    Raises:
        DownloadError: another process fetches this file, the server refuses or breaks off time and again, or the
            checksum is wrong.
    """
    with (
        _locked(path.with_name(f"{path.name}.part")) as part,
        httpx.Client(follow_redirects=True, timeout=_TIMEOUT_SECONDS) as client,
    ):
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            try:
                _continue(client, url, part, on_progress or (lambda *_: None))
                break
            except (_TryAgain, httpx.TransportError) as exc:
                if attempt == _NUM_ATTEMPTS:
                    cause = str(exc) or type(exc).__name__
                    raise DownloadError(f"{url}: {cause}, {attempt} times; run it again to go on from there") from exc
                pause(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
                raise DownloadError(f"{url}: {exc}") from exc
        _check(url, part, sha256)
        part.replace(path)
        _mark_path(part).unlink(missing_ok=True)


@contextmanager
def _locked(part: Path) -> Iterator[Path]:
    """The file of what came so far, for this process alone."""
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise DownloadError(f"{part}: another process is fetching this file") from exc
        try:
            yield part
        finally:
            if part.exists() and part.stat().st_size == 0:  # nothing to go on with
                part.unlink()
                _mark_path(part).unlink(missing_ok=True)


def _continue(client: httpx.Client, url: str, part: Path, on_progress: Progress) -> None:
    """One request for what is missing. Raises DownloadError; _TryAgain or a transport error where a retry may help."""
    num_bytes = part.stat().st_size
    mark = _mark_of(part, url) if num_bytes else ""
    headers = {**_HEADERS, "Range": f"bytes={num_bytes}-", "If-Range": mark} if mark else _HEADERS
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status == 416:  # all of it is here, or more than there is
            part.write_bytes(b"")
            raise _TryAgain("the server has no such range")
        if status in _WORTH_A_RETRY:
            raise _TryAgain(f"the server answers {status} {response.reason_phrase}")
        if status not in (200, 206) or (status == 206 and not mark):
            raise DownloadError(f"{url}: the server answers {status} {response.reason_phrase}")
        start, total = _place_of(response)
        if status == 206 and start != num_bytes:
            raise DownloadError(f"{url}: the server answers with another range than was asked for")
        _note_mark(part, url, response)
        with part.open("r+b") as out:
            out.truncate(start)
            out.seek(start)
            _receive(response, out, start, total, on_progress)


def _receive(response: httpx.Response, out: BinaryIO, start: int, total: int | None, on_progress: Progress) -> None:
    num_bytes = start
    on_progress(num_bytes, total)
    for piece in response.iter_raw():  # as it comes: what is gathered to a larger piece is lost when it breaks off
        out.write(piece)
        num_bytes += len(piece)
        on_progress(num_bytes, total)
    out.flush()
    os.fsync(out.fileno())
    if total is not None and num_bytes != total:
        raise _TryAgain(f"only {num_bytes:,} of {total:,} bytes came")


def _place_of(response: httpx.Response) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is."""
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", "").strip())
        if not found:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdecimal() else None


def _mark_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _note_mark(part: Path, url: str, response: httpx.Response) -> None:
    """What tells this version of the file from others. A weak ETag is of no use: its bytes may differ."""
    etag = response.headers.get("etag", "")
    mark = etag if etag and not etag.startswith("W/") else response.headers.get("last-modified", "")
    write_json(_mark_path(part), {"url": url, "mark": mark})


def _mark_of(part: Path, url: str) -> str:
    try:
        noted = json.loads(_mark_path(part).read_text(encoding="utf-8"))
        return str(noted["mark"]) if noted["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _check(url: str, part: Path, sha256: str) -> None:
    digest = sha256_of(part)
    if sha256 and digest != sha256.lower():
        part.unlink()
        _mark_path(part).unlink(missing_ok=True)
        raise DownloadError(f"{url}: the sha256 of what came is {digest}; allowed is {sha256}. It was not kept")
