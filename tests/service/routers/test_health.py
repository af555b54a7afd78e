"""GET /health/live, /health/ready and /metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.settings import Settings


def test_live_is_200_whatever_the_models_do(serve: Callable[..., Any], broken: Exception) -> None:
    for models in ({}, {"en-fr": broken}, None):
        with serve(models) as client:
            assert client.get("/health/live").json() == {"status": "live"}


def test_ready_is_503_with_the_reason_until_the_model_is_warm(
    make_translator: Any, tmp_path: Path, client: Any
) -> None:
    may_warm_up = threading.Event()
    translator = make_translator()
    translator.warm_up = lambda: may_warm_up.wait(30)
    (tmp_path / "slow" / "en-fr").mkdir(parents=True)
    app = create_app(Settings(checkpoints=tmp_path / "slow"), load=lambda path, **_: translator)
    with type(client)(app) as slow:
        assert slow.get("/health/live").status_code == 200
        response = slow.get("/health/ready")
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        assert response.json()["detail"] == "loading en-fr"
        assert slow.post("/translate", {"text": "a"}).json()["code"] == "model_loading"
        assert slow.post("/translate", {"text": "a", "model": "en-fr"}).json()["code"] == "model_loading"
        may_warm_up.set()
        slow.wait_until_loaded()
        assert slow.get("/health/ready").json() == {"status": "ready", "models": {"en-fr": "ready"}}


def test_a_failed_model_beside_a_good_one_is_ready_and_told(
    serve: Callable[..., Any], make_translator: Any, broken: Exception
) -> None:
    with serve({"en-fr": make_translator(), "fr-en": broken}) as client:
        response = client.get("/health/ready")
    assert response.status_code == 200
    models = response.json()["models"]
    assert models["en-fr"] == "ready"
    assert models["fr-en"].startswith("failed: ")


def test_failed_models_alone_are_not_ready_and_the_cause_is_told(serve: Callable[..., Any], broken: Exception) -> None:
    with serve({"en-fr": broken}) as client:
        response = client.get("/health/ready")
    assert response.status_code == 503
    assert "truncated" in response.json()["detail"]


def test_no_checkpoint_is_not_ready_and_the_setting_is_named(serve: Callable[..., Any]) -> None:
    with serve({}) as client:
        response = client.get("/health/ready")
    assert response.status_code == 503
    assert "RECURRA_CHECKPOINTS" in response.json()["detail"]


def test_a_draining_server_is_live_but_not_ready(client: Any) -> None:
    client.services.registry.begin_drain()
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200


NAMES = [
    "recurra_requests_total",
    "recurra_request_seconds_bucket",
    "recurra_queue_seconds_bucket",
    "recurra_encode_seconds_bucket",
    "recurra_decode_seconds_bucket",
    "recurra_time_to_first_token_seconds_bucket",
    "recurra_queue_depth",
    "recurra_live_rows",
    "recurra_step_rows_bucket",
    "recurra_step_seconds_bucket",
    "recurra_source_tokens_total",
    "recurra_target_tokens_total",
    "recurra_unknown_tokens_total",
    "recurra_model_info",
    "recurra_device_memory_bytes",
]


def test_every_metric_of_the_contract_is_there(client: Any) -> None:
    client.post("/translate", {"text": "abc"})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {line.partition("{")[0].partition(" ")[0] for line in response.text.splitlines() if line[0] != "#"}
    assert set(NAMES) <= found


def test_tokens_are_counted_by_model(client: Any) -> None:
    client.post("/translate", {"text": ["abc", "de"]})
    value = client.services.metrics.registry.get_sample_value
    assert value("recurra_source_tokens_total", {"model": "en-fr"}) == 5
    assert value("recurra_target_tokens_total", {"model": "en-fr"}) == 5
    assert value("recurra_model_info", {"model": "en-fr", "version": "0123456789ab"}) == 1
    assert value("recurra_device_memory_bytes", {"device": "cpu"}) > 1e6


@pytest.mark.parametrize(
    ("method", "path", "route", "outcome"),
    [
        ("GET", "/health/live", "/health/live", "ok"),
        ("GET", "/models/en-fr", "/models/{name}", "ok"),
        ("GET", "/models/secret", "/models/{name}", "invalid"),
        ("GET", "/some/where/secret", "unmatched", "invalid"),
        ("POST", "/translate", "/translate", "invalid"),
    ],
)
def test_requests_are_counted_by_route_template_and_outcome(
    client: Any, method: str, path: str, route: str, outcome: str
) -> None:
    client.request(method, path)
    value = client.services.metrics.registry.get_sample_value
    assert value("recurra_requests_total", {"route": route, "outcome": outcome}) == 1
    assert "secret" not in client.get("/metrics").text


def test_no_text_is_in_the_metrics(client: Any) -> None:
    client.post("/translate", {"text": "secret"})
    assert "secret" not in client.get("/metrics").text


def test_two_apps_in_one_process_count_apart(serve: Callable[..., Any]) -> None:
    with serve() as first, serve() as second:
        first.get("/health/live")
        labels = {"route": "/health/live", "outcome": "ok"}
        assert first.services.metrics.registry.get_sample_value("recurra_requests_total", labels) == 1
        assert second.services.metrics.registry.get_sample_value("recurra_requests_total", labels) is None
