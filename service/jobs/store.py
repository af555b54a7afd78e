"""The jobs in the database: submitted, listed, cancelled, resumed, deleted. Runs none of them.

Any process may use it beside any other: it speaks to the workflow engine's tables through the engine's own client. What
a job is asked to do is its workflow's input, how it ended the workflow's output or error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from service.errors import JobConflict, JobsUnavailable, UnknownJob
from service.jobs.failures import ADVICE, Failure
from service.jobs.spec import JobSpec

if TYPE_CHECKING:
    from dbos import WorkflowStatus

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[JobState, ...] = ("queued", "running", "succeeded", "failed", "cancelled")

# Fixed: the engine takes up only jobs of its own application version, and a new release goes on with the old one's.
APPLICATION = "recurra"
APPLICATION_VERSION = "1"
QUEUE = "training"
WORKFLOW = "train"

_STATES: dict[str, JobState] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
_STATUSES: dict[JobState, list[str]] = {
    state: [status for status, known in _STATES.items() if known == state] for state in STATES
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the database has it.

    Attributes:
        created_at, started_at, finished_at: unix seconds.
        position: jobs before it in the queue; None where it does not wait.
        replica: which one has run it last.
        result: what a job that succeeded came to: version, scores, whether it was promoted and why.
    """

    id: str
    state: JobState
    spec: JobSpec
    created_at: float
    started_at: float | None
    finished_at: float | None
    position: int | None
    replica: str | None
    result: dict[str, Any] | None
    failure: Failure | None


class JobStore:
    """Needs a database that `migrate` has prepared.

    Args:
        url: of SQLAlchemy: sqlite:///… or postgresql://…
    """

    def __init__(self, url: str) -> None:
        from dbos import DBOSClient, DBOSPortableJSONSerializer

        with _reaching_the_database():
            self._client = DBOSClient(
                system_database_url=url,
                serializer=DBOSPortableJSONSerializer(),  # the engine's own choice would be pickle
                application_name=APPLICATION,
                retry_connection_errors=False,
            )

    @staticmethod
    def migrate(url: str) -> None:
        """Makes or updates the engine's tables. Raises JobsUnavailable."""
        from dbos import DBOS

        with _reaching_the_database():
            DBOS.migrate(url)

    def close(self) -> None:
        self._client.destroy()

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Raises UnknownJob."""
        found = self._workflows(workflow_ids=[job_id])
        if not found:
            raise UnknownJob(job_id)
        return self._jobs(found)[0]

    def find(self, *, state: JobState | None = None, limit: int | None = None) -> list[Job]:
        """The newest first."""
        status = None if state is None else _STATUSES[state]
        return self._jobs(self._workflows(status=status, limit=limit, sort_desc=True))

    def count(self) -> dict[JobState, int]:
        counts = dict.fromkeys(STATES, 0)
        for status in self._workflows(load_input=False, load_output=False):
            counts[_STATES[status.status]] += 1
        return counts

    def is_cancelled(self, job_id: str) -> bool:
        found = self._workflows(workflow_ids=[job_id], load_input=False, load_output=False)
        return not found or _STATES[found[0].status] == "cancelled"

    # -- writing -----------------------------------------------------------------------------------------------------

    def submit(self, job_id: str, spec: JobSpec) -> None:
        """Puts a job in the queue; where there is one of this id already, nothing."""
        with _reaching_the_database():
            self._client.enqueue(
                {
                    "workflow_name": WORKFLOW,
                    "queue_name": QUEUE,
                    "workflow_id": job_id,
                    "app_version": APPLICATION_VERSION,
                },
                spec.to_json(),
            )

    def cancel(self, job_id: str) -> None:
        """Raises UnknownJob, JobConflict."""
        job = self.get(job_id)
        if job.state not in ("queued", "running"):
            raise JobConflict(f"job {job_id} is {job.state}; only one that is queued or running can be cancelled")
        with _reaching_the_database():
            self._client.cancel_workflow(job_id)

    def resume(self, job_id: str) -> None:
        """Back into the queue; what is done is not done again. Raises UnknownJob, JobConflict."""
        job = self.get(job_id)
        with _reaching_the_database():
            if job.state == "cancelled":
                self._client.resume_workflow(job_id, queue_name=QUEUE)
            elif job.state == "failed":
                self._client.rewind_workflow(job_id, start_step=self._failed_step(job_id), queue_name=QUEUE)
            else:
                raise JobConflict(f"job {job_id} is {job.state}; only one that failed or was cancelled can be resumed")

    def adopt(self, replica: str) -> list[str]:
        """Puts the running jobs of a replica that is gone back into the queue, for whoever is free; their ids.

        In two steps, since the engine has none for it: a job whose adoption is cut short between them is cancelled, and
        can be resumed.
        """
        found = self._workflows(status="PENDING", executor_id=replica, load_input=False)
        with _reaching_the_database():
            for status in found:
                self._client.cancel_workflow(status.workflow_id)
                self._client.resume_workflow(status.workflow_id, queue_name=QUEUE)
        return [status.workflow_id for status in found]

    def delete(self, job_id: str) -> None:
        with _reaching_the_database():
            self._client.delete_workflow(job_id)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _workflows(self, **options: Any) -> Sequence[WorkflowStatus]:
        with _reaching_the_database():
            return self._client.list_workflows(name=WORKFLOW, application_name=APPLICATION, **options)

    def _failed_step(self, job_id: str) -> int:
        """The first step with an error; the engine would replay it, and fail again."""
        steps = self._client.list_workflow_steps(job_id)
        failed = [step["function_id"] for step in steps if step["error"] is not None]
        return min(failed, default=len(steps) + 1)

    def _jobs(self, found: Sequence[WorkflowStatus]) -> list[Job]:
        waiting: list[str] = []
        if any(_STATES[status.status] == "queued" for status in found):
            queued = self._workflows(status=_STATUSES["queued"], load_input=False, load_output=False)
            waiting = [status.workflow_id for status in sorted(queued, key=lambda status: status.created_at or 0)]
        return [_job(status, waiting) for status in found]


def _job(status: WorkflowStatus, waiting: Sequence[str]) -> Job:
    state = _STATES[status.status]
    assert status.input is not None
    return Job(
        id=status.workflow_id,
        state=state,
        spec=JobSpec.from_json(status.input["args"][0]),
        created_at=_seconds(status.created_at) or 0.0,
        started_at=_seconds(status.dequeued_at),
        finished_at=_seconds(status.completed_at),
        position=waiting.index(status.workflow_id) if status.workflow_id in waiting else None,
        replica=None if state == "queued" else status.executor_id,
        result=status.output if state == "succeeded" else None,
        failure=_failure(status) if state == "failed" else None,
    )


def _failure(status: WorkflowStatus) -> Failure:
    if status.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        return Failure(code="recovered_too_often", detail="the service ended too often while this job ran")
    code = getattr(status.error, "code", None)
    return Failure(code=code if code in ADVICE else "worker_failed", detail=str(status.error))


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


@contextmanager
def _reaching_the_database() -> Iterator[None]:
    """What the database refuses is JobsUnavailable, whichever library says so."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as exc:
        cause = str(getattr(exc, "orig", None) or exc).strip().splitlines()
        raise JobsUnavailable(f"the database of jobs cannot be used: {cause[0] if cause else 'no cause'}") from exc
