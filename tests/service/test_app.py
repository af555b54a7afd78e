"""The composed app: its pages, and what it says to a path or method that it does not have."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.errors import PROBLEMS, UnknownModel, problem_of, shown


def test_the_root_leads_to_the_documentation(client: Any) -> None:
    response = client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
    assert client.get("/docs").status_code == 200


def test_the_documentation_needs_no_other_host(client: Any) -> None:
    page = client.get("/docs").text
    assert "//" not in page
    files = re.findall(r"""(?:src|href)="([^"]+)""", page)
    assert {path.rsplit(".")[-1] for path in files} == {"js", "css", "png"}
    for path in files:
        assert client.get(path).status_code == 200, path


def test_every_reference_in_the_documentation_is_found(client: Any) -> None:
    page = client.get("/openapi.json")
    references = set(re.findall(r"""\$ref": *"([^"]+)""", page.text))
    assert references
    for reference in references:
        part = page.json()
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_the_documentation_shows_examples_of_requests_answers_and_problems(client: Any) -> None:
    page = client.get("/openapi.json").json()
    translate = page["paths"]["/translate"]["post"]
    examples = translate["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) >= 5
    assert translate["responses"]["200"]["content"]["application/json"]["examples"]
    for status in ("400", "404", "413", "415", "422", "500", "503"):
        assert translate["responses"][status]["content"]["application/problem+json"]["example"]["code"]


def test_every_example_of_the_documentation_is_answered(client: Any) -> None:
    page = client.get("/openapi.json").json()
    for path in ("/translate", "/score"):
        examples = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for example in examples.values():
            assert client.post(path, example["value"]).status_code == 200, example


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/models/en-fr/more", 404, "not_found"),
        ("GET", "/translate", 405, "method_not_allowed"),
        ("DELETE", "/models/en-fr", 405, "method_not_allowed"),
        ("PATCH", "/%ff%00", 404, "not_found"),
    ],
)
def test_a_wrong_path_or_method_is_a_problem(client: Any, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_problem_has_the_members_of_the_contract(client: Any) -> None:
    problem = client.get("/models/xx").json()
    assert set(problem) == {"title", "status", "detail", "code", "request_id", "errors"}
    assert problem["status"] == 404
    assert all(problem.values())


def test_every_code_is_one_word_and_every_status_an_error() -> None:
    for status, code, title in PROBLEMS.values():
        assert 400 <= status < 600
        assert code.replace("_", "").isalpha()
        assert title


@pytest.mark.parametrize("value", ["x" * 10**6, [[[[[]]]]] * 1000, {"a": {"b": {"c": {}}}}, "\ud83d", 10**4000])
def test_a_value_is_shown_short_and_always_encodable(value: Any) -> None:
    assert len(shown(value).encode()) <= 320


def test_a_subclass_without_a_line_takes_its_parents_status() -> None:
    class Renamed(UnknownModel):
        pass

    problem = problem_of(Renamed("x", ["y"]), request=None)  # type: ignore[arg-type]
    assert (problem.status, problem.code) == (404, "unknown_model")
