"""The watcher of a trainer: started again after kills, stopped when asked, never left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.jobs import process
from service.jobs.failures import JobFailed
from service.jobs.process import MAX_VAIN_STARTS, Interrupted, StageCancelled, Watcher
from service.jobs.run import RunFolder
from service.jobs.spec import JobSpec
from service.settings import Settings

HEAD = "import os, signal, sys, time; from service.jobs.run import RunFolder; run = RunFolder(sys.argv[1])\n"
STOPS_WELL = "signal.signal(signal.SIGTERM, lambda *_: os._exit(75)); run.tell('ready'); time.sleep(60)"


@pytest.fixture
def run(tmp_path: Path, spec: JobSpec) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(spec)
    return run


class Fixture:
    """A watcher over a trainer that is a few lines of Python."""

    def __init__(self, run: RunFolder, tmp_path: Path) -> None:
        self.run = run
        self.closing = threading.Event()
        self.heard: list[dict[str, Any]] = []
        self.is_cancelled = False
        self._settings = Settings(data=tmp_path, checkpoints=tmp_path, training_nice=0)

    def watch(self, code: str, on_event: Callable[[str], None] = lambda event: None) -> None:
        def hear(values: dict[str, Any]) -> None:
            self.heard.append(values)
            on_event(values["event"])

        Watcher(
            self.run,
            self._settings,
            closing=self.closing,
            is_cancelled=lambda: self.is_cancelled,
            on_event=hear,
            command=lambda run, stage: [sys.executable, "-c", HEAD + code, str(run.path), stage],
        ).run_stage("train")


@pytest.fixture
def fixture(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    monkeypatch.setattr(process, "_RESTART_SECONDS", 0.001)
    return Fixture(run, tmp_path)


def test_a_stage_that_is_done_returns_and_its_events_are_heard(fixture: Fixture) -> None:
    fixture.watch("run.tell('progress', step=1); run.tell('progress', step=2); print('words')")
    assert [event["step"] for event in fixture.heard] == [1, 2]
    assert fixture.run.log.read_text() == "words\n"


def test_a_killed_trainer_is_started_again_as_long_as_it_gets_further(fixture: Fixture) -> None:
    code = (
        "run.train.mkdir(exist_ok=True); number = len(list(run.train.iterdir()))\n"
        f"if number == {MAX_VAIN_STARTS + 2}: sys.exit()\n"
        "(run.train / str(number)).touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    fixture.watch(code)


def test_a_trainer_that_is_killed_again_and_again_in_vain_fails_the_job(fixture: Fixture) -> None:
    with pytest.raises(JobFailed, match="SIGKILL") as caught:
        fixture.watch("run.tell('progress', step=1); os.kill(os.getpid(), signal.SIGKILL)")
    assert caught.value.failure.code == "killed"
    assert len([event for event in fixture.heard if event["event"] == "progress"]) == MAX_VAIN_STARTS


def test_what_the_trainer_says_of_its_failure_is_the_jobs(fixture: Fixture) -> None:
    with pytest.raises(JobFailed, match="no room") as caught:
        fixture.watch(
            "from service.jobs.failures import Failure\n"
            "run.fail(Failure(code='disk_full', detail='no room')); sys.exit(3)"
        )
    assert caught.value.failure.code == "disk_full"


def test_a_full_disk_is_told_by_the_exit_status_alone(fixture: Fixture) -> None:
    with pytest.raises(JobFailed) as caught:
        fixture.watch("sys.exit(74)")
    assert caught.value.failure.code == "disk_full"


def test_a_run_that_is_asked_to_stop_stops_and_is_cancelled(fixture: Fixture) -> None:
    with pytest.raises(StageCancelled):
        fixture.watch(STOPS_WELL, lambda event: fixture.run.ask_to_stop())


def test_a_job_that_is_cancelled_in_the_database_alone_stops_too(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_CANCEL_LOOK_SECONDS", 0.0)
    fixture.is_cancelled = True
    with pytest.raises(StageCancelled):
        fixture.watch(STOPS_WELL)


def test_a_trainer_is_stopped_when_the_service_shuts_down_and_the_stage_stays_open(fixture: Fixture) -> None:
    with pytest.raises(Interrupted):
        fixture.watch(STOPS_WELL, lambda event: fixture.closing.set())
    assert not issubclass(Interrupted, Exception), "the workflow engine would record it as the stage's result"


def test_a_trainer_that_does_not_stop_is_killed_with_those_it_started(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.1)
    code = (
        "import subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "run.tell('ready', pid=child.pid); time.sleep(60)"
    )
    with pytest.raises(StageCancelled):
        fixture.watch(code, lambda event: fixture.run.ask_to_stop())
    pid = fixture.heard[0]["pid"]
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the trainer's own process lives on"


def test_it_is_not_started_where_the_run_is_asked_to_stop_already(fixture: Fixture) -> None:
    fixture.run.ask_to_stop()
    with pytest.raises(StageCancelled):
        fixture.watch("run.tell('ready')")
    assert fixture.heard == []


def test_signals_that_come_again_and_again_do_not_hold_a_trainer_up() -> None:
    code = (
        "import os, signal; from service.jobs.trainer import Watch; watch = Watch()\n"
        "def burst(*_):\n    for _ in range(20000): os.kill(os.getpid(), signal.SIGTERM)\n"
        "import threading; other = threading.Thread(target=burst); other.start(); burst(); other.join()\n"
        "print(watch.is_stopping())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, stdin=None, timeout=60, check=False)
    assert done.stdout == b"True\n", done.stderr


def test_a_trainer_ends_when_the_process_that_started_it_is_killed(fixture: Fixture) -> None:
    code = (
        HEAD + "import subprocess\n"
        "trainer = subprocess.Popen([sys.executable, '-c', sys.argv[2]], stdin=subprocess.PIPE)\n"
        "print(trainer.pid, flush=True); time.sleep(60)"
    )
    watching = (
        "import time; from service.jobs.trainer import Watch; watch = Watch()\n"
        "while not watch.is_stopping(): time.sleep(0.01)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(fixture.run.path), watching], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        trainer = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{trainer}/cmdline").exists() and Path(f"/proc/{trainer}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the trainer outlives its service"
