"""Training jobs of two processes each: `RECURRA_TRAINING_PROCESSES`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import job_body, upload
from benchmarks.service_process import ServiceProcess, wait_for

TINY = Path(__file__).parents[1] / "data" / "tiny.en-fr.tsv"
SETTINGS: dict[str, Any] = {
    "training_processes": 2,
    "training_nice": 0,
    "training_scheduler": "other",
    "precision": "fp32",
    "num_threads": 1,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("together"), **SETTINGS) as service:
        upload(service, TINY)
        yield service


def body(model: str) -> dict[str, Any]:
    return job_body(model, max_epochs=30) | {"promote": "never"}


def workers(service: ServiceProcess, job_id: str) -> list[int]:
    """Process ids of those that train the job."""
    listed = subprocess.run(
        ["pgrep", "-f", f"python.*-m service.jobs.together .*{job_id}"], capture_output=True, text=True, check=False
    )
    return [pid for pid in map(int, listed.stdout.split()) if b"torch.distributed.run" not in _command(pid)]


def _command(pid: int) -> bytes:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""


def test_a_job_of_two_processes_survives_kills_and_a_stop(service: ServiceProcess) -> None:
    undisturbed = service.wait_until_ended(service.submit(body("undisturbed")))
    assert undisturbed["state"] == "succeeded", undisturbed
    disturbed = service.submit(body("disturbed"))

    def begun(times: int) -> bool:
        return len(service.events(disturbed, "training")) >= times

    wait_for(lambda: begun(1) and service.events(disturbed, "evaluation"), "training under way")
    os.kill(workers(service, disturbed)[-1], signal.SIGKILL)
    wait_for(lambda: begun(2), "new beginning after a worker died")
    service.kill_trainer(disturbed)
    wait_for(lambda: begun(3), "new beginning after the trainer died")
    assert service.client.post(f"/train/{disturbed}/cancel").json()["state"] == "cancelled"
    wait_for(lambda: not workers(service, disturbed), "end of the processes")
    wait_for(lambda: service.client.post(f"/train/{disturbed}/resume").status_code == 202, "resume")
    ended = service.wait_until_ended(disturbed)
    assert ended["state"] == "succeeded", ended
    assert service.weights("disturbed", ended["version"]) == service.weights("undisturbed", undisturbed["version"])
