"""Checkpoints: what is saved comes back whole, and nothing damaged, foreign or of another version is let in."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint, save_checkpoint
from model.errors import CheckpointError
from model.files import sha256_of


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **values}))


def relist(folder: Path, name: str) -> None:
    """Makes config.json believe in a file that was changed."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["files"][name] = {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def test_save_then_load_is_identical(folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(folder)
    save_checkpoint(first, tmp_path / "again")
    second = load_checkpoint(tmp_path / "again")
    assert first.version == second.version
    assert first.model == second.model
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.src_tokenizer.encode("Hello, you.") == second.src_tokenizer.encode("Hello, you.")


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "tokenizer.model", "metrics.json"])
def test_a_truncated_file_is_refused_by_name(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"{name}.*truncated"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "tokenizer.model"])
def test_one_altered_byte_is_refused_by_name(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}.*sha256"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "tokenizer.model", "metrics.json", CONFIG_FILE])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}.*is missing"):
        load_checkpoint(folder)


def test_another_format_version_is_refused(folder: Path) -> None:
    edit_config(folder, format_version=99)
    with pytest.raises(CheckpointError, match="format version 99"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b"{", b"\xff\xfe", b'{"format": "other"}', b"[" * 100_000])
def test_a_foreign_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=CONFIG_FILE):
        load_checkpoint(folder)


def test_a_pickle_in_the_place_of_the_weights_is_never_loaded(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, ("raise SystemExit('unpickled')",))

    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(Trap()))
    relist(folder, WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_checkpoint(folder)


def test_a_file_outside_the_folder_is_refused(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    edit_config(folder, files={**config["files"], "../evil": {"sha256": "", "bytes": 0}})
    with pytest.raises(CheckpointError, match="no plain file name"):
        load_checkpoint(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    edit_config(folder, model={**config["model"], "decoder_dim": 30})
    with pytest.raises(CheckpointError, match=r"of shape|lacks"):
        load_checkpoint(folder)


def test_an_unknown_network_option_is_refused(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    edit_config(folder, model={**config["model"], "transformer": True})
    with pytest.raises(CheckpointError, match="transformer"):
        load_checkpoint(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")


def test_loading_does_not_import_the_compiler_of_torch(folder: Path) -> None:
    code = (
        "import sys; from model.checkpoint import load_checkpoint; load_checkpoint(sys.argv[1]).build();"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == 0
