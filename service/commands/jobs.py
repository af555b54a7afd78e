"""`recurra jobs`: the training jobs in the database, from a shell; the service need not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from service.settings import load_settings

if TYPE_CHECKING:
    from service.jobs.jobs import Jobs
    from service.jobs.schemas import JobAnswer

app = typer.Typer(no_args_is_help=True, help="Look at training jobs, cancel and resume them.")

JobArgument = Annotated[str, typer.Argument(help="Id of a job.")]


@contextmanager
def _jobs() -> Iterator[Jobs]:
    """The jobs that the RECURRA_* variables lead to; none is run here."""
    from service.datasets.store import DatasetStore
    from service.inference.registry import Registry
    from service.jobs.jobs import Jobs
    from service.metrics import Metrics

    settings, metrics = load_settings(), Metrics()
    jobs = Jobs(settings, metrics, DatasetStore(settings.datasets_path), Registry(settings, metrics))
    try:
        yield jobs
    finally:
        jobs.close()


@app.command("list")
def list_jobs(limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20) -> None:
    """The jobs, the newest first."""
    with _jobs() as jobs:
        rows = [("job", "state", "model", "submitted", "stage", "what"), *(_row(job) for job in jobs.find(limit=limit))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def show(job: JobArgument) -> None:
    """Everything that is known of a job, as JSON."""
    with _jobs() as jobs:
        typer.echo(json.dumps(jobs.get(job).model_dump(), indent=2, ensure_ascii=False))


@app.command()
def cancel(job: JobArgument) -> None:
    """Take a job out of the queue, or have it save its state and stop."""
    with _jobs() as jobs:
        typer.echo(f"{job}: {jobs.cancel(job).state}")


@app.command()
def resume(job: JobArgument) -> None:
    """Put a job that failed or was cancelled back into the queue; a running service takes it up."""
    with _jobs() as jobs:
        typer.echo(f"{job}: {jobs.resume(job).state}")


@app.command()
def adopt(
    replica: Annotated[str, typer.Argument(help="RECURRA_REPLICA of a process that is gone for good.")],
) -> None:
    """Hand the unfinished jobs of a replica that will not come back to those that are there."""
    with _jobs() as jobs:
        adopted = jobs.adopt(replica)
    typer.echo("\n".join(f"{job}: queued" for job in adopted) or f"{replica} has left no unfinished job")


def _row(job: JobAnswer) -> tuple[str, str, str, str, str, str]:
    submitted = datetime.fromtimestamp(job.created_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if job.failure is not None:
        what = f"{job.failure.code}: {job.failure.detail}"
    elif job.state == "running" and job.progress is not None:
        what = f"step {job.progress.step} of {job.progress.total_steps}, {job.progress.seconds_left / 60:.0f} min left"
    elif job.queue_position is not None:
        what = f"{job.queue_position} before it"
    else:
        what = job.reason or ""
    return job.id, job.state, job.model, submitted, job.stage or "", what
