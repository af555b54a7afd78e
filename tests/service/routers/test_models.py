"""GET /models and GET /models/{name}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
