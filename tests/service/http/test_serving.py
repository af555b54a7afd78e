"""What many requests share: the queue, the rows, the life of models and of the server."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


def test_live_rows_never_pass_their_limit(serve: Any) -> None:
    server = serve("en-fr", max_rows=12, default_k=5, max_k=12).until_ready()
    assert server.translate([f"a b {'c ' * (n % 5)}" for n in range(50)]).status_code == 200
    assert server.translator.most_rows <= 12


def test_a_wide_beam_gets_its_turn_beside_narrow_ones(serve: Any) -> None:
    server = serve("en-fr", max_rows=8, default_k=2, max_k=8).until_ready()
    with ThreadPoolExecutor(2) as pool:
        narrow = pool.submit(server.translate, ["a b c d"] * 60, k=2)
        wide = pool.submit(server.translate, "x", k=8)
        assert wide.result().status_code == narrow.result().status_code == 200


def test_a_full_queue_refuses_at_once(serve: Any) -> None:
    server = serve("en-fr", max_rows=5, max_k=5, max_queued_segments=4).until_ready()
    server.translator.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.translate, ["a", "b", "c", "d"])
        assert server.translator.is_stepping.wait(10)
        answer = server.translate(["e", "f", "g"])
        assert answer.status_code == 503
        assert answer.json()["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        server.translator.gate.set()
        assert first.result().status_code == 200


def test_a_client_that_goes_frees_its_rows(serve: Any) -> None:
    server = serve("en-fr").until_ready()
    server.translator.gate.clear()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        body = b'{"text": "a b c"}'
        head = f"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        assert server.translator.is_stepping.wait(10)
    server.poll_until(lambda: "recurra_requests_total" in server.client.get("/metrics").text)
    threading.Event().wait(0.1)  # the server has to see the connection close while the step stands still
    server.translator.gate.set()
    assert server.translator.is_cancelled.wait(10)
    server.poll_until(lambda: server.metric("recurra_live_rows") == 0)


def test_a_failed_step_fails_its_requests_and_no_others(server: Any) -> None:
    broken = server.translate("boom")
    assert broken.status_code == 500
    assert "memory" not in broken.text
    assert server.translate("hello").json()["translations"][0]["text"] == "HELLO"


def test_readiness_waits_for_the_models(serve: Any) -> None:
    may_load = threading.Event()
    server = serve("en-fr", may_load=may_load)
    assert server.client.get("/health/live").status_code == 200
    assert server.client.get("/health/ready").status_code == 503
    answer = server.translate()
    assert (answer.status_code, answer.json()["code"]) == (503, "model_loading")
    may_load.set()
    server.until_ready()
    assert server.translate().status_code == 200


def test_without_a_checkpoint_the_server_starts_and_says_so(serve: Any) -> None:
    server = serve()
    answer = server.translate()
    assert (answer.status_code, answer.json()["code"]) == (503, "no_model")
    assert "retry-after" in answer.headers
    assert server.client.get("/health/ready").status_code == 503


def test_a_broken_checkpoint_is_reported_while_others_serve(serve: Any) -> None:
    server = serve("broken", "en-fr").until_ready()
    assert server.translate().status_code == 200
    for path in ("/models", "/health/ready"):
        text = server.client.get(path).text
        assert "broken" in text
        assert "truncated" in text, path
    answer = server.translate(model="broken")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_failed")


def test_a_model_shows_how_it_was_trained(server: Any) -> None:
    body = server.client.get("/models/en-fr").json()
    assert body["training"]["bleu"] == 12.5
    assert (body["source"], body["target"]) == ("en", "fr")


def test_a_request_under_way_is_finished_at_shutdown(serve: Any) -> None:
    server = serve("en-fr").until_ready()
    server.translator.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(server.translate, "a b c")
        assert server.translator.is_stepping.wait(10)
        server.ask_to_stop()
        server.translator.gate.set()
        assert live.result().status_code == 200


def test_metrics_name_routes_by_template_and_nothing_else(server: Any) -> None:
    server.translate("secret words")
    server.client.get("/models/en-fr")
    server.client.get("/secret/path")
    text = server.client.get("/metrics").text
    assert 'route="/translate"' in text
    assert 'route="/models/{name}"' in text
    assert 'route="unmatched"' in text
    assert "secret" not in text
    assert server.metric('recurra_source_tokens_total{model="en-fr"}') == 2
    assert server.metric('recurra_model_info{model="en-fr",version="en-fr-v1"}') == 1


def test_the_root_leads_to_the_documentation(server: Any) -> None:
    answer = server.client.get("/", follow_redirects=True)
    assert answer.status_code == 200
    assert answer.url.path == "/docs"
    schema = server.client.get("/openapi.json").json()
    assert "examples" in str(schema["components"]["schemas"]["TranslateBody"])


REFERENCES = [["the cat sat on the mat"], ["a dog ran in the park"]]


def test_hypotheses_are_scored(server: Any) -> None:
    hypotheses = [refs[0] for refs in REFERENCES]
    metrics = ["bleu", "chrf", "ter", "bleu-d2l"]
    answer = server.client.post("/score", json={"hypotheses": hypotheses, "references": REFERENCES, "metrics": metrics})
    assert answer.status_code == 200, answer.text
    assert "100" in answer.text
    for metric in metrics:
        assert f'"{metric}"' in answer.text


def test_sources_are_translated_and_scored(server: Any) -> None:
    body = {"sources": ["a b c d", "e f g h"], "references": [["A B C D"], ["E F G H"]], "k": 1}
    answer = server.client.post("/score", json=body)
    assert answer.status_code == 200, answer.text
    assert "100" in answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hypotheses": []},
        {"hypotheses": ["a"]},
        {"hypotheses": ["a", "b"], "sources": ["a", "b"]},
        {"hypotheses": ["a", "b"], "references": [["a"], []]},
        {"hypotheses": ["a", "b"], "metrics": ["rouge"]},
        {"hypotheses": ["a", "b"], "metrics": []},
        {"sources": ["a", "b"], "search": "greedy", "k": 3},
    ],
)
def test_a_wrong_score_request_is_refused(server: Any, fields: dict[str, Any]) -> None:
    answer = server.client.post("/score", json={"references": [["a"], ["b"]], **fields})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"]
