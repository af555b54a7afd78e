"""What only a real socket shows: a caller that goes, a body that is refused half-way, and what is no HTTP."""

from __future__ import annotations

import json
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


@pytest.fixture
def translator(make_translator: Any) -> Any:
    return make_translator(is_held=True)


@pytest.fixture
def client(translator: Any, listen: Any, tmp_path: Path) -> Iterator[httpx.Client]:
    (tmp_path / "en-fr").mkdir()
    app = create_app(Settings(checkpoints=tmp_path, max_body_bytes=2000), load=lambda *_, **__: translator)
    with listen(app) as http:
        yield http
        translator.decoders[-1].let_go()


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=TIMEOUT_SECONDS)


def post_translate(content_length: object, body: bytes = b"") -> bytes:
    """A request as it stands on the wire."""
    head = ["POST /translate HTTP/1.1", "Host: recurra", "Content-Type: application/json"]
    return "\r\n".join([*head, f"Content-Length: {content_length}", "", ""]).encode() + body


def test_a_caller_that_closes_its_connection_frees_its_rows(client: httpx.Client, translator: Any) -> None:
    decoder = translator.decoders[-1]
    body = json.dumps({"text": "a long text"}).encode()
    with connect(client) as connection:
        connection.sendall(post_translate(len(body), body))
        decoder.begun_step()
    ends_at = time.monotonic() + TIMEOUT_SECONDS
    while 'outcome="cancelled",route="/translate"' not in client.get("/metrics").text:
        assert time.monotonic() < ends_at
    decoder.let_go()
    assert client.post("/translate", json={"text": "b"}).json()["translations"][0]["text"] == "B"
    assert len(decoder.cancelled) == 1


def test_a_caller_of_a_stream_that_closes_its_connection_frees_its_rows(client: httpx.Client, translator: Any) -> None:
    decoder = translator.decoders[-1]
    with client.stream("POST", "/translate", json={"text": "a" * 1900, "stream": True}) as response:
        decoder.begun_step()
        decoder.release(2)
        assert next(response.iter_lines()) == "event: token"
    while not decoder.cancelled:  # long before the text is done
        client.get("/metrics")
        decoder.release()
        assert decoder.num_segments or decoder.cancelled
    assert decoder.num_segments == 0


def test_a_stream_grows_only_at_its_end_and_ends_with_the_whole_answer(client: httpx.Client, translator: Any) -> None:
    translator.decoders[-1].let_go()
    body = {"text": ["abc", "One. Two."], "stream": True}
    with client.stream("POST", "/translate", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    events = [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in zip(lines[::2], lines[1::2], strict=True)
    ]
    assert {name for name, _ in events[:-1]} == {"token"}
    assert events[-1][0] == "done"
    assert len({data["text"] for _, data in events[:-1] if data["index"] == 0}) > 1
    texts = [translation["text"] for translation in events[-1][1]["translations"]]
    assert texts == ["ABC", "ONE. TWO."]
    for number, text in enumerate(texts):
        grown = [data["text"] for _, data in events[:-1] if data["index"] == number]
        for before, after in zip(grown, [*grown[1:], text], strict=True):
            assert after.startswith(before)


def test_a_stream_that_fails_says_so_in_its_last_event(client: httpx.Client, translator: Any) -> None:
    decoder = translator.decoders[-1]
    decoder.fail_steps = 1
    decoder.let_go()
    with client.stream("POST", "/translate", json={"text": "abc", "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-2] == "event: error"
    assert json.loads(lines[-1].removeprefix("data: "))["code"] == "engine_failure"


def test_a_chunked_body_past_the_limit_is_told_so_while_it_is_sent(client: httpx.Client) -> None:
    chunks = (b"a" * 1500 for _ in range(4))
    response = client.post("/translate", content=chunks, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "RECURRA_MAX_BODY_BYTES" in response.json()["detail"]


def test_head_leaves_the_connection_fit_for_the_next_request(client: httpx.Client) -> None:
    head = "{} /models HTTP/1.1\r\nHost: recurra\r\n\r\n"
    with connect(client) as connection, connection.makefile("rb") as answers:
        connection.sendall(head.format("HEAD").encode())
        first = [*iter(answers.readline, b"\r\n")]
        connection.sendall(head.format("GET").encode())
        second = [*iter(answers.readline, b"\r\n")]
    for lines in (first, second):
        assert lines[0].startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_400(client: httpx.Client) -> None:
    with connect(client) as connection:
        connection.sendall(post_translate("abc"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
