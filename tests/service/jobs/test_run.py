"""The folder of a run: one worker, stop, results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.jobs.failures import Failure
from service.jobs.run import RunFolder
from service.jobs.spec import JobSpec


@pytest.fixture
def run(tmp_path: Path, spec: JobSpec) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(spec)
    return run


def test_a_spec_comes_back_as_it_was(run: RunFolder, spec: JobSpec) -> None:
    assert run.spec() == spec
    assert run.spec().full_preset().training.seed == 3


class GaveUpError(Exception):
    pass


def give_up() -> None:
    raise GaveUpError


def test_a_second_worker_waits_and_the_kernel_frees_a_killed_ones_lock(run: RunFolder) -> None:
    code = (
        "import sys; from service.jobs.run import RunFolder\n"
        f"with RunFolder({str(run.path)!r}).locked(lambda: None):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert run.is_busy
        with pytest.raises(GaveUpError), run.locked(give_up):
            pass
        other.kill()
    with run.locked(give_up):
        assert run.is_busy
    assert not run.is_busy


def test_it_can_be_asked_to_stop_and_allowed_again(run: RunFolder) -> None:
    run.ask_to_stop()
    run.ask_to_stop()
    assert run.is_asked_to_stop
    run.allow()
    run.allow()
    assert not run.is_asked_to_stop


def test_asking_a_run_without_a_folder_to_stop_makes_none(tmp_path: Path) -> None:
    RunFolder(tmp_path / "none").ask_to_stop()
    assert not (tmp_path / "none").exists()


def test_a_failure_is_taken_once(run: RunFolder) -> None:
    failure = Failure(code="disk_full", detail="no room")
    run.fail(failure)
    assert run.take_failure() == failure
    assert run.take_failure() is None


def test_its_mark_changes_when_a_stage_leaves_something(run: RunFolder) -> None:
    marks = [run.progress_mark()]
    run.tell("progress", step=1)
    assert run.progress_mark() == marks[0], "news alone is no progress: it does not survive"
    run.train.mkdir()
    (run.train / "state.safetensors").write_bytes(b"1")
    marks.append(run.progress_mark())
    (run.train / ".state.tmp").write_bytes(b"half")
    marks.append(run.progress_mark())
    assert marks[0] != marks[1] == marks[2]


def test_what_only_a_resume_needs_is_freed_and_the_story_stays(run: RunFolder) -> None:
    for folder in (run.data, run.train, run.candidate):
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    run.tell("stage", stage="train")
    run.forget_intermediate()
    assert {path.name for path in run.path.iterdir()} == {"job.json", "events.jsonl"}
