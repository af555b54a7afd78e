"""Why a job ended without a model: a stable code, what happened, and what a person can do about it."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from typing import Any

from model.errors import CheckpointError, DiskFull, Diverged, InvalidValue, OutOfMemory, RecurraError, TrainingError
from service.errors import CannotStore

ADVICE: dict[str, str] = {
    "out_of_memory": "lower batch_tokens, max_src_tokens or the model's sizes, or give the machine more memory; then "
    "resume it, or submit it anew where an option has to change",
    "loss_not_finite": "submit it anew with a lower learning_rate, a lower clip_norm, or precision fp32",
    "disk_full": "free space in the folder that RECURRA_DATA names, then resume it",
    "dataset_gone": "upload the dataset again under the same name, then resume it",
    "dataset_changed": "upload the former dataset again, then resume it; or submit a new job for the new one",
    "too_little_data": "give more sentence pairs, or smaller dev and test shares",
    "no_evaluation": "submit it anew with more max_minutes, or a smaller eval_every_epochs",
    "model_gone": "name another model in start_from",
    "model_refused": "look at the log; a file of that model is damaged",
    "killed": "look into the machine's log: the kernel kills for lack of memory, and then lower batch_tokens helps",
    "recovered_too_often": "the service itself ended again and again while this job ran: look at its log, then resume",
    "invalid_options": "submit it anew with other options",
    "not_promoted": "the version is kept: look at the service's log, and promote it by hand",
    "worker_failed": "look at the job's log; resume it once the cause is gone",
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cause, told to a person."""

    code: str
    detail: str

    @property
    def advice(self) -> str:
        return ADVICE[self.code]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "advice": self.advice}


class JobFailed(RecurraError):
    """A stage cannot be done; `code` and `data` are what the workflow engine keeps of an exception."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure
        self.code = failure.code
        self.data = failure.to_json()


_CODES: dict[type[Exception], str] = {
    Diverged: "loss_not_finite",
    OutOfMemory: "out_of_memory",
    DiskFull: "disk_full",
    CannotStore: "disk_full",
    CheckpointError: "model_refused",
    InvalidValue: "invalid_options",
    MemoryError: "out_of_memory",
}
_ERRNO_CODES = {errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full", errno.ENOMEM: "out_of_memory"}


class ProcessesEnded(Exception):
    """Those that train together ended with this status; the cause, where there is one to tell, is written already."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def failure_of(exc: BaseException) -> Failure:
    """The cause behind an exception of a stage."""
    if isinstance(exc, JobFailed):
        return exc.failure
    code = next((_CODES[cls] for cls in type(exc).__mro__ if cls in _CODES), None)
    if isinstance(exc, OSError):
        code = _ERRNO_CODES.get(exc.errno or 0)
    elif isinstance(exc, TrainingError) and code is None:
        code = _training_code(str(exc))
    if code is None:
        return Failure(code="worker_failed", detail=f"{type(exc).__name__}: {exc}")
    return Failure(code=code, detail=str(exc) or type(exc).__name__)


def _training_code(text: str) -> str | None:
    """Of the errors that have no class of their own; their words are in model.training."""
    if "first evaluation" in text:
        return "no_evaluation"
    return "too_little_data" if "needed" in text else None
