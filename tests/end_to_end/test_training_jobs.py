"""Training jobs against a service in a process of its own: to a model that answers, and under `kill -9`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import Killer, job_body, upload
from benchmarks.service_process import ServiceProcess, wait_for

TINY = Path(__file__).parents[1] / "data" / "tiny.en-fr.tsv"
SETTINGS: dict[str, Any] = {"training_nice": 0, "training_scheduler": "other", "precision": "fp32", "num_threads": 1}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    settings = dict(SETTINGS)
    if request.param == "postgresql":
        settings["jobs_database"] = request.getfixturevalue("postgresql_url")
    with ServiceProcess(tmp_path_factory.mktemp("service"), **settings) as service:
        upload(service, TINY)
        yield service


@pytest.fixture(scope="module")
def undisturbed(service: ServiceProcess) -> dict[str, Any]:
    """A job that nothing happened to."""
    return service.wait_until_ended(service.submit(body("undisturbed")))


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {**job_body(model, max_epochs=12), **fields}


def begun_training(service: ServiceProcess, job_id: str) -> Any:
    return wait_for(lambda: service.events(job_id, "training"), "beginning of training")


def test_a_job_ends_with_a_model_that_answers(service: ServiceProcess, undisturbed: dict[str, Any]) -> None:
    assert undisturbed["state"] == "succeeded", undisturbed
    assert undisturbed["promoted"] is True
    assert set(undisturbed["scores"]) == {"dev", "test"}
    answer = service.client.post("/translate", json={"text": "I am cold.", "model": "undisturbed"})
    assert answer.status_code == 200
    assert answer.json()["version"] == undisturbed["version"]
    lineage = service.client.get("/models/undisturbed").json()["versions"][0]["lineage"]
    assert lineage["job"] == undisturbed["id"]
    assert lineage["datasets"] == undisturbed["request"]["datasets"]
    assert lineage["scores"]["test"]["beam 5"] == undisturbed["scores"]["test"]["beam 5"]


def test_stages_are_done_once_and_leave_only_their_story(service: ServiceProcess, undisturbed: dict[str, Any]) -> None:
    stages = [event["stage"] for event in service.events(undisturbed["id"], "stage")]
    assert stages == ["prepare", "tokenizer", "train", "evaluate", "promote"]
    files = {path.name for path in (service.data / "jobs" / undisturbed["id"]).iterdir()}
    assert files == {"job.json", "events.jsonl", "evaluation.json", "log.txt", "lock"}


def test_metrics_tell_of_the_job(service: ServiceProcess, undisturbed: dict[str, Any]) -> None:
    exposition = service.client.get("/metrics").text
    assert 'recurra_training_loss{model="undisturbed"}' in exposition
    assert 'recurra_training_tokens_total{model="undisturbed"}' in exposition
    wait_for(lambda: 'recurra_jobs{state="succeeded"} 0.0' not in service.client.get("/metrics").text, "count of jobs")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_job_that_is_killed_ends_with_the_weights_of_one_that_was_not(
    service: ServiceProcess, undisturbed: dict[str, Any], seed: int
) -> None:
    job_id = service.submit(body(f"killed-{seed}"))
    killer = Killer(service, random.Random(seed))
    killer.disturb(job_id, 3, seconds=4)
    job = service.wait_until_ended(job_id)
    assert job["state"] == "succeeded", job
    assert service.weights(job["model"], job["version"]) == service.weights("undisturbed", undisturbed["version"])


def test_a_job_goes_on_after_a_clean_restart_and_after_cancel_and_resume(
    service: ServiceProcess, undisturbed: dict[str, Any]
) -> None:
    job_id = service.submit(body("stopped"))
    begun_training(service, job_id)
    service.stop()
    wait_for(lambda: service.trainer(job_id) is None, "end of the trainer")
    service.start()
    assert service.client.post(f"/train/{job_id}/cancel").json()["state"] == "cancelled"
    wait_for(lambda: service.trainer(job_id) is None, "end of the trainer")
    wait_for(lambda: service.client.post(f"/train/{job_id}/resume").status_code == 202, "resume")
    job = service.wait_until_ended(job_id)
    assert job["state"] == "succeeded", job
    assert service.weights("stopped", job["version"]) == service.weights("undisturbed", undisturbed["version"])


def test_a_job_whose_dataset_is_gone_says_so_and_is_resumed_when_it_is_back(service: ServiceProcess) -> None:
    first = service.submit(body("first", max_epochs=1))
    job_id = service.submit(body("gone", max_epochs=1))
    service.client.delete("/datasets/tiny")
    failed = service.wait_until_ended(job_id)
    service.wait_until_ended(first)
    upload(service, TINY)
    assert failed["state"] == "failed"
    assert failed["failure"]["code"] == "dataset_gone"
    assert "upload" in failed["failure"]["advice"]
    assert "JobFailed" in service.client.get(f"/train/{job_id}/log").text
    assert service.client.post(f"/train/{job_id}/resume").status_code == 202
    assert service.wait_until_ended(job_id)["state"] == "succeeded"


def test_a_version_that_is_not_better_does_not_go_live(service: ServiceProcess, undisturbed: dict[str, Any]) -> None:
    again = body("undisturbed", seed=2, max_epochs=1, promote="if_better")
    job = service.wait_until_ended(service.submit(again))
    assert (job["state"], job["promoted"]) == ("succeeded", False), job
    assert job["comparison"]["p_value"] >= 0.05 or job["comparison"]["bleu_candidate"] < job["comparison"]["bleu_live"]
    assert service.client.get("/models/undisturbed").json()["version"] == undisturbed["version"]


def test_fine_tuning_begins_with_the_weights_of_a_version(service: ServiceProcess, undisturbed: dict[str, Any]) -> None:
    fields = {"start_from": "undisturbed", "overrides": {"precision": "fp32"}, "max_epochs": 1, "promote": "never"}
    job = service.wait_until_ended(service.submit(body("tuned", **fields)))
    assert job["state"] == "succeeded", job
    assert job["request"]["start_from"] == f"undisturbed@{undisturbed['version']}"


def test_events_come_while_the_job_runs_and_end_with_it(service: ServiceProcess) -> None:
    job_id = service.submit(body("followed", max_epochs=2))
    with service.client.stream("GET", f"/train/{job_id}/events", timeout=300) as answer:
        names = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert names[-1] == "done"
    assert {"stage", "data", "process", "training", "evaluation", "scores", "evaluated"} <= set(names)


def test_a_service_with_jobs_stops_at_once_while_somebody_follows(service: ServiceProcess) -> None:
    job_id = service.submit(body("interrupted"))
    begun_training(service, job_id)
    with service.client.stream("GET", f"/train/{job_id}/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        assert service.process is not None
        service.process.terminate()
        assert not [line for line in lines if line == "event: done"], "the job is not over"
        service.process.wait(60)
    service.start()
    assert service.wait_until_ended(job_id)["state"] == "succeeded"
