"""`kill -9` at any moment, then the same command again: the weights are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killed_run.py")
ROOT = Path(__file__).parents[3]


def run(folder: Path, *arguments: str) -> int:
    """Number of kills that the run went through."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder), *arguments]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(folder, "never") == 0
    return folder


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("moments", "seed"), [("time", 1), ("files", 1), ("files", 2)])
def test_a_run_killed_many_times_ends_with_the_same_bytes(
    undisturbed: Path, tmp_path: Path, moments: str, seed: int
) -> None:
    num_kills = run(tmp_path, moments, str(seed))
    assert num_kills >= 3
    for name in ("weights.safetensors", "tokenizer.model"):
        ours, theirs = tmp_path / "en-fr" / name, undisturbed / "en-fr" / name
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert steps_logged(tmp_path) == steps_logged(undisturbed)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in (undisturbed / "run").iterdir()}
