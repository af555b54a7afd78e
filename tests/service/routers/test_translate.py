"""POST /translate: what it answers, and that no input whatsoever makes it answer 5xx."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from model.translator import Translator

JSON = {"content-type": "application/json"}
TIMEOUT_SECONDS = 30.0


def texts(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [item["text"] for item in response.json()["translations"]]


# -- answers


def test_an_answer_has_the_fields_of_the_contract(client: Any) -> None:
    answer = client.post("/translate", {"text": "ab"}).json()
    assert {key: answer[key] for key in ("model", "version", "search", "k")} == {
        "model": "en-fr",
        "version": "0123456789ab",
        "search": "beam",
        "k": 5,
    }
    assert answer["translations"] == [
        {
            "text": "AB",
            "score": -0.5,
            "log_prob": -1.0,
            "finish": "eos",
            "is_optimal": None,
            "gap": None,
            "alternatives": [],
            "explanation": None,
        }
    ]
    assert set(answer["usage"]) == {"source_tokens", "target_tokens", "queue_ms", "encode_ms", "decode_ms"}
    assert (answer["usage"]["source_tokens"], answer["usage"]["target_tokens"]) == (2, 2)


def test_usage_adds_up_the_texts(client: Any) -> None:
    usage = client.post("/translate", {"text": ["ab", "", "c"]}).json()["usage"]
    assert (usage["source_tokens"], usage["target_tokens"]) == (3, 3)
    assert all(usage[name] >= 0 for name in ("queue_ms", "encode_ms", "decode_ms"))


def test_translations_stand_in_the_order_of_the_texts(client: Any) -> None:
    given = [f"text number {i}" * (1 + 5 * i % 4) for i in range(100)]
    assert texts(client.post("/translate", {"text": given})) == [text.upper() for text in given]


def test_a_thousand_texts_are_one_request(client: Any) -> None:
    given = [f"t {i}" for i in range(1000)]
    assert texts(client.post("/translate", {"text": given})) == [text.upper() for text in given]


@pytest.mark.parametrize("blank", ["", " ", "\n", "\t \r\n\n", "\u00a0\u2003"])
def test_a_blank_text_comes_back_as_it_is(client: Any, blank: str) -> None:
    assert texts(client.post("/translate", {"text": blank})) == [blank]
    assert texts(client.post("/translate", {"text": ["a", blank, "b"]})) == ["A", blank, "B"]


def test_line_breaks_are_kept(client: Any) -> None:
    assert texts(client.post("/translate", {"text": "one.\n\n two. three\r\n"})) == ["ONE.\n\n TWO. THREE\r\n"]


def test_the_prefix_starts_the_translation(client: Any) -> None:
    assert texts(client.post("/translate", {"text": "b", "prefix": "x"})) == ["XB"]


def test_n_best_gives_alternatives(client: Any) -> None:
    item = client.post("/translate", {"text": "a", "k": 3, "n_best": 3}).json()["translations"][0]
    assert [other["score"] for other in item["alternatives"]] == [-1.5, -2.5]


@pytest.mark.parametrize(
    ("fields", "search", "k"),
    [
        ({}, "beam", 5),
        ({"k": 3}, "beam", 3),
        ({"k": 1}, "greedy", 1),
        ({"search": "greedy"}, "greedy", 1),
        ({"search": "greedy", "k": 1}, "greedy", 1),
        ({"search": "beam"}, "beam", 5),
        ({"search": "beam", "k": 1}, "beam", 1),
        ({"search": None, "k": None, "model": None}, "beam", 5),
    ],
)
def test_k_alone_means_beam_and_one_means_greedy(client: Any, fields: dict[str, Any], search: str, k: int) -> None:
    answer = client.post("/translate", {"text": "a", **fields}).json()
    assert (answer["search"], answer["k"]) == (search, k)


def test_the_default_width_is_a_setting(serve: Callable[..., Any]) -> None:
    with serve(default_k=3) as client:
        assert client.post("/translate", {"text": "a"}).json()["k"] == 3
        assert client.post("/translate", {"text": "a", "search": "beam"}).json()["k"] == 3


def test_simultaneous_requests_get_their_own_answers(client: Any) -> None:
    bodies = [{"text": f"request {i}", "k": 1 + i % 7} for i in range(40)]
    answers = client.post_together("/translate", bodies)
    assert [texts(answer)[0] for answer in answers] == [body["text"].upper() for body in bodies]
    assert [answer.json()["k"] for answer in answers] == [body["k"] for body in bodies]


# -- refusals


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({}, "text", "required"),
        ({"text": 5}, "text", "a string"),
        ({"text": None}, "text", "a string"),
        ({"text": {"a": 1}}, "text", "a string"),
        ({"text": []}, "text", "at least one string"),
        ({"text": ["a", 7]}, "text[1]", "a string"),
        ({"text": ["a", ["b"]]}, "text[1]", "a string"),
        ({"text": "a", "k": 0}, "k", "at least 1"),
        ({"text": "a", "k": -3}, "k", "at least 1"),
        ({"text": "a", "k": 65}, "k", "64"),
        ({"text": "a", "k": 10000}, "k", "64"),
        ({"text": "a", "k": 10**30}, "k", "64"),
        ({"text": "a", "k": "5"}, "k", "a whole number"),
        ({"text": "a", "k": 2.5}, "k", "a whole number"),
        ({"text": "a", "k": True}, "k", "a whole number"),
        ({"text": "a", "search": "exactly"}, "search", "'greedy', 'beam', 'sample' or 'exact'"),
        ({"text": "a", "coverage_penalty": -1}, "coverage_penalty", "at least 0"),
        ({"text": "a", "no_repeat_ngram": 1.5}, "no_repeat_ngram", "a whole number"),
        ({"text": "a", "banned": "no"}, "banned", "a list"),
        ({"text": "a", "search": "sample", "temperature": 0}, "temperature", "greater than 0"),
        ({"text": "a", "search": "sample", "top_p": 2}, "top_p", "at most 1"),
        ({"text": "a", "search": "greedy", "seed": 1}, "seed", "search = sample"),
        ({"text": "a", "seed": 1}, "seed", "search = sample"),
        ({"text": "a", "k": 3, "top_k": 0}, "top_k", "search = sample"),
        ({"text": "a", "search": "exact", "top_p": 0.5}, "top_p", "search = sample"),
        ({"text": "a", "k": 1, "temperature": 1.0}, "temperature", "search = sample"),
        ({"text": "a", "max_nodes": 5000}, "max_nodes", "search = exact"),
        ({"text": "a", "search": "sample", "max_nodes": 9}, "max_nodes", "search = exact"),
        ({"text": "a", "search": "sample", "n_best": 65}, "n_best", "up to 64"),
        ({"text": "a", "k": 1, "explain": True, "tree": True}, "tree", "no beam"),
        ({"text": "a", "search": "sample", "explain": True, "tree": True}, "tree", "no beam"),
        ({"text": "a", "search": "exact", "n_best": 2}, "n_best", "1 for exact"),
        ({"text": "a", "search": "exact", "max_nodes": 10**9}, "max_nodes", "100000"),
        ({"text": "a", "tree": True}, "tree", "explain"),
        ({"text": "a", "search": "greedy", "k": 5}, "k", "1 for greedy"),
        ({"text": "a", "n_best": 0}, "n_best", "at least 1"),
        ({"text": "a", "n_best": 6}, "n_best", "1 to k (5)"),
        ({"text": "a", "k": 1, "n_best": 2}, "n_best", "1 to k (1)"),
        ({"text": "a", "length_penalty": "1"}, "length_penalty", "a number"),
        ({"text": "a", "length_penalty": -1}, "length_penalty", "at least 0"),
        ({"text": "a", "length_penalty": 11}, "length_penalty", "at most 10"),
        ({"text": "a", "max_length": 0}, "max_length", "at least 1"),
        ({"text": "a", "max_length": 10**9}, "max_length", "1000"),
        ({"text": "a", "min_length": 10**30}, "min_length", "1000"),
        ({"text": "a", "min_length": 5, "max_length": 4}, "min_length", "max_length (4)"),
        ({"text": "a", "prefix": 1}, "prefix", "a string"),
        ({"text": "a", "source": "de"}, "source", "en→fr"),
        ({"text": "a", "target": "de"}, "target", "en→fr"),
        ({"text": "a", "model": "en-fr", "target": "de"}, "target", "fr"),
        ({"text": "a", "model": 1}, "model", "a string"),
        ({"text": "a", "colour": "red"}, "colour", "GET /docs"),
        ([{"text": "a"}], "body", "a JSON object"),
        ("text", "body", "a JSON object"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(
    client: Any, body: Any, field: str, allowed: str
) -> None:
    response = client.post("/translate", body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "invalid_request"
    assert problem["errors"][0]["field"] == field
    assert allowed in problem["errors"][0]["allowed"]


def test_a_lower_limit_of_nodes_is_the_default_of_exact_and_concerns_nobody_else(serve: Callable[..., Any]) -> None:
    with serve(max_nodes=100) as client:
        assert texts(client.post("/translate", {"text": "a", "search": "exact"})) == ["A"]
        assert texts(client.post("/translate", {"text": "a"})) == ["A"]
        response = client.post("/translate", {"text": "a", "search": "exact", "max_nodes": 101})
        assert response.json()["errors"][0]["field"] == "max_nodes"


def test_a_seed_of_null_is_none_at_all(client: Any) -> None:
    assert texts(client.post("/translate", {"text": "a", "seed": None})) == ["A"]


def test_an_unknown_model_is_404_with_the_field_named(client: Any) -> None:
    response = client.post("/translate", {"text": "a", "model": "xx"})
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
    assert response.json()["errors"] == [{"field": "model", "value": "'xx'", "allowed": "one of en-fr"}]


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"text": ["a"] * 11}, "RECURRA_MAX_TEXTS"),
        ({"text": "a" * 21}, "RECURRA_MAX_TEXT_CHARS"),
        ({"text": ["a", "b" * 21]}, "RECURRA_MAX_TEXT_CHARS"),
        ({"text": "a", "prefix": "b" * 21}, "RECURRA_MAX_TEXT_CHARS"),
        ({"text": "a", "model": "b" * 2000}, "RECURRA_MAX_BODY_BYTES"),
        ({"text": ["a\nb\nc\nd\ne\nf"] * 10}, "RECURRA_MAX_QUEUED_SEGMENTS"),
    ],
)
def test_what_is_too_large_is_413_and_names_the_limit(
    serve: Callable[..., Any], body: dict[str, Any], limit: str
) -> None:
    with serve(max_texts=10, max_text_chars=20, max_body_bytes=1024, max_queued_segments=40) as client:
        response = client.post("/translate", body)
        assert response.status_code == 413
        assert limit in response.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (b"{", 400, "invalid_json"),
        (b'{"text": "a"', 400, "invalid_json"),
        (b'{"text": "a\nb"}', 400, "invalid_json"),
        (b'{"text": "\xff"}', 400, "invalid_body"),
        (b'{"text": "a", "model": "\\udc00"}', 404, "unknown_model"),
        (b'{"text": "a", "source": "\\ud800"}', 422, "invalid_request"),
        (b'{"\\ud83d": 1, "text": "a"}', 422, "invalid_request"),
        (b'{"text": "a", "length_penalty": NaN}', 422, "invalid_request"),
        (b'{"text": "a", "length_penalty": Infinity}', 422, "invalid_request"),
        (b'{"text": "a", "length_penalty": 1e999}', 422, "invalid_request"),
        (b'{"text": "a", "k": 1e999}', 422, "invalid_request"),
        (b'{"text": "a", "k": ' + b"9" * 5000 + b"}", 400, "invalid_body"),
        (b"[" * 100_000, 400, "invalid_body"),
        (b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "invalid_body"),
        (b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}", 422, "invalid_request"),
        (b"\xef\xbb\xbf{}", 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
    ],
)
def test_a_broken_body_is_a_problem_of_the_caller(client: Any, content: bytes, status: int, code: str) -> None:
    response = client.post("/translate", content=content, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "content", [b'{"text": "a\xed\xa0\xbd"}', b'{"text": "a\\ud83d"}', b'{"text": "a", "prefix": "\\udc00"}']
)
def test_a_lone_surrogate_becomes_the_replacement_character(client: Any, content: bytes) -> None:
    response = client.post("/translate", content=content, headers=JSON)
    assert texts(response) in (["A\ufffd"], ["\ufffdA"])


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "json", "a/b; c=d"])
def test_another_content_type_is_415_and_names_the_right_one(client: Any, content_type: str) -> None:
    response = client.post("/translate", content=b'{"text": "a"}', headers={"content-type": content_type})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert "application/json" in response.json()["detail"]


def test_json_with_parameters_is_json(client: Any) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    assert texts(client.post("/translate", content=b'{"text": "a"}', headers=headers)) == ["A"]


def test_a_chunked_body_over_the_limit_is_refused_while_it_is_read(serve: Callable[..., Any]) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b"a" * 1000
        raise AssertionError("nobody should read so far")

    with serve(max_body_bytes=10_000) as client:
        response = client.post("/translate", content=chunks(), headers=JSON)
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


# -- availability


def test_without_a_checkpoint_it_is_503_no_model(serve: Callable[..., Any]) -> None:
    with serve({}) as client:
        response = client.post("/translate", {"text": "a"})
    assert (response.status_code, response.json()["code"]) == (503, "no_model")
    assert int(response.headers["retry-after"]) > 0


def test_a_failed_model_is_503_with_its_cause(serve: Callable[..., Any], broken: Exception) -> None:
    with serve({"en-fr": broken}) as client:
        for body, code in (({"text": "a", "model": "en-fr"}, "model_failed"), ({"text": "a"}, "no_model")):
            response = client.post("/translate", body)
            assert (response.status_code, response.json()["code"]) == (503, code)
            assert "truncated" in response.json()["detail"]


def test_a_failed_model_leaves_the_others_to_serve(
    serve: Callable[..., Any], make_translator: Any, broken: Exception
) -> None:
    with serve({"en-fr": make_translator(), "fr-en": broken}) as client:
        assert texts(client.post("/translate", {"text": "a"})) == ["A"]
        response = client.post("/translate", {"text": "a", "model": "fr-en"})
        assert (response.status_code, response.json()["code"]) == (503, "model_failed")


def test_a_draining_server_refuses_with_503(client: Any) -> None:
    client.services.registry.begin_drain()
    response = client.post("/translate", {"text": "a"})
    assert (response.status_code, response.json()["code"]) == (503, "draining")
    assert "retry-after" in response.headers


def test_a_full_queue_refuses_with_503_and_retry_after(serve: Callable[..., Any], make_translator: Any) -> None:
    translator = make_translator(is_held=True)
    with serve({"en-fr": translator}, max_queued_segments=2, max_k=1, default_k=1, max_rows=1) as client:

        async def fill_then_ask() -> Any:
            decoder = translator.decoders[-1]
            first = asyncio.ensure_future(client._http.post("/translate", json={"text": "a"}))
            await asyncio.to_thread(decoder.begun_step)
            second = asyncio.ensure_future(client._http.post("/translate", json={"text": ["b", "c"]}))
            while client.services.registry.num_waiting < 2:
                await asyncio.sleep(0)
            refused = await client._http.post("/translate", json={"text": "d"})
            decoder.let_go()
            return refused, texts(await first) + texts(await second)

        refused, answered = client.run(fill_then_ask())
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert answered == ["A", "B", "C"]


def test_a_failed_step_is_500_that_hides_its_cause(serve: Callable[..., Any], make_translator: Any) -> None:
    translator = make_translator()
    with serve({"en-fr": translator}) as client:
        translator.decoders[-1].fail_steps = 1
        response = client.post("/translate", {"text": "a"})
        assert (response.status_code, response.json()["code"]) == (500, "engine_failure")
        assert "device" not in response.text
        assert texts(client.post("/translate", {"text": "a"})) == ["A"]


def test_a_caller_that_hangs_up_frees_its_rows(serve: Callable[..., Any], make_translator: Any) -> None:
    translator = make_translator(is_held=True)
    with serve({"en-fr": translator}) as client:
        decoder = translator.decoders[-1]
        sent: list[Any] = []

        async def call_and_hang_up() -> None:
            body = json.dumps({"text": "a long text"}).encode()
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop()
                await asyncio.to_thread(decoder.begun_step)  # its rows are live
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            await client.app(scope("/translate"), receive, send)

        client.run(call_and_hang_up())
        decoder.let_go()
        assert texts(client.post("/translate", {"text": "b"})) == ["B"]
        assert len(decoder.cancelled) == 1
        assert sent == []
        value = client.services.metrics.registry.get_sample_value
        assert value("recurra_requests_total", {"route": "/translate", "outcome": "cancelled"}) == 1


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
        "server": ("recurra", 80),
        "client": ("127.0.0.1", 1),
    }


# -- with a trained model


def test_a_list_gets_what_its_texts_get_one_by_one(real_client: Any) -> None:
    given = ["I am cold.", "", "Tom runs. We won!\nGo.", "You are late.", "She is nice."]
    together = texts(real_client.post("/translate", {"text": given}))
    assert together == [texts(real_client.post("/translate", {"text": text}))[0] for text in given]


def test_http_answers_as_the_python_interface_does(real_client: Any, models_folder: Any) -> None:
    translator = Translator.load(models_folder / "en-fr", precision="fp32")
    options = {"k": 4, "n_best": 2, "length_penalty": 0.5, "max_length": 12, "min_length": 3, "prefix": "Il"}
    item = real_client.post("/translate", {"text": "He is tired.", **options}).json()["translations"][0]
    expected = translator.translate("He is tired.", **options)
    assert item["text"] == expected.text
    assert item["score"] == pytest.approx(expected.score, rel=1e-4)
    assert [other["text"] for other in item["alternatives"]] == [other.text for other in expected.alternatives]


def test_a_prefix_that_the_vocabulary_cannot_write_is_refused(real_client: Any) -> None:
    response = real_client.post("/translate", {"text": "I am cold.", "prefix": "你好"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "prefix"


STRANGE = [
    "\x00",
    "a\x00b",
    "\x07\x1b[31m",
    "😀",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\ufeff",
    "\u200b",
    "\u202e\u200b",
    "\u2028",
    "\uffff\U0010ffff",
    "e\u0301" * 200,
    "a" * 5000,
    "." * 5000,
    "!? " * 2000,
    "\n" * 20_000,
    "مرحبا بالعالم",
    "你好，世界。再见！",
    "<script>alert(1)</script>",
    "' OR 1=1 --",
    "%s %d {0} ${HOME}",
    "\\u0000 \\n",
]


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_a_strange_text_is_translated_all_the_same(real_client: Any, text: str) -> None:
    body = {"text": text, "k": 1, "max_length": 5}
    assert len(texts(real_client.post("/translate", body))) == 1


def test_no_body_makes_a_server_error(client: Any) -> None:
    """Bodies at random: fields and values drawn from those that are meant and those that are not."""
    rng = random.Random(5)
    names = ["text", "k", "n_best", "search", "model", "source", "prefix", "max_length", "length_penalty", "x", ""]
    values: list[Any] = ["a", "", "beam", "greedy", "en", "en-fr", 0, 1, 2, 5, 64, 65, -1, 0.5, 1e308, 2**70, None]
    values += [True, [], ["a"], ["a", ""], [[]], {}, {"text": "a"}, "\x00", "é" * 50]
    for _ in range(400):
        body: Any = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, 5))}
        if rng.random() < 0.5:
            body["text"] = rng.choice(values)
        response = client.post("/translate", body)
        assert response.status_code < 500, body
        assert response.headers["x-request-id"]
