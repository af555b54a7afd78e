"""GET /models, GET /models/{name}, and which version is live."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import load_checkpoint, save_checkpoint
from model.data.vocab import EOS_ID
from service.app import create_app
from service.settings import Settings


def test_every_model_is_listed_and_a_failed_one_says_why(
    serve: Callable[..., Any], make_translator: Any, broken: Exception
) -> None:
    with serve({"en-fr": make_translator(), "fr-en": broken}) as client:
        ready, failed = client.get("/models").json()["models"]
    assert (ready["name"], ready["state"], ready["source"], ready["target"]) == ("en-fr", "ready", "en", "fr")
    assert (failed["name"], failed["state"]) == ("fr-en", "failed")
    assert failed["cause"] == "weights.safetensors: has 3 bytes instead of 9: truncated or altered"


def test_one_model_shows_its_network_and_its_training(client: Any) -> None:
    about = client.get("/models/en-fr").json()
    assert about["network"] == {"cell": "gru"}
    assert about["training"] == {"licence": "CC BY"}
    assert (about["version"], about["device"], about["precision"]) == ("0123456789ab", "cpu", "fp32")


def test_an_unknown_model_is_404(client: Any) -> None:
    response = client.get("/models/xx")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")


def test_a_trained_model_shows_its_scores(real_client: Any) -> None:
    assert real_client.get("/models/en-fr").json()["training"]["preset"] == "small"


def test_a_damaged_checkpoint_shows_no_path_of_this_machine(
    models_folder: Any, tmp_path: Any, serve: Callable[..., Any], make_translator: Any
) -> None:
    from model.checkpoint import load_checkpoint
    from model.errors import CheckpointError

    folder = tmp_path / "models" / "en-fr"
    folder.mkdir(parents=True)
    try:
        load_checkpoint(folder)
    except CheckpointError as exc:
        with serve({"en-fr": exc}) as client:
            assert client.get("/models").json()["models"][0]["cause"].startswith("en-fr/config.json: is missing")


# -- versions


@pytest.fixture
def changed(models_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed(1.01)`: a checkpoint with the trained model's weights times so much; talkative, it never ends early."""

    def changing(factor: float, *, is_talkative: bool = False) -> Path:
        checkpoint = load_checkpoint(models_folder / "en-fr")
        tensors = {id(tensor): tensor * factor for tensor in checkpoint.weights.values()}
        weights = {name: tensors[id(tensor)] for name, tensor in checkpoint.weights.items()}
        if is_talkative:
            weights["decoder.output.bias"][EOS_ID] -= 100
        return save_checkpoint(replace(checkpoint, weights=weights), tmp_path / f"times {factor}")

    return changing


@pytest.fixture
def served(models_folder: Path, tmp_path: Path, client: Any) -> Iterator[Any]:
    """An app with a copy of the tiny trained model that a test may change."""
    shutil.copytree(models_folder / "en-fr", tmp_path / "own" / "en-fr")
    settings = Settings(checkpoints=tmp_path / "own", precision="fp32", num_threads=1, models_poll_seconds=0)
    with type(client)(create_app(settings)) as app_client:
        yield app_client.wait_until_loaded()


@pytest.fixture
def other(served: Any, changed: Callable[[float], Path]) -> str:
    """A version that is published, but not live."""
    store = served.services.registry.store
    return str(store.publish("en-fr", changed(1.01), lineage={"job": "j1", "seed": 3}))


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_versions_are_listed_and_one_shows_where_each_comes_from(served: Any, other: str) -> None:
    listed = served.get("/models").json()["models"][0]
    assert listed["live"] == listed["version"] != other
    assert {(v["version"], v["is_live"]) for v in listed["versions"]} == {(other, False), (listed["live"], True)}
    detail = served.get("/models/en-fr").json()
    lineages = {v["version"]: v["lineage"] for v in detail["versions"]}
    assert lineages[other] == {"job": "j1", "seed": 3}
    assert detail["history"] == []


def test_a_promoted_version_answers_and_a_rollback_brings_the_old_one_back(served: Any, other: str) -> None:
    old = served.post("/translate", {"text": "I am cold."}).json()["version"]
    promoted = served.post("/models/en-fr/promote", {"version": other, "reason": "it is newer"})
    assert promoted.json() == {"model": "en-fr", "version": other, "is_promoted": True, "comparison": None}
    assert served.post("/translate", {"text": "I am cold."}).json()["version"] == other
    about = served.get("/models/en-fr").json()
    assert (about["live"], about["version"]) == (other, other)
    assert [(s["version"], s["reason"]) for s in about["history"]] == [(other, "it is newer")]
    assert f'recurra_model_info{{model="en-fr",version="{other}"}} 1.0' in served.get("/metrics").text
    assert f'version="{old}"' not in served.get("/metrics").text

    assert served.post("/models/en-fr/rollback").json()["version"] == old
    assert served.post("/translate", {"text": "I am cold."}).json()["version"] == old
    assert refusal(served.post("/models/en-fr/rollback")) == (409, "no_previous_version")


