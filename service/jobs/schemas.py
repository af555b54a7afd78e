"""The bodies of the training routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from service.jobs.failures import Failure
from service.jobs.spec import Promote
from service.jobs.store import Job, JobState
from service.schemas import Body

_NAME = Field(min_length=1, max_length=255)
_MAX_DATASETS = 100


def _arm(value: Any) -> str:
    return "list" if isinstance(value, list) else "one" if isinstance(value, str) else "share"


# Told apart by hand, so that an error is about the arm that was meant.
HeldOutField = Annotated[
    Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False), Tag("share")]
    | Annotated[str, _NAME, Tag("one")]
    | Annotated[list[Annotated[str, _NAME]], Field(min_length=1, max_length=_MAX_DATASETS), Tag("list")],
    Discriminator(_arm),
]


class TrainBody(Body):
    """What to train, on what, for how long, and what becomes of it."""

    model: str = Field(
        description="name of the model that gets a new version; made where it is new", examples=["en-fr"]
    )
    dataset: str | None = Field(
        None, min_length=1, max_length=255, description="what to train on", examples=["tatoeba"]
    )
    datasets: list[Annotated[str, _NAME]] | None = Field(
        None, min_length=1, max_length=_MAX_DATASETS, description="several, in the place of dataset"
    )
    source: str | None = Field(None, min_length=1, max_length=35, description="default the dataset's")
    target: str | None = Field(None, min_length=1, max_length=35, description="default the dataset's")
    preset: str = Field("base", description="architecture and training options to begin with", examples=["small"])
    overrides: dict[str, Any] = Field(
        {},
        max_length=100,
        description="options of the preset to change, by name: network, tokenizer and training",
        examples=[{"encoder_dim": 256, "learning_rate": 0.002}],
    )
    dev: HeldOutField | None = Field(
        None,
        description="share of the pairs, or datasets, to measure progress on; about 1,000 sentences by default",
        examples=[0.02, "newstest"],
    )
    test: HeldOutField | None = Field(
        None,
        description="the same to score the finished model on; share 0 for none, then dev has to do",
        examples=[0.02],
    )
    max_minutes: float | None = Field(
        None, gt=0, le=1e6, allow_inf_nan=False, description="training ends after so many minutes", examples=[30]
    )
    max_epochs: int | None = Field(None, ge=1, le=10_000, description="training ends after so many epochs")
    seed: int | None = Field(None, ge=0, lt=2**31, description="of weights, order and dropout")
    start_from: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="model, or model@version, to begin with: its network and tokenizer, its weights",
        examples=["en-fr"],
    )
    promote: Promote = Field(
        "if_better",
        description="whether the model goes live: if_better asks for a higher BLEU than the live one's on "
        "the test set, p < 0.05 by paired bootstrap, or that none is live",
    )


class FailureAnswer(BaseModel):
    code: str = Field(description="a stable word")
    detail: str
    advice: str = Field(description="what a person can do about it")


class ProgressAnswer(BaseModel):
    """Where training stands."""

    epoch: int
    step: int
    total_steps: int
    loss: float | None = Field(description="a target token, smoothed, in nats")
    learning_rate: float
    tokens_per_second: float = Field(description="target tokens")
    seconds: float = Field(description="trained so far, restarts included")
    seconds_left: float = Field(description="estimate to the end of the plan")
    dev_loss: float | None
    dev_bleu: float | None = Field(description="greedy")


class JobAnswer(BaseModel):
    """A training job."""

    id: str
    state: JobState
    stage: str | None = Field(description="prepare, tokenizer, train, evaluate or promote; the last one begun")
    model: str
    source: str
    target: str
    created_at: float = Field(description="unix seconds, as the other times")
    started_at: float | None
    finished_at: float | None
    queue_position: int | None = Field(description="jobs that come before it; null where it does not wait")
    replica: str | None = Field(description="which process has it, or had it last")
    progress: ProgressAnswer | None
    scores: dict[str, dict[str, int | float]] | None = Field(
        description="BLEU of the finished model, by set and search"
    )
    version: str | None = Field(description="of the finished model")
    promoted: bool | None
    reason: str | None = Field(description="why it was promoted or not")
    comparison: dict[str, Any] | None = Field(description="with the version that was live")
    failure: FailureAnswer | None
    request: dict[str, Any] = Field(description="what the job was asked to do, defaults filled in")

    @classmethod
    def of(cls, job: Job, news: dict[str, dict[str, Any]]) -> JobAnswer:
        """From the database's view of it and the newest events of its run."""
        evaluated = job.result or news.get("evaluated", {})
        result = job.result or {}
        return cls(
            id=job.id,
            state=job.state,
            stage=news.get("stage", {}).get("stage"),
            model=job.spec.model,
            source=job.spec.src_lang,
            target=job.spec.tgt_lang,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            queue_position=job.position,
            replica=job.replica,
            progress=_progress(news),
            scores=evaluated.get("scores"),
            version=evaluated.get("version"),
            promoted=result.get("promoted"),
            reason=result.get("reason"),
            comparison=evaluated.get("comparison"),
            failure=_failure(job.failure),
            request=job.spec.to_json(),
        )


class JobsAnswer(BaseModel):
    jobs: list[JobAnswer] = Field(description="the newest first")


class CurvePoint(BaseModel):
    step: int
    epoch: int
    loss: float | None = Field(None, description="of training, smoothed, since the point before")
    dev_loss: float | None = None
    dev_bleu: float | None = None


class CurveAnswer(BaseModel):
    """Loss and BLEU by step."""

    job: str
    model: str
    points: list[CurvePoint]


StateFilter = Literal["queued", "running", "succeeded", "failed", "cancelled"]


def _progress(news: dict[str, dict[str, Any]]) -> ProgressAnswer | None:
    """The newest report. An epoch shorter than the time between two reports ends in an evaluation alone."""
    reports = [values for kind, values in news.items() if kind in ("progress", "evaluation")]
    if not reports:
        return None
    newest = reports[-1]
    return ProgressAnswer.model_validate({name: newest.get(name) for name in ProgressAnswer.model_fields})


def _failure(failure: Failure | None) -> FailureAnswer | None:
    return None if failure is None else FailureAnswer(**failure.to_json())
