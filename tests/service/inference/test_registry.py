"""Which checkpoint folders are served, and which model a request gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import CheckpointError, InvalidValue
from service.errors import NoModel, UnknownModel
from service.inference.versions import checkpoint_folders


@pytest.fixture
def three(serve: Callable[..., Any], make_translator: Any) -> Any:
    """en-fr, fr-en and en-de, ready."""

    def serving(**settings: Any) -> Any:
        pairs = ("en-fr", "fr-en", "en-de")
        translators = {name: make_translator(src_lang=name[:2], tgt_lang=name[3:]) for name in pairs}
        return serve(translators, **settings)

    return serving


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ({"model": "fr-en"}, "fr-en"),
        ({"source": "fr"}, "fr-en"),
        ({"target": "de"}, "en-de"),
        ({"source": "en", "target": "fr"}, "en-fr"),
        ({"model": "en-de", "source": "en", "target": "de"}, "en-de"),
    ],
)
def test_a_model_is_chosen_by_name_or_by_languages(three: Any, wanted: dict[str, str], name: str) -> None:
    with three() as client:
        assert client.services.registry.choose(**wanted).name == name


@pytest.mark.parametrize(
    ("wanted", "field", "allowed"),
    [
        ({}, "model", "en-de, en-fr, fr-en"),
        ({"source": "en"}, "model", "en-de, en-fr"),
        ({"source": "es"}, "source", "en→fr"),
        ({"source": "fr", "target": "de"}, "target", "fr→en"),
        ({"model": "en-fr", "source": "de"}, "source", "en, the source language of en-fr"),
        ({"model": "en-fr", "target": "de"}, "target", "fr, the target language of en-fr"),
    ],
)
def test_a_choice_that_fits_none_or_several_names_the_field(
    three: Any, wanted: dict[str, str], field: str, allowed: str
) -> None:
    with three() as client, pytest.raises(InvalidValue) as refusal:
        client.services.registry.choose(**wanted)
    assert refusal.value.field == field
    assert allowed in refusal.value.allowed


def test_the_default_model_is_taken_where_several_fit(three: Any) -> None:
    with three(default_model="en-de") as client:
        registry = client.services.registry
        assert registry.choose().name == "en-de"
        assert registry.choose(source="en").name == "en-de"
        assert registry.choose(target="fr").name == "en-fr"


def test_an_unknown_model_is_refused_with_the_names_there_are(three: Any) -> None:
    with three() as client, pytest.raises(UnknownModel, match="en-de, en-fr, fr-en"):
        client.services.registry.choose(model="xx")


def test_a_broken_checkpoint_leaves_the_others_served(
    serve: Callable[..., Any], make_translator: Any, broken: CheckpointError
) -> None:
    with serve({"en-fr": make_translator(), "fr-en": broken}) as client:
        registry = client.services.registry
        assert registry.readiness().is_ready
        models = registry.readiness().models
        assert models["en-fr"] == "ready"
        assert models["fr-en"].startswith("failed: weights.safetensors")
        assert registry.choose().name == "en-fr"


def test_no_checkpoint_at_all_is_no_model(serve: Callable[..., Any]) -> None:
    with serve({}) as client, pytest.raises(NoModel):
        client.services.registry.choose()


def test_every_model_is_warmed_up_once(serve: Callable[..., Any], make_translator: Any) -> None:
    translator = make_translator()
    with serve({"en-fr": translator}):
        assert translator.num_warm_ups == 1


def test_a_folder_of_models_and_a_single_model_are_both_found(models_folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in checkpoint_folders(models_folder)] == ["en-fr"]
    assert checkpoint_folders(models_folder / "en-fr") == [models_folder / "en-fr"]
    assert checkpoint_folders(tmp_path / "nowhere") == []


def test_a_folder_without_a_config_is_found_so_that_its_damage_is_told(models_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(models_folder / "en-fr", tmp_path / "en-fr")
    (tmp_path / "en-fr" / "config.json").unlink()
    (tmp_path / ".hidden").mkdir()
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["en-fr"]