def test_a_version_that_does_not_load_is_409_with_the_cause(served: Any, other: str) -> None:
    (served.services.registry.store.folder("en-fr", other) / "weights.safetensors").write_bytes(b"x")
    before = served.get("/models/en-fr").json()["live"]
    response = served.post("/models/en-fr/promote", {"version": other})
    assert refusal(response) == (409, "version_refused")
    assert "weights.safetensors: has 1 bytes" in response.json()["detail"]
    assert str(served.services.settings.checkpoints) not in response.json()["detail"]
    assert served.get("/models/en-fr").json()["live"] == before
    assert served.post("/translate", {"text": "I am cold."}).json()["version"] == before


@pytest.mark.parametrize(
    ("path", "code"),
    [("/models/xx", "unknown_model"), ("/models/en-fr", "unknown_version"), ("/models/..%2Fen-fr", "not_found")],
)
def test_what_is_not_there_is_404(served: Any, path: str, code: str) -> None:
    assert refusal(served.post(f"{path}/promote", {"version": "0" * 12})) == (404, code)
    assert refusal(served.request("DELETE", f"{path}/versions/{'0' * 12}")) == (404, code)


def test_rolling_back_an_unknown_model_is_404(served: Any) -> None:
    assert refusal(served.post("/models/xx/rollback")) == (404, "unknown_model")


def test_the_live_version_cannot_be_deleted_another_can(served: Any, other: str) -> None:
    live = served.get("/models/en-fr").json()["live"]
    assert refusal(served.request("DELETE", f"/models/en-fr/versions/{live}")) == (409, "version_live")
    assert served.request("DELETE", f"/models/en-fr/versions/{other}").status_code == 204
    assert [v["version"] for v in served.get("/models/en-fr").json()["versions"]] == [live]


SOURCES = ["I am cold.", "She sleeps.", "Where is the cat?"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "version"),
        ({"version": 3}, "version"),
        ({"version": "x" * 65}, "version"),
        ({"version": "x", "reason": "y" * 201}, "reason"),
        ({"version": "x", "when": "now"}, "when"),
        ({"version": "x", "if_better": {"sources": [], "references": []}}, "if_better.sources"),
        ({"version": "x", "if_better": {"sources": ["a"], "references": []}}, "if_better.references"),
        ({"version": "x", "if_better": {"sources": ["a"], "references": [[]]}}, "if_better.references[0]"),
        ({"version": "x", "if_better": {"sources": ["a"], "references": ["b"], "k": 1000}}, "if_better.k"),
    ],
)
def test_a_wrong_field_is_named(served: Any, body: dict[str, Any], field: str) -> None:
    response = served.post("/models/en-fr/promote", body)
    assert refusal(response) == (422, "invalid_request")
    assert response.json()["errors"][0]["field"] == field


def test_a_version_that_is_no_better_is_compared_and_not_promoted(served: Any, other: str) -> None:
    live = served.get("/models/en-fr").json()["live"]
    answer = served.post(
        "/models/en-fr/promote",
        {"version": other, "if_better": {"sources": SOURCES, "references": ["a b c d e"] * 3, "k": 1}},
    ).json()
    assert (answer["is_promoted"], answer["version"]) == (False, live)
    assert answer["comparison"]["num_sentences"] == 3
    assert answer["comparison"]["is_better"] is False
    assert served.get("/models/en-fr").json()["live"] == live


def test_a_version_that_is_better_is_promoted_with_the_numbers_that_say_so(
    served: Any, changed: Callable[..., Path], pairs: Any
) -> None:
    """The test set is what the better one answers."""
    store = served.services.registry.store
    good = store.publish("en-fr", changed(1.5, is_talkative=True), lineage={})
    served.post("/models/en-fr/promote", {"version": good})
    sources = [pair.src for pair in pairs[:40]]
    references = [t["text"] for t in served.post("/translate", {"text": sources, "k": 1}).json()["translations"]]
    served.post("/models/en-fr/rollback")
    test_set = {"sources": sources, "references": references, "k": 1}
    answer = served.post("/models/en-fr/promote", {"version": good, "if_better": test_set}).json()
    assert answer["is_promoted"] is True
    assert answer["comparison"]["bleu_candidate"] == pytest.approx(100.0)
    assert answer["comparison"]["p_value"] < 0.05
    assert served.get("/models/en-fr").json()["live"] == good


def test_a_candidate_that_does_not_load_for_the_comparison_is_409(served: Any, other: str) -> None:
    (served.services.registry.store.folder("en-fr", other) / "weights.safetensors").write_bytes(b"x")
    test_set = {"sources": SOURCES, "references": SOURCES}
    response = served.post("/models/en-fr/promote", {"version": other, "if_better": test_set})
    assert refusal(response) == (409, "version_refused")
    assert other in response.json()["detail"]
