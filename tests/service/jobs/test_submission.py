"""From a body to a job: what is wrong is named before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import load_checkpoint
from model.errors import InvalidValue
from service.datasets.errors import UnknownDataset
from service.datasets.store import DatasetStore
from service.errors import UnknownModel, UnknownVersion
from service.inference.versions import VersionStore
from service.jobs.schemas import TrainBody
from service.jobs.spec import JobSpec
from service.jobs.submission import job_spec
from service.settings import Settings


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory, add_dataset: Callable[..., Any]) -> DatasetStore:
    store = DatasetStore(tmp_path_factory.mktemp("datasets"))
    add_dataset(store)
    add_dataset(store, "other", num_pairs=50)
    add_dataset(store, "small", num_pairs=1)
    add_dataset(store, "backwards", source="fr", target="en")
    add_dataset(store, "german", source="en", target="de")
    return store


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> VersionStore:
    store = VersionStore(tmp_path_factory.mktemp("checkpoints"))
    version = store.publish("en-fr", tiny_checkpoint, lineage={})
    store.set_live("en-fr", version, reason="test")
    store.publish("never-live", tiny_checkpoint, lineage={})
    return store


@pytest.fixture
def submit(datasets: DatasetStore, versions: VersionStore, tmp_path: Path) -> Callable[..., JobSpec]:
    settings = Settings(data=tmp_path, training_threads=3)

    def submitting(**fields: Any) -> JobSpec:
        body = TrainBody(**{"model": "m", "dataset": "tiny", **fields})
        return job_spec(body, settings, datasets, versions)

    return submitting


def test_a_job_has_everything_that_its_result_depends_on(
    submit: Callable[..., JobSpec], datasets: DatasetStore
) -> None:
    spec = submit(preset="small", overrides={"encoder_dim": 32}, seed=5, max_minutes=1.5, max_epochs=2)
    assert spec.datasets[0].sha256 == datasets.get("tiny").sha256
    assert (spec.src_lang, spec.tgt_lang, spec.num_threads) == ("en", "fr", 3)
    preset = spec.full_preset()
    assert preset.model.encoder_dim == 32
    assert (preset.training.seed, preset.training.max_minutes, preset.training.max_epochs) == (5, 1.5, 2)
    assert spec.dev.share == spec.test.share == 0.1


@pytest.mark.parametrize("languages", [{"source": "fr"}, {"target": "en"}, {"source": "fr", "target": "en"}])
def test_a_dataset_serves_both_directions(submit: Callable[..., JobSpec], languages: dict[str, str]) -> None:
    spec = submit(dataset=None, datasets=["tiny", "backwards"], **languages)
    assert (spec.src_lang, spec.tgt_lang) == ("fr", "en")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": "../x"}, "model"),
        ({"model": "a/b"}, "model"),
        ({"model": ""}, "model"),
        ({"preset": "huge"}, "preset"),
        ({"dataset": "small"}, "dataset"),
        ({"dataset": "../tiny"}, "dataset"),
        ({"dataset": "tiny", "datasets": ["other"]}, "dataset"),
        ({"dataset": None}, "dataset"),
        ({"dataset": None, "datasets": ["tiny", "tiny"]}, "datasets"),
        ({"dataset": None, "datasets": ["tiny", "german"]}, "target"),
        ({"source": "de"}, "source"),
        ({"source": "en", "target": "en"}, "target"),
        ({"dev": "german"}, "dev"),
        ({"dev": 0}, "dev"),
        ({"dev": 0.3, "test": 0.3}, "dev"),
        ({"overrides": {"encoder_dim": -1}}, "overrides.encoder_dim"),
        ({"overrides": {"learning_rat": 1}}, "overrides.learning_rat"),
        ({"overrides": {"learning_rate": float("nan")}}, "overrides.learning_rate"),
        ({"overrides": {"learning_rate": [1]}}, "overrides.learning_rate"),
        ({"overrides": {"cell": "x" * 65}}, "overrides.cell"),
        ({"overrides": {"vocab_size": 10**40}}, "overrides.vocab_size"),
        ({"overrides": {"x" * 100_000: 1}}, "overrides"),
        ({"overrides": {"max_minutes": 0}}, "overrides.max_minutes"),
        ({"overrides": {"seed": 1}}, "overrides.seed"),
        ({"start_from": "en-fr", "overrides": {"encoder_dim": 32}}, "overrides.encoder_dim"),
    ],
)
def test_a_wrong_field_is_named(submit: Callable[..., JobSpec], fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        submit(**fields)
    assert caught.value.field == field
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"dataset": "none"}, "dataset"), ({"test": ["other", "none"]}, "test"), ({"dev": "none"}, "dev")],
)
def test_an_unknown_dataset_is_named_by_its_field(
    submit: Callable[..., JobSpec], fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(UnknownDataset) as caught:
        submit(**fields)
    assert getattr(caught.value, "field", None) == field


def test_a_model_to_start_from_is_fixed_to_its_live_version(
    submit: Callable[..., JobSpec], tiny_checkpoint: Path
) -> None:
    version = load_checkpoint(tiny_checkpoint).version
    assert submit(start_from="en-fr").start_from == f"en-fr@{version}"
    assert submit(start_from=f"never-live@{version}").start_from == f"never-live@{version}"


def test_a_model_to_start_from_that_is_not_there_is_refused(submit: Callable[..., JobSpec]) -> None:
    with pytest.raises(UnknownModel):
        submit(start_from="none")
    for name in ("en-fr@0123456789ab", "never-live", "en-fr@../x"):
        with pytest.raises(UnknownVersion):
            submit(start_from=name)
