"""POST /train and what belongs to a job; here no job ever runs: another process is said to have the replica's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.datasets.formats import UnpackLimit
from service.datasets.store import DatasetStore
from service.datasets.upload import store_files
from service.jobs.engine import take_replica
from service.jobs.run import RunFolder

TINY = Path(__file__).parents[2] / "data" / "tiny.en-fr.tsv"
BODY = {"model": "m", "dataset": "tiny", "preset": "small"}


@pytest.fixture
def client(serve: Callable[..., Any], tmp_path: Path) -> Iterator[Any]:
    fields = {"name": "tiny", "source": "en", "target": "fr"}
    store_files(fields, {"pairs": TINY}, DatasetStore(tmp_path / "data" / "datasets"), UnpackLimit(max_bytes=10**9))
    lock = take_replica(tmp_path / "data" / "jobs", "local")
    assert lock is not None
    with lock, serve() as app_client:
        yield app_client


def submit(client: Any, **fields: Any) -> Any:
    return client.post("/train", json={**BODY, **fields})


def run_of(tmp_path: Path, job_id: str) -> RunFolder:
    run = RunFolder(tmp_path / "data" / "jobs" / job_id)
    run.path.mkdir()
    return run


def sent(answer: Any) -> list[dict[str, Any]]:
    """The server-sent events of an answer."""
    events = []
    for block in answer.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if lines:
            events.append({"name": lines["event"], "id": lines["id"], "data": json.loads(lines["data"])})
    return events


def test_a_job_is_accepted_at_once_and_can_be_found(client: Any) -> None:
    answer = submit(client, seed=3)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/train/{job['id']}"
    assert (job["state"], job["queue_position"], job["model"], job["source"]) == ("queued", 0, "m", "en")
    assert job["request"]["options"]["seed"] == 3
    assert client.get(answer.headers["location"]).json() == job
    assert client.get("/train").json() == {"jobs": [job]}


def test_jobs_are_listed_newest_first_and_by_state(client: Any) -> None:
    ids = [submit(client).json()["id"] for _ in range(3)]
    client.post(f"/train/{ids[1]}/cancel")
    assert [job["id"] for job in client.get("/train?state=queued").json()["jobs"]] == [ids[2], ids[0]]
    assert [job["id"] for job in client.get("/train?state=cancelled").json()["jobs"]] == [ids[1]]
    assert len(client.get("/train?limit=2").json()["jobs"]) == 2
    assert client.get(f"/train/{ids[2]}").json()["queue_position"] == 1


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"preset": "huge"}, 422, "preset"),
        ({"overrides": {"encoder_dim": -5}}, 422, "overrides.encoder_dim"),
        ({"overrides": {f"x{i}": 1 for i in range(101)}}, 422, "overrides"),
        ({"overrides": []}, 422, "overrides"),
        ({"max_minutes": 0}, 422, "max_minutes"),
        ({"max_epochs": 0}, 422, "max_epochs"),
        ({"max_epochs": 1.5}, 422, "max_epochs"),
        ({"seed": -1}, 422, "seed"),
        ({"model": "../m"}, 422, "model"),
        ({"model": 5}, 422, "model"),
        ({"dataset": "none"}, 404, "dataset"),
        ({"dataset": "../tiny"}, 422, "dataset"),
        ({"dev": 0.9}, 422, "dev"),
        ({"dev": []}, 422, "dev"),
        ({"test": [5]}, 422, "test[0]"),
        ({"promote": "maybe"}, 422, "promote"),
        ({"start_from": "none"}, 404, "start_from"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
def test_a_bad_job_is_refused_by_its_field_and_nothing_is_started(
    client: Any, tmp_path: Path, fields: dict[str, Any], status: int, field: str
) -> None:
    answer = submit(client, **fields)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == field
    assert len(answer.content) < 5000
    assert not (tmp_path / "data" / "jobs.sqlite").exists()
    assert client.get("/train").json() == {"jobs": []}


def test_ten_megabytes_of_options_are_refused_unread(client: Any) -> None:
    answer = submit(client, overrides={"cell": "x" * 10_000_000})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert client.get("/train").json() == {"jobs": []}


def test_a_dataset_of_one_pair_is_refused(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "one.tsv"
    path.write_text("Go.\tVa !\n")
    fields = {"name": "one", "source": "en", "target": "fr"}
    store_files(fields, {"pairs": path}, DatasetStore(tmp_path / "data" / "datasets"), UnpackLimit(max_bytes=10**9))
    answer = submit(client, dataset="one")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "dataset")


def test_the_same_idempotency_key_gives_the_same_job(client: Any) -> None:
    first, again = (client.post("/train", json=BODY, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert len(client.get("/train").json()["jobs"]) == 1
    other = client.post("/train", json={**BODY, "seed": 9}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (409, "job_conflict")


def test_cancel_and_resume_follow_the_state(client: Any) -> None:
    path = submit(client).headers["location"]
    assert client.post(f"{path}/resume").status_code == 409
    cancelled = client.post(f"{path}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert client.post(f"{path}/cancel").status_code == 409
    resumed = client.post(f"{path}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (202, "queued")


def test_a_job_that_still_saves_its_state_is_not_resumed(client: Any, tmp_path: Path) -> None:
    job_id = submit(client).json()["id"]
    client.post(f"/train/{job_id}/cancel")
    with run_of(tmp_path, job_id).locked(lambda: None):
        answer = client.post(f"/train/{job_id}/resume")
    assert answer.status_code == 409
    assert "saving" in answer.json()["detail"]
    assert client.post(f"/train/{job_id}/resume").status_code == 202


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/curve"),
        ("GET", "/curve.png"),
        ("GET", "/log"),
        ("POST", "/cancel"),
        ("POST", "/resume"),
    ],
)
@pytest.mark.parametrize("job_id", ["none", "..%2f..%2fetc", ".replica-local.lock"])
def test_a_job_that_is_not_there_is_unknown(client: Any, method: str, path: str, job_id: str) -> None:
    assert client.request(method, f"/train/{job_id}{path}").status_code == 404
    submit(client)
    answer = client.request(method, f"/train/{job_id}{path}")
    assert answer.status_code == 404
    if job_id == "none":
        assert answer.json()["code"] == "unknown_job"


def test_a_jobs_story_is_told_and_can_be_joined_again(client: Any, tmp_path: Path) -> None:
    job_id = submit(client).json()["id"]
    run = run_of(tmp_path, job_id)
    run.tell("stage", stage="train")
    run.tell("progress", **PROGRESS, step=5, loss=4.0)
    client.post(f"/train/{job_id}/cancel")
    events = sent(client.get(f"/train/{job_id}/events"))
    assert [event["name"] for event in events] == ["stage", "progress", "done"]
    assert events[-1]["data"]["state"] == "cancelled"
    assert events[-1]["data"]["progress"]["step"] == 5
    again = sent(client.get(f"/train/{job_id}/events", headers={"Last-Event-ID": events[0]["id"]}))
    assert again == events[1:]
    assert sent(client.get(f"/train/{job_id}/events", headers={"Last-Event-ID": events[-1]["id"]})) == events[-1:]
    wrong = client.get(f"/train/{job_id}/events", headers={"Last-Event-ID": "7"})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "Last-Event-ID")


PROGRESS: dict[str, Any] = {
    "epoch": 1,
    "total_steps": 10,
    "learning_rate": 0.001,
    "tokens_per_second": 900.0,
    "seconds": 3.0,
    "seconds_left": 3.0,
    "dev_loss": None,
    "dev_bleu": None,
}


def test_progress_is_the_newest_report_be_it_an_evaluation(client: Any, tmp_path: Path) -> None:
    job_id = submit(client).json()["id"]
    run = run_of(tmp_path, job_id)
    run.tell("progress", **PROGRESS, step=5, loss=4.0)
    run.tell("evaluation", **{**PROGRESS, "dev_bleu": 7.5, "dev_loss": 3.9}, step=6, loss=3.8)
    progress = client.get(f"/train/{job_id}").json()["progress"]
    assert (progress["step"], progress["dev_bleu"], progress["loss"]) == (6, 7.5, 3.8)


def test_curve_and_log_of_a_run(client: Any, tmp_path: Path) -> None:
    job_id = submit(client).json()["id"]
    assert client.get(f"/train/{job_id}/curve").json() == {"job": job_id, "model": "m", "points": []}
    assert client.get(f"/train/{job_id}/log").content == b""
    run = run_of(tmp_path, job_id)
    run.tell("progress", **PROGRESS, step=5, loss=4.0)
    run.log.write_bytes(b"a warning\n" * 200_000)
    assert client.get(f"/train/{job_id}/curve").json()["points"] == [{"step": 5, "epoch": 1, "loss": 4.0}]
    log = client.get(f"/train/{job_id}/log")
    assert log.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(log.content) == 2**20
    picture = client.get(f"/train/{job_id}/curve.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")


def test_old_jobs_are_deleted_by_number_and_running_ones_stay(serve: Callable[..., Any], tmp_path: Path) -> None:
    fields = {"name": "tiny", "source": "en", "target": "fr"}
    store_files(fields, {"pairs": TINY}, DatasetStore(tmp_path / "data" / "datasets"), UnpackLimit(max_bytes=10**9))
    lock = take_replica(tmp_path / "data" / "jobs", "local")
    assert lock is not None
    with lock, serve(jobs_keep=1) as client:
        ids = [submit(client).json()["id"] for _ in range(4)]
        for job_id in ids[:3]:
            run_of(tmp_path, job_id)
            client.post(f"/train/{job_id}/cancel")
        client.services.jobs.delete_old()
        assert [job["id"] for job in client.get("/train").json()["jobs"]] == [ids[3], ids[2]]
        kept = [(tmp_path / "data" / "jobs" / job_id).exists() for job_id in ids[:3]]
        assert kept == [False, False, True]
