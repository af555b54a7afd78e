"""POST /score in both forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from model.bleu import score


def test_hypotheses_are_scored_as_the_model_package_scores_them(client: Any) -> None:
    hypotheses = ["the cat sits on the mat", "a dog"]
    references = [["the cat sat on the mat", "a cat sits on the mat"], ["the dog"]]
    names = ["bleu", "chrf", "ter", "bleu-d2l"]
    body = {"hypotheses": hypotheses, "references": references, "metrics": names}
    answer = client.post("/score", body).json()
    expected = score(hypotheses, references, metrics=names)
    assert answer["num_sentences"] == 2
    assert list(answer["scores"]) == names
    for name in names:
        assert answer["scores"][name] == {
            key: list(value) if isinstance(value, tuple) else value for key, value in expected[name].to_json().items()
        }


def test_the_worked_example_of_the_course(client: Any) -> None:
    body = {"hypotheses": ["A B B C D"], "references": ["A B C D E F"], "metrics": ["bleu-d2l"]}
    found = client.post("/score", body).json()["scores"]["bleu-d2l"]
    assert found["precisions"] == pytest.approx([4 / 5, 3 / 4, 1 / 3, 0])


def test_sources_are_translated_first(client: Any) -> None:
    body = {"sources": ["a b", "c d"], "references": [["A B"], ["C X"]], "k": 2, "metrics": ["bleu-d2l"]}
    answer = client.post("/score", body).json()
    assert answer["hypotheses"] == ["A B", "C D"]
    assert (answer["model"], answer["version"], answer["search"], answer["k"]) == ("en-fr", "0123456789ab", "beam", 2)
    assert answer["scores"]["bleu-d2l"]["sentence_scores"][0] == 1.0


def test_sentence_scores_can_be_left_out(client: Any) -> None:
    body = {"hypotheses": ["a b"], "references": ["a b"], "sentence_scores": False}
    assert client.post("/score", body).json()["scores"]["bleu"]["sentence_scores"] == []


@pytest.mark.parametrize("metric", ["bleu", "ter"])  # in this process, and in one of its own
def test_lone_surrogates_and_control_characters_are_scored_all_the_same(client: Any, metric: str) -> None:
    content = f'{{"hypotheses": ["a\\ud83d \\u0000"], "references": ["a"], "metrics": ["{metric}"]}}'
    response = client.post("/score", content=content.encode(), headers={"content-type": "application/json"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"hypotheses": ["a"]}, "references"),
        ({"references": [["a"]]}, "hypotheses"),
        ({"hypotheses": ["a"], "sources": ["a"], "references": ["a"]}, "hypotheses"),
        ({"hypotheses": [], "references": []}, "hypotheses"),
        ({"sources": [], "references": []}, "sources"),
        ({"hypotheses": ["a"], "references": []}, "references"),
        ({"hypotheses": ["a"], "references": [["a"], ["b"]]}, "references"),
        ({"hypotheses": ["a"], "references": [[]]}, "references[0]"),
        ({"hypotheses": ["a", "b"], "references": ["a", 1]}, "references[1]"),
        ({"hypotheses": ["a", 1], "references": ["a", "b"]}, "hypotheses[1]"),
        ({"hypotheses": "a", "references": "a"}, "hypotheses"),
        ({"hypotheses": ["a"], "references": ["a"], "metrics": ["meteor"]}, "metrics[0]"),
        ({"hypotheses": ["a"], "references": ["a"], "metrics": []}, "metrics"),
        ({"hypotheses": ["a"], "references": ["a"], "k": 5}, "k"),
        ({"sources": ["a"], "references": ["a"], "k": 0}, "k"),
        ({"sources": ["a"], "references": ["a"], "search": "greedy", "k": 3}, "k"),
        ({"sources": ["a"], "references": ["a"], "target": "de"}, "target"),
    ],
)
def test_a_wrong_field_is_named(client: Any, body: dict[str, Any], field: str) -> None:
    response = client.post("/score", body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"hypotheses": ["a"] * 4, "references": ["a"] * 4}, "RECURRA_MAX_SCORE_PAIRS"),
        ({"sources": ["a"] * 3, "references": ["a"] * 3}, "RECURRA_MAX_TEXTS"),
        ({"hypotheses": ["a" * 21], "references": ["a"]}, "RECURRA_MAX_TEXT_CHARS"),
        ({"hypotheses": ["a"], "references": ["a" * 21]}, "RECURRA_MAX_TEXT_CHARS"),
    ],
)
def test_what_is_too_large_is_413(serve: Callable[..., Any], body: dict[str, Any], limit: str) -> None:
    with serve(max_texts=2, max_score_pairs=3, max_text_chars=20) as client:
        response = client.post("/score", body)
        assert response.status_code == 413
        assert limit in response.json()["detail"]
