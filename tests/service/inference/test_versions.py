"""Models and versions on disk: published whole, one live, a way back; several processes at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import load_checkpoint
from model.errors import CheckpointError, InvalidValue
from service.errors import (
    CannotStore,
    NoPreviousVersion,
    UnknownModel,
    UnknownVersion,
    VersionConflict,
    VersionIsLive,
)
from service.inference.versions import VersionStore, check_name

ROOT = Path(__file__).parents[3]
OtherWeights = Callable[[float], Path]


@pytest.fixture
def store(tiny_checkpoint: Path, tmp_path: Path) -> VersionStore:
    """One model en-fr, a plain checkpoint."""
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "en-fr")
    return VersionStore(tmp_path / "models")


@pytest.fixture
def plain(tiny_checkpoint: Path) -> str:
    return load_checkpoint(tiny_checkpoint).version


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# -- plain checkpoints


def test_a_plain_checkpoint_is_a_version_and_live(store: VersionStore, plain: str) -> None:
    assert store.names() == ["en-fr"]
    assert store.live("en-fr") == plain
    (info,) = store.versions("en-fr")
    assert (info.version, info.is_live, info.folder) == (plain, True, store.root / "en-fr")


def test_a_plain_checkpoint_tells_the_lineage_that_training_wrote_down(store: VersionStore) -> None:
    metrics = {"data_sha256": "ab", "seed": 3, "parent": "0123456789ab", "test": {"greedy": {"bleu": 5.0}}}
    (store.root / "en-fr" / "metrics.json").write_text(json.dumps(metrics))
    lineage = store.versions("en-fr")[0].lineage
    assert lineage["dataset_sha256"] == "ab"
    assert (lineage["seed"], lineage["parent"], lineage["scores"]) == (3, "0123456789ab", {"greedy": {"bleu": 5.0}})


def test_looking_at_a_folder_changes_nothing_in_it(store: VersionStore) -> None:
    before = everything_in(store.root)
    store.versions("en-fr"), store.target("en-fr"), store.history("en-fr")
    assert everything_in(store.root) == before


def test_a_single_models_folder_is_a_store_of_that_model(
    store: VersionStore, other_weights: OtherWeights, plain: str
) -> None:
    single = VersionStore(store.root / "en-fr")
    version = single.publish("en-fr", other_weights(1.01), lineage={})
    assert single.names() == ["en-fr"]
    assert single.live("en-fr") == plain
    assert {info.version for info in single.versions("en-fr")} == {plain, version}
    with pytest.raises(InvalidValue, match="that one model"):
        single.publish("fr-en", other_weights(1.01), lineage={})
    single.set_live("en-fr", version, reason="x")
    with pytest.raises(InvalidValue):
        single.delete("en-fr", plain)


# -- publishing


def test_a_published_version_keeps_its_lineage_and_is_not_live(
    store: VersionStore, other_weights: OtherWeights, plain: str
) -> None:
    lineage = {"dataset_sha256": "ab" * 32, "seed": 7, "parent": plain, "job": "j1", "scores": {"bleu": 12.5}}
    version = store.publish("en-fr", other_weights(1.01), lineage=lineage)
    assert version == load_checkpoint(other_weights(1.01)).version
    assert store.live("en-fr") == plain
    info = next(info for info in store.versions("en-fr") if info.version == version)
    assert info.lineage == lineage
    assert info.folder == store.root / "en-fr" / "versions" / version
    assert load_checkpoint(store.folder("en-fr", version)).version == version


def test_publishing_makes_a_new_model_of_which_nothing_is_live(
    store: VersionStore, other_weights: OtherWeights
) -> None:
    version = store.publish("fr-en", other_weights(1.01), lineage={})
    assert store.names() == ["en-fr", "fr-en"]
    assert (store.live("fr-en"), store.target("fr-en")) == (None, None)
    store.set_live("fr-en", version, reason="first")
    assert store.live("fr-en") == version
    with pytest.raises(NoPreviousVersion):
        store.rollback("fr-en")


def test_publishing_the_same_weights_twice_is_once(
    store: VersionStore, other_weights: OtherWeights, tiny_checkpoint: Path, plain: str
) -> None:
    first = store.publish("en-fr", other_weights(1.01), lineage={"job": "j1"})
    assert store.publish("en-fr", other_weights(1.01), lineage={"job": "j2"}) == first
    assert store.publish("en-fr", tiny_checkpoint, lineage={"job": "j3"}) == plain
    assert [info.lineage.get("job") for info in store.versions("en-fr") if info.version == first] == ["j1"]
    assert len(store.versions("en-fr")) == 2


def test_publishing_again_mends_a_version_that_was_damaged(store: VersionStore, other_weights: OtherWeights) -> None:
    version = store.publish("en-fr", other_weights(1.01), lineage={})
    (store.folder("en-fr", version) / "weights.safetensors").write_bytes(b"x")
    store.publish("en-fr", other_weights(1.01), lineage={})
    assert load_checkpoint(store.folder("en-fr", version)).version == version


def test_a_damaged_folder_is_refused_and_leaves_nothing_behind(
    store: VersionStore, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, damaged)
    (damaged / "weights.safetensors").write_bytes(b"x" * 10)
    with pytest.raises(CheckpointError, match=r"damaged/weights.safetensors: has 10 bytes"):
        store.publish("en-fr", damaged, lineage={})
    with pytest.raises(CheckpointError):
        store.publish("en-fr", tmp_path / "nowhere", lineage={})
    assert list((store.root / "en-fr" / "versions").iterdir()) == []


def test_half_written_and_deleted_versions_are_not_seen_and_swept_away(
    store: VersionStore, other_weights: OtherWeights, tiny_checkpoint: Path
) -> None:
    versions = store.root / "en-fr" / "versions"
    shutil.copytree(tiny_checkpoint, versions / ".incoming-abc")
    shutil.copytree(tiny_checkpoint, versions / ".deleted-abc" / "0123456789ab")
    assert len(store.versions("en-fr")) == 1
    version = store.publish("en-fr", other_weights(1.01), lineage={})
    assert [path.name for path in versions.iterdir()] == [version]


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a..b", ".hidden", "Upper", "a b", "é", "-a", "x" * 65, "a\n", "a\x00", ".."]
)
def test_a_name_that_could_leave_the_folder_or_confuse_is_refused(
    store: VersionStore, other_weights: OtherWeights, name: str
) -> None:
    before = everything_in(store.root.parent)
    with pytest.raises(InvalidValue, match="model is"):
        store.publish(name, other_weights(1.01), lineage={})
    assert everything_in(store.root.parent) == before


@pytest.mark.parametrize("name", ["a", "en-fr", "en_fr.2", "0", "x" * 64])
def test_a_plain_name_is_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["xx", "..", "../models/en-fr", "en-fr/versions", ""])
def test_only_models_that_are_there_are_found(store: VersionStore, name: str) -> None:
    for call in (store.versions, store.live, store.target, store.rollback, lambda n: store.delete(n, "a" * 12)):
        with pytest.raises(UnknownModel):
            call(name)


@pytest.mark.parametrize("version", ["", "..", "../..", "a" * 12, "versions"])
def test_only_versions_that_are_there_are_found(store: VersionStore, version: str) -> None:
    for call in (store.folder, store.delete, lambda n, v: store.set_live(n, v, reason="x")):
        with pytest.raises(UnknownVersion):
            call("en-fr", version)


def test_a_folder_that_cannot_be_written_is_told(
    store: VersionStore, other_weights: OtherWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.inference.versions.shutil.copyfile", full)
    with pytest.raises(CannotStore, match="No space left on device"):
        store.publish("en-fr", other_weights(1.01), lineage={})
    assert list((store.root / "en-fr" / "versions").iterdir()) == []


# -- the live version


@pytest.fixture
def three(store: VersionStore, other_weights: OtherWeights, plain: str) -> tuple[str, str, str]:
    """The plain version and two more."""
    a = store.publish("en-fr", other_weights(1.01), lineage={})
    b = store.publish("en-fr", other_weights(1.02), lineage={})
    return plain, a, b


def test_rolling_back_undoes_one_promotion_after_another(store: VersionStore, three: tuple[str, str, str]) -> None:
    plain, a, b = three
    for version in (a, b):
        store.set_live("en-fr", version, reason=f"to {version}")
    assert store.previous("en-fr") == a
    assert [store.rollback("en-fr"), store.rollback("en-fr")] == [a, plain]
    assert store.live("en-fr") == plain
    with pytest.raises(NoPreviousVersion):
        store.rollback("en-fr")
    assert [switch.version for switch in store.history("en-fr")] == [plain, a, b, a]
    assert store.history("en-fr")[-1].reason == f"to {a}"


def test_going_to_and_fro_by_promotion_does_not_pile_up(store: VersionStore, three: tuple[str, str, str]) -> None:
    plain, a, _ = three
    for _ in range(3):
        store.set_live("en-fr", a, reason="x")
        store.set_live("en-fr", plain, reason="y")
    assert store.rollback("en-fr") == a
    with pytest.raises(NoPreviousVersion):
        store.rollback("en-fr")


def test_promoting_the_live_version_again_changes_nothing(store: VersionStore, three: tuple[str, str, str]) -> None:
    store.set_live("en-fr", three[1], reason="x")
    before = (store.root / "en-fr" / "live.json").read_bytes()
    store.set_live("en-fr", three[1], reason="again")
    assert (store.root / "en-fr" / "live.json").read_bytes() == before


def test_a_rollback_that_would_go_elsewhere_than_expected_changes_nothing(
    store: VersionStore, three: tuple[str, str, str]
) -> None:
    plain, a, b = three
    store.set_live("en-fr", a, reason="x")
    with pytest.raises(VersionConflict):
        store.rollback("en-fr", expected=b)
    assert store.live("en-fr") == a
    assert store.rollback("en-fr", expected=plain) == plain


def test_a_live_version_cannot_be_deleted_and_a_deleted_one_is_passed_over(
    store: VersionStore, three: tuple[str, str, str]
) -> None:
    plain, a, b = three
    store.set_live("en-fr", a, reason="x")
    store.set_live("en-fr", b, reason="x")
    with pytest.raises(VersionIsLive, match="roll back"):
        store.delete("en-fr", b)
    store.delete("en-fr", a)
    assert {info.version for info in store.versions("en-fr")} == {plain, b}
    assert store.rollback("en-fr") == plain


def test_a_plain_checkpoint_can_be_deleted_once_another_is_live(
    store: VersionStore, three: tuple[str, str, str]
) -> None:
    plain, a, b = three
    store.set_live("en-fr", a, reason="x")
    store.delete("en-fr", plain)
    assert {info.version for info in store.versions("en-fr")} == {a, b}
    assert store.live("en-fr") == a


def test_where_the_live_version_was_removed_by_hand_the_plain_one_is_live(
    store: VersionStore, three: tuple[str, str, str]
) -> None:
    plain, a, _ = three
    store.set_live("en-fr", a, reason="x")
    shutil.rmtree(store.folder("en-fr", a))
    assert store.live("en-fr") == plain


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 2}', b'{"format_version": 1, "live": "x"}'])
def test_a_damaged_pointer_is_told_by_name(store: VersionStore, content: bytes) -> None:
    (store.root / "en-fr" / "live.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"live\.json"):
        store.live("en-fr")


# -- several processes

_WORKER = """
import sys
from pathlib import Path
from service.inference.versions import VersionStore
root, folder, version, rounds = sys.argv[1:]
store = VersionStore(Path(root))
for _ in range(int(rounds)):
    assert store.publish("en-fr", Path(folder), lineage={}) == version
    store.set_live("en-fr", version, reason="x")
    assert all(info.num_bytes for info in store.versions("en-fr"))
    assert store.live("en-fr") is not None
"""


def test_processes_that_publish_and_promote_at_once_lose_no_switch(
    store: VersionStore, other_weights: OtherWeights
) -> None:
    factors, rounds = (1.01, 1.02, 1.03), 5
    workers = []
    for factor in factors:
        version = load_checkpoint(other_weights(factor)).version
        command = [sys.executable, "-c", _WORKER, str(store.root), str(other_weights(factor)), version, str(rounds)]
        workers.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}))
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    assert len(store.versions("en-fr")) == 1 + len(factors)
    history = store.history("en-fr")
    assert len(factors) <= len(history) <= rounds * len(factors)
    assert all(one.version != next_.version for one, next_ in pairwise(history))
    assert store.live("en-fr") == history[0].version


def test_a_killed_writer_locks_nobody_out(store: VersionStore, other_weights: OtherWeights) -> None:
    code = (
        "import sys, time; from pathlib import Path; from service.inference.versions import VersionStore;"
        "store = VersionStore(Path(sys.argv[1]));"
        "lock = store._locked(store.root / 'en-fr'); lock.__enter__(); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(store.root)], cwd=ROOT, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    version = store.publish("en-fr", other_weights(1.01), lineage={})
    store.set_live("en-fr", version, reason="x")
    assert store.live("en-fr") == version
