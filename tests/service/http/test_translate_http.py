"""POST /translate as its callers see it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest


def field_of(answer: httpx.Response) -> str:
    return str(answer.json()["errors"][0]["field"])


def assert_is_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["title"]
    assert body["detail"]
    assert body["code"]


def test_one_text_has_one_translation(server: Any) -> None:
    body = server.translate("hello you").json()
    assert [item["text"] for item in body["translations"]] == ["HELLO YOU"]
    assert (body["model"], body["version"], body["search"], body["k"]) == ("en-fr", "en-fr-v1", "beam", 5)


def test_a_list_keeps_its_order_whatever_the_lengths(server: Any) -> None:
    texts = ["a b c d e", "f", "", "g h\ni", "  "]
    found = [item["text"] for item in server.translate(texts).json()["translations"]]
    assert found == ["A B C D E", "F", "", "G H\nI", "  "]


def test_an_empty_list_has_no_translations(server: Any) -> None:
    answer = server.translate([])
    assert answer.status_code in (200, 422)


def test_usage_counts_tokens_and_times(server: Any) -> None:
    usage = server.translate(["a b", "c"]).json()["usage"]
    assert (usage["source_tokens"], usage["target_tokens"]) == (3, 3)
    assert all(usage[name] >= 0 for name in ("queue_ms", "encode_ms", "decode_ms"))


@pytest.mark.parametrize(
    ("fields", "search", "k"),
    [
        ({}, "beam", 5),
        ({"k": 1}, "greedy", 1),
        ({"k": 7}, "beam", 7),
        ({"search": "greedy"}, "greedy", 1),
        ({"search": "beam"}, "beam", 5),
        ({"search": "greedy", "k": 1}, "greedy", 1),
    ],
)
def test_search_and_k_complete_each_other(server: Any, fields: dict[str, Any], search: str, k: int) -> None:
    body = server.translate(**fields).json()
    assert (body["search"], body["k"]) == (search, k)


def test_n_best_lists_alternatives(server: Any) -> None:
    (item,) = server.translate("a", k=4, n_best=3).json()["translations"]
    assert len(item["alternatives"]) in (2, 3)


def test_a_prefix_begins_the_translation(server: Any) -> None:
    assert server.translate("you", prefix="hello").json()["translations"][0]["text"] == "HELLO YOU"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"search": "greedy", "k": 5}, "k"),
        ({"k": 2, "n_best": 3}, "n_best"),
        ({"n_best": 6}, "n_best"),
        ({"k": 0}, "k"),
        ({"k": 65}, "k"),
        ({"k": True}, "k"),
        ({"k": "5"}, "k"),
        ({"k": 10**30}, "k"),
        ({"n_best": 0}, "n_best"),
        ({"search": "dowsing"}, "search"),
        ({"length_penalty": -1}, "length_penalty"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 10**9}, "max_length"),
        ({"min_length": 9, "max_length": 3}, "min_length"),
        ({"prefix": 3}, "prefix"),
        ({"source": "de"}, "source"),
        ({"model": "en-fr", "target": "de"}, "target"),
        ({"colour": "red"}, "colour"),
        ({"text": None}, "text"),
        ({"text": 3}, "text"),
        ({"text": {"a": 1}}, "text"),
        ({"text": ["a", 3]}, "text[1]"),
    ],
)
def test_a_wrong_value_is_refused_by_name(server: Any, fields: dict[str, Any], field: str) -> None:
    answer = server.client.post(
        "/translate",
        content=json.dumps({"text": "hello", **fields}),
        headers={"Content-Type": "application/json"},
    )
    assert_is_problem(answer, 422)
    assert field_of(answer) == field


def test_a_missing_text_is_refused_by_name(server: Any) -> None:
    answer = server.client.post("/translate", json={"k": 3})
    assert_is_problem(answer, 422)
    assert field_of(answer) == "text"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"text": "a"',
        b'{"text": "\xff\xfe"}',
        b'"hello"',
        b"[1, 2]",
        b"null",
        b"[" * 100_000,
        b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"text": "a", "length_penalty": NaN}',
        b'{"text": "a", "length_penalty": Infinity}',
        b'{"text": "a", "k": ' + b"9" * 5000 + b"}",
        b'{"\\ud800": 1, "text": "a"}',
        b'{"text": "a", "model": "\\udfff"}',
        b'{"text": "a", "source": "\\ud800"}',
    ],
)
def test_an_unreadable_body_is_the_callers_mistake(server: Any, content: bytes) -> None:
    answer = server.client.post("/translate", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404, 422), answer.text
    assert_is_problem(answer, answer.status_code)


@pytest.mark.parametrize("text", ["a\u0000b", "\u0000", "\u001b[2J", "\u200b", "\u202e abc", "\U0001f600" * 50])
def test_odd_characters_are_translated_or_refused(server: Any, text: str) -> None:
    assert server.translate(text).status_code in (200, 422)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_a_body_that_is_not_announced_as_json_is_refused(server: Any, kind: str) -> None:
    answer = server.client.post("/translate", content=b'{"text": "a"}', headers={"Content-Type": kind})
    assert_is_problem(answer, 415)


@pytest.mark.parametrize(("text", "setting"), [(["a"] * 4, "max_texts"), ("a" * 11, "max_text_chars")])
def test_a_passed_limit_is_named(serve: Any, text: Any, setting: str) -> None:
    server = serve("en-fr", max_texts=3, max_text_chars=10).until_ready()
    answer = server.translate(text)
    assert_is_problem(answer, 413)
    assert setting in answer.text.lower()


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_past_the_limit_is_refused(serve: Any, is_chunked: bool) -> None:
    server = serve("en-fr", max_body_bytes=2000).until_ready()
    content = b'{"text": "' + b"a" * 5000 + b'"}'
    body: Any = iter([content[:1500], content[1500:]]) if is_chunked else content
    answer = server.client.post("/translate", content=body, headers={"Content-Type": "application/json"})
    assert_is_problem(answer, 413)
    assert "max_body_bytes" in answer.text.lower()


def test_unknown_models_paths_and_methods_are_problems(server: Any) -> None:
    assert_is_problem(server.translate(model="xx"), 404)
    assert_is_problem(server.client.get("/nowhere"), 404)
    assert_is_problem(server.client.get("/translate"), 405)
    assert_is_problem(server.client.get("/models/xx"), 404)


def test_a_request_id_is_kept_if_it_is_plain(server: Any) -> None:
    assert server.client.get("/health/live", headers={"X-Request-ID": "a.B_1-2"}).headers["x-request-id"] == "a.B_1-2"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é".encode().decode("latin-1"), "<script>"])
def test_any_other_request_id_is_replaced(server: Any, given: str) -> None:
    answer = server.client.get("/health/live", headers={"X-Request-ID": given.encode("latin-1")})
    assert answer.headers["x-request-id"] not in ("", given)
