"""Two processes on one machine: the same training as one process with twice the batch; a lost process costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.distributed import final_errors, launch, launch_command, launch_environment
from model.errors import InvalidValue, TrainingError

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def run(folder: Path, nproc: int, *arguments: str) -> list[float]:
    """The epochs' mean losses."""
    folder.mkdir(exist_ok=True)
    command = launch_command(nproc, "one_of_several", [str(folder), *arguments])
    environment = {**launch_environment(nproc), "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    losses: list[float] = json.loads((folder / "losses.json").read_text())[0]
    return losses


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, run(folder, 2, "80")


def test_two_processes_have_the_loss_of_one_with_twice_the_batch(
    two_processes: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder, losses = two_processes
    alone = run(tmp_path, 1, "160")
    assert losses == pytest.approx(alone, abs=1e-4)
    assert alone[-1] < alone[0] - 0.1
    ours, theirs = (load_file(path / "en-fr" / "weights.safetensors") for path in (folder, tmp_path))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=1e-2)


def test_a_killed_process_is_started_again_and_the_weights_are_the_same_bytes(
    two_processes: tuple[Path, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{HERE}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch(2, "one_of_several", [str(tmp_path), "80", "17"])
    # Once for the kill, and once more where gloo gives up on a start: whatever died, it goes on.
    assert json.loads((tmp_path / "losses.json").read_text())[1] >= 1
    ours, theirs = (path / "en-fr" / "weights.safetensors" for path in (tmp_path, two_processes[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_another_number_of_processes_does_not_resume_a_run(two_processes: tuple[Path, list[float]]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(two_processes[0], 1, "80")
    assert b"resume it with nproc = 2" in caught.value.stderr


@pytest.mark.parametrize("nproc", [0, -1, 65])
def test_a_wrong_number_of_processes_is_named(nproc: int) -> None:
    with pytest.raises(InvalidValue, match=f"nproc is {nproc}"):
        launch_command(nproc, "service", [])


def test_one_process_needs_no_launcher() -> None:
    assert launch_command(1, "service", ["train"])[1:] == ["-m", "service", "train"]


def test_an_error_that_is_final_is_left_for_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = tmp_path / "verdict"
    monkeypatch.setenv("RECURRA_VERDICT_PATH", str(verdict))
    with pytest.raises(SystemExit) as caught, final_errors():
        raise TrainingError("no such data")
    assert caught.value.code == 0
    assert verdict.read_text() == "no such data"
    with pytest.raises(SystemExit), final_errors():
        os.abort()  # not reached: whoever is started again finds the verdict
