"""Request ids, the last catch of all, the limit of a body, and HEAD."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from service.metrics import Metrics
from service.middleware import BodyLimit, RequestContext


@pytest.mark.parametrize("given", ["a", "A-z_0.9", "x" * 64])
def test_a_sane_request_id_is_kept(client: Any, given: str) -> None:
    response = client.post("/translate", {"text": 1}, headers={"X-Request-ID": given})
    assert response.headers["x-request-id"] == response.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "é", "a/b", "<i>"])
def test_another_request_id_is_replaced(client: Any, given: str) -> None:
    response = client.post("/translate", {"text": 1}, headers={"X-Request-ID": given.encode()})
    found = response.headers["x-request-id"]
    assert len(found) == 32
    assert found == response.json()["request_id"]


def test_every_answer_has_an_id_of_its_own(client: Any) -> None:
    paths = ["/", "/docs", "/metrics", "/health/live", "/nowhere", "/models"]
    assert len({client.get(path).headers["x-request-id"] for path in paths}) == len(paths)


def call(app: Any, **kwargs: Any) -> httpx.Response:
    async def calling() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://recurra") as http:
            return await http.post("/", **kwargs)

    return asyncio.run(calling())


def test_what_nobody_caught_is_a_500_that_hides_its_cause_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    async def app(*_: Any) -> None:
        raise ValueError("the cause")

    metrics = Metrics()
    with caplog.at_level(logging.ERROR):
        response = call(RequestContext(app, metrics))
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "cause" not in response.json()["title"]
    assert "ValueError: the cause" in caplog.text
    labels = {"route": "unmatched", "outcome": "error"}
    assert metrics.registry.get_sample_value("recurra_requests_total", labels) == 1


def test_a_body_up_to_the_limit_is_passed_on() -> None:
    async def echo(_: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    assert call(BodyLimit(echo, 4), content=b"1234").content == b"1234"


def test_an_announced_body_over_the_limit_is_refused_before_it_is_read(client: Any) -> None:
    async def never_read() -> Any:
        raise AssertionError("nobody should read this")
        yield b""

    headers = {"content-type": "application/json", "content-length": "9" * 30}
    response = client.post("/translate", content=never_read(), headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "RECURRA_MAX_BODY_BYTES" in response.json()["detail"]


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/metrics", "/models", "/models/xx", "/nowhere"],
)
def test_head_is_get_without_the_body(client: Any, path: str) -> None:
    got, asked = client.get(path), client.request("HEAD", path)
    assert asked.content == b""
    assert asked.status_code == got.status_code
    assert list(asked.headers) == list(got.headers)
    assert len(got.content) == 0 or int(asked.headers["content-length"]) > 0


def test_head_is_logged_as_head_and_counted_by_its_route(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.request("HEAD", "/models/en-fr")
    (fields,) = (vars(record)["fields"] for record in caplog.records if record.getMessage() == "http_request")
    assert (fields["method"], fields["route"], fields["status"]) == ("HEAD", "/models/{name}", 200)
    labels = {"route": "/models/{name}", "outcome": "ok"}
    assert client.services.metrics.registry.get_sample_value("recurra_requests_total", labels) == 1


def test_head_of_a_route_that_only_takes_post_is_405(client: Any) -> None:
    assert client.request("HEAD", "/translate").status_code == 405
