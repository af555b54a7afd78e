"""`recurra models`: versions on disk, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from model.checkpoint import load_checkpoint, save_checkpoint
from model.errors import CheckpointError, InvalidValue
from service.cli import app
from service.errors import NoPreviousVersion, UnknownModel, UnknownVersion
from service.inference.versions import VersionStore

Recurra = Callable[..., str]


@pytest.fixture
def store(tiny_checkpoint: Path, tmp_path: Path) -> VersionStore:
    """A copy of the tiny model that a test may change, and a second version of it."""
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "en-fr")
    return VersionStore(tmp_path / "models")


@pytest.fixture
def recurra(store: VersionStore, monkeypatch: pytest.MonkeyPatch) -> Recurra:
    """`recurra("list")`: what `recurra models list` prints; exit status 0, or its error raised."""
    monkeypatch.setenv("RECURRA_CHECKPOINTS", str(store.root))

    def run(*arguments: str | Path, exit_code: int = 0) -> str:
        result = CliRunner().invoke(app, ["models", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result.stdout

    return run


def publish(store: VersionStore, factor: float, **lineage: Any) -> str:
    """A version with the tiny model's weights times so much."""
    checkpoint = load_checkpoint(store.root / "en-fr")
    tensors = {id(tensor): tensor * factor for tensor in checkpoint.weights.values()}
    weights = {name: tensors[id(tensor)] for name, tensor in checkpoint.weights.items()}
    folder = save_checkpoint(replace(checkpoint, weights=weights), store.root.parent / f"times {factor}")
    return store.publish("en-fr", folder, lineage=lineage)


@pytest.fixture
def other(store: VersionStore) -> str:
    return publish(store, 3.0, job="j1")


@pytest.fixture
def plain(store: VersionStore) -> str:
    return load_checkpoint(store.root / "en-fr").version


def test_every_version_is_listed_and_the_live_one_marked(recurra: Recurra, other: str, plain: str) -> None:
    lines = [line.split() for line in recurra("list").splitlines()]
    assert {tuple(line[:3]) for line in lines[1:]} == {("en-fr", other, "en→fr"), ("en-fr", plain, "live")}


def test_show_tells_the_lineage_of_the_version_that_is_asked_for(recurra: Recurra, other: str, plain: str) -> None:
    shown = json.loads(recurra("show", "en-fr", "--version", other))
    assert (shown["version"], shown["lineage"], shown["live"]) == (other, {"job": "j1"}, plain)
    assert set(shown["versions"]) == {other, plain}
    assert json.loads(recurra("show"))["version"] == plain


def test_verify_checks_every_version(recurra: Recurra, store: VersionStore, other: str, plain: str) -> None:
    assert {line.split()[-1] for line in recurra("verify").splitlines()} == {other, plain}
    (store.folder("en-fr", other) / "weights.safetensors").write_bytes(b"x")
    assert recurra("verify", "en-fr", exit_code=1).split()[-1] == plain


def test_promote_and_rollback_move_the_live_version(
    recurra: Recurra, store: VersionStore, other: str, plain: str
) -> None:
    assert recurra("promote", "en-fr", other, "--reason", "newer") == f"en-fr: {other} is live\n"
    assert store.live("en-fr") == other
    assert store.history("en-fr")[0].reason == "newer"
    assert json.loads(recurra("show"))["version"] == other
    assert recurra("rollback", "en-fr") == f"en-fr: {plain} is live\n"
    assert store.live("en-fr") == plain
    with pytest.raises(NoPreviousVersion):
        recurra("rollback", "en-fr")


def test_a_version_that_does_not_load_is_not_promoted(
    recurra: Recurra, store: VersionStore, other: str, plain: str
) -> None:
    (store.folder("en-fr", other) / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        recurra("promote", "en-fr", other)
    assert store.live("en-fr") == plain


def test_what_is_not_there_is_named(recurra: Recurra, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        recurra("promote", "xx", "0" * 12)
    with pytest.raises(UnknownVersion):
        recurra("promote", "en-fr", "0" * 12)
    with pytest.raises(UnknownVersion):
        recurra("export", "en-fr", "--version", "0" * 12, "--out", tmp_path / "out")


def test_if_better_keeps_the_live_version_where_the_other_wins_nothing(
    recurra: Recurra, store: VersionStore, other: str, plain: str, tmp_path: Path
) -> None:
    test_set = tmp_path / "test.jsonl"
    test_set.write_text('{"en": "I am cold.", "fr": ["J\'ai froid."]}\n')
    out = recurra("promote", "en-fr", other, "--if-better", test_set, exit_code=1)
    assert out.startswith("en-fr: BLEU ")
    assert store.live("en-fr") == plain


def test_the_average_is_the_mean_of_the_weights_and_not_live(
    recurra: Recurra, store: VersionStore, other: str, plain: str
) -> None:
    version = recurra("average", "en-fr", plain, other).strip()
    mean = load_checkpoint(store.folder("en-fr", version))
    original = load_checkpoint(store.folder("en-fr", plain)).weights
    for name, tensor in mean.weights.items():
        torch.testing.assert_close(tensor, original[name] * 2)
    assert store.live("en-fr") == plain
    info = next(info for info in store.versions("en-fr") if info.version == version)
    assert info.lineage == {"kind": "average", "parents": [plain, other]}
    assert mean.metrics["average_of"] == [plain, other]
    assert "test" not in mean.metrics


def test_only_versions_of_one_shape_are_averaged(recurra: Recurra, store: VersionStore, plain: str) -> None:
    with pytest.raises(InvalidValue, match="two or more different"):
        recurra("average", "en-fr", plain, plain)
    checkpoint = load_checkpoint(store.root / "en-fr")
    config = replace(checkpoint.model, reverse_source=not checkpoint.model.reverse_source)
    tensors = {id(tensor): tensor * 2 for tensor in checkpoint.weights.values()}
    weights = {name: tensors[id(tensor)] for name, tensor in checkpoint.weights.items()}
    folder = save_checkpoint(replace(checkpoint, model=config, weights=weights), store.root.parent / "reversed")
    with pytest.raises(InvalidValue, match=f"network of {plain}"):
        recurra("average", "en-fr", plain, store.publish("en-fr", folder, lineage={}))


def test_an_exported_folder_is_a_checkpoint_with_checksums(recurra: Recurra, other: str, tmp_path: Path) -> None:
    out = tmp_path / "out" / "mine"
    recurra("export", "en-fr", "--version", other, "--out", out)
    assert load_checkpoint(out).version == other
    assert json.loads((out / "lineage.json").read_text())["job"] == "j1"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True, capture_output=True)
    assert {path.name for path in out.parent.iterdir()} == {"mine"}


def test_an_exported_archive_is_the_same_bytes_each_time_and_unpacks_to_a_checkpoint(
    recurra: Recurra, plain: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"
    for out in (first, second):
        recurra("export", "en-fr", "--out", out)
    assert first.read_bytes() == second.read_bytes()
    subprocess.run(["sha256sum", "--check", "a.tar.gz.sha256"], cwd=tmp_path, check=True, capture_output=True)
    with tarfile.open(first) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert load_checkpoint(tmp_path / "unpacked" / "en-fr").version == plain


def test_an_export_overwrites_nothing(recurra: Recurra, tmp_path: Path) -> None:
    out = tmp_path / "out.tar.gz"
    out.write_text("mine")
    with pytest.raises(InvalidValue, match="nothing yet"):
        recurra("export", "en-fr", "--out", out)
    assert out.read_text() == "mine"
