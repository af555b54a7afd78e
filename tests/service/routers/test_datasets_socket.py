"""What only a real socket shows of an upload: a caller that goes in the middle, and a refusal before its end."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings

TIMEOUT_SECONDS = 30.0
FIELDS = {"name": "small", "source": "en", "target": "fr"}
FILE = {"pairs": ("pairs.tsv", b"Go.\tVa !\n")}


@pytest.fixture
def client(make_translator: Any, listen: Any, tmp_path: Path) -> Iterator[httpx.Client]:
    (tmp_path / "models" / "en-fr").mkdir(parents=True)
    settings = Settings(checkpoints=tmp_path / "models", data=tmp_path / "data", max_uploads=1)
    with listen(create_app(settings, load=lambda *_, **__: make_translator())) as http:
        yield http


def begin_upload(client: httpx.Client, content: bytes) -> socket.socket:
    """A connection that has sent the first part of an upload of 100 MB."""
    fields = "".join(f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in FIELDS.items())
    head = "POST /datasets HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    head += "Content-Length: 100000000\r\n\r\n"
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=TIMEOUT_SECONDS)
    connection.sendall(head.encode() + fields.encode())
    connection.sendall(b'--b\r\nContent-Disposition: form-data; name="pairs"; filename="x"\r\n\r\n' + content)
    return connection


def wait_for(condition: Any) -> None:
    ends_at = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.005)


def is_begun(folder: Path) -> bool:
    return any((folder / "data" / "datasets").glob(".incoming/*/result/candidates"))


def test_a_caller_that_goes_in_the_middle_leaves_nothing(client: httpx.Client, tmp_path: Path) -> None:
    with begin_upload(client, b"Go.\tVa !\n" * 100_000):
        wait_for(lambda: is_begun(tmp_path))
    wait_for(lambda: 'outcome="cancelled",route="/datasets"' in client.get("/metrics").text)
    assert list((tmp_path / "data" / "datasets" / ".incoming").iterdir()) == []
    assert client.get("/datasets").json() == {"datasets": []}
    assert client.post("/datasets", data=FIELDS, files=FILE).status_code == 201


def test_a_fault_is_told_before_the_rest_is_sent(client: httpx.Client) -> None:
    with begin_upload(client, b"Go.\tVa !\nno tab\n" * 20_000) as connection:
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"line 2: there is no TAB" in answer


def test_more_uploads_than_allowed_are_refused_at_once_and_the_others_go_on(
    client: httpx.Client, tmp_path: Path
) -> None:
    with begin_upload(client, b"Go.\tVa !\n" * 100_000):
        wait_for(lambda: is_begun(tmp_path))
        refused = client.post("/datasets", data=FIELDS, files=FILE)
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_uploads")
        assert int(refused.headers["retry-after"]) > 0
        assert is_begun(tmp_path)
