"""Two service processes on one folder and one PostgreSQL: they share the queue, and one takes over from the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import job_body, upload
from benchmarks.service_process import ROOT, ServiceProcess, wait_for

TINY = Path(__file__).parents[1] / "data" / "tiny.en-fr.tsv"
STAGES = ["prepare", "tokenizer", "train", "evaluate", "promote"]

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def settings(postgresql_url: str) -> dict[str, Any]:
    url = postgresql_url.replace("/recurra?", "/replicas?")
    return {"jobs_database": url, "training_nice": 0, "training_scheduler": "other", "precision": "fp32"}


@pytest.fixture(scope="module")
def replicas(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    folder = tmp_path_factory.mktemp("replicas")
    with (
        ServiceProcess(folder, replica="a", **settings) as a,
        ServiceProcess(folder, replica="b", **settings) as b,
    ):
        upload(a, TINY)
        yield a, b


def test_two_processes_share_the_queue_and_no_job_runs_twice(replicas: tuple[ServiceProcess, ServiceProcess]) -> None:
    ids = [
        replicas[number % 2].submit(job_body(f"shared-{number}", max_epochs=1) | {"promote": "never"})
        for number in range(4)
    ]
    jobs = [replicas[0].wait_until_ended(job_id) for job_id in ids]
    assert [job["state"] for job in jobs] == ["succeeded"] * 4
    assert {job["replica"] for job in jobs} == {"a", "b"}
    for job in jobs:
        stages = replicas[0].events(job["id"], "stage")
        assert [event["stage"] for event in stages] == STAGES
        assert {event["replica"] for event in stages} == {job["replica"]}
        assert len(replicas[0].events(job["id"], "process")) == 4
    assert len({job["version"] for job in jobs}) == 1, "the same job gives the same weights on either"


def adopt(service: ServiceProcess, settings: dict[str, Any], replica: str) -> subprocess.CompletedProcess[str]:
    values = {**settings, "data": service.data, "checkpoints": service.checkpoints}
    environment = {**os.environ, **{f"RECURRA_{name.upper()}": str(value) for name, value in values.items()}}
    command = [sys.executable, "-m", "service", "jobs", "adopt", replica]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_jobs_of_a_replica_that_is_gone_are_adopted_by_another(
    replicas: tuple[ServiceProcess, ServiceProcess], settings: dict[str, Any]
) -> None:
    a, b = replicas
    b.stop()
    job_id = a.submit(job_body("orphan", max_epochs=40) | {"promote": "never"})
    wait_for(lambda: a.events(job_id, "training"), "training on a")
    a.kill()
    b.start()
    done = adopt(b, settings, "a")
    assert (done.returncode, done.stdout) == (0, f"{job_id}: queued\n"), done.stderr
    job = b.wait_until_ended(job_id)
    assert (job["state"], job["replica"]) == ("succeeded", "b")
    refused = adopt(b, settings, "b")
    assert refused.returncode == 1
    assert "is running" in refused.stderr
    a.start()
