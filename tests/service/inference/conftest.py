"""Versions of the tiny trained model: the same network with other weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="session")
def other_weights(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """`other_weights(1.01)`: the folder of the tiny model with its weights times so much."""
    made: dict[float, Path] = {}

    def changed(factor: float) -> Path:
        if factor not in made:
            checkpoint = load_checkpoint(tiny_checkpoint)
            tensors = {id(tensor): tensor * factor for tensor in checkpoint.weights.values()}
            weights = {name: tensors[id(tensor)] for name, tensor in checkpoint.weights.items()}
            folder = tmp_path_factory.mktemp("changed")
            made[factor] = save_checkpoint(replace(checkpoint, weights=weights), folder)
        return made[factor]

    return changed


@pytest.fixture
def write_stub() -> Callable[[Path, str], Path]:
    """`write_stub(folder, version)`: a folder that passes for a checkpoint of that version until it is loaded."""

    def writing(folder: Path, version: str, *, pair: str = "en-fr", num_bytes: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.safetensors").write_bytes(b"x" * num_bytes)
        files = {"weights.safetensors": {"sha256": version + "0" * 52}}
        config = {"src_lang": pair[:2], "tgt_lang": pair[3:], "model": {"cell": pair}, "files": files}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return writing
