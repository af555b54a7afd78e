"""Jobs in the database, without anybody who runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import JobConflict, JobsUnavailable, UnknownJob
from service.jobs.spec import JobSpec
from service.jobs.store import JobStore


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('jobs') / 'jobs.sqlite'}"
    JobStore.migrate(url)
    return url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    store = JobStore(url)
    yield store
    for job in store.find():
        store.delete(job.id)
    store.close()


def test_a_job_comes_back_as_it_was_submitted(store: JobStore, spec: JobSpec) -> None:
    store.submit("a", spec)
    job = store.get("a")
    assert (job.state, job.spec, job.position) == ("queued", spec, 0)
    assert (job.started_at, job.finished_at, job.replica, job.result, job.failure) == (None, None, None, None, None)


def test_submitting_an_id_again_keeps_the_first(store: JobStore, spec: JobSpec) -> None:
    store.submit("a", spec)
    store.submit("a", replace(spec, model="other"))
    assert [job.spec.model for job in store.find()] == ["en-fr"]


def test_jobs_wait_in_the_order_in_which_they_came(store: JobStore, spec: JobSpec) -> None:
    for job_id in "cab":
        store.submit(job_id, spec)
    assert [store.get(job_id).position for job_id in "cab"] == [0, 1, 2]


def test_a_waiting_job_is_cancelled_and_resumed(store: JobStore, spec: JobSpec) -> None:
    store.submit("a", spec)
    store.cancel("a")
    assert (store.get("a").state, store.is_cancelled("a")) == ("cancelled", True)
    assert [job.id for job in store.find(state="cancelled")] == ["a"]
    assert store.find(state="queued") == []
    store.resume("a")
    assert (store.get("a").state, store.is_cancelled("a")) == ("queued", False)


def test_what_does_not_fit_the_state_is_refused(store: JobStore, spec: JobSpec) -> None:
    store.submit("a", spec)
    with pytest.raises(JobConflict, match="queued"):
        store.resume("a")
    store.cancel("a")
    with pytest.raises(JobConflict, match="cancelled"):
        store.cancel("a")


def test_states_are_counted(store: JobStore, spec: JobSpec) -> None:
    for job_id in "abc":
        store.submit(job_id, spec)
    store.cancel("b")
    assert store.count() == {"queued": 2, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 1}


def test_a_job_that_is_not_there_is_unknown(store: JobStore) -> None:
    for call in (store.get, store.cancel, store.resume):
        with pytest.raises(UnknownJob, match="'none'"):
            call("none")


def test_what_is_kept_in_the_database_is_json(url: str, store: JobStore, spec: JobSpec) -> None:
    store.submit("a", spec)
    content = Path(url.removeprefix("sqlite:///")).read_bytes()
    assert b'"model": "en-fr"' in content or b'"model":"en-fr"' in content


def test_a_database_that_cannot_be_used_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "no-database").write_bytes(b"this is text" * 1000)
    with pytest.raises(JobsUnavailable, match="not a database"):
        JobStore.migrate(f"sqlite:///{tmp_path / 'no-database'}")
