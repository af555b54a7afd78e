"""Every cause has a code, and every code has advice."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from model.errors import CheckpointError, DiskFull, Diverged, InvalidValue, OutOfMemory, TrainingError
from model.training import Trainer
from service.jobs.failures import ADVICE, Failure, JobFailed, failure_of


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (OutOfMemory("no memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (Diverged("no number"), "loss_not_finite"),
        (DiskFull("no room"), "disk_full"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (CheckpointError("weights.safetensors", "is missing"), "model_refused"),
        (InvalidValue("seed", -1, "more"), "invalid_options"),
        (PermissionError(errno.EACCES, "Permission denied"), "worker_failed"),
        (KeyError("x"), "worker_failed"),
        (JobFailed(Failure(code="dataset_gone", detail="gone")), "dataset_gone"),
    ],
)
def test_a_cause_has_its_code_and_advice(exc: Exception, code: str) -> None:
    failure = failure_of(exc)
    assert failure.code == code
    assert failure.detail
    assert failure.to_json()["advice"] == ADVICE[code]


def test_training_on_too_little_has_its_code(tmp_path: Path, tiny_preset: object) -> None:
    with pytest.raises(TrainingError) as caught:
        Trainer(tmp_path, preset=tiny_preset, pairs=[], dev=[], src_lang="en", tgt_lang="fr")  # type: ignore[arg-type]
    assert failure_of(caught.value).code == "too_little_data"


def test_a_run_that_ended_before_it_was_measured_has_its_code() -> None:
    # The words of Trainer.finish; the error has no class of its own.
    assert failure_of(TrainingError("the run ended before its first evaluation; give it more time")).code == (
        "no_evaluation"
    )
