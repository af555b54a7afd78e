"""What ends a run from outside: the error says what to do, and what was saved stays whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import Preset
from model.data.corpus import Example, Pair
from model.errors import Cancelled, DiskFull, Diverged, OutOfMemory, TrainingError
from model.training import Trainer
from model.training.run import RunFolder

New = Callable[..., Trainer]


@pytest.fixture
def new(tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]) -> New:
    def make(*, resume: bool | None = False, **options: Any) -> Trainer:
        preset = tiny_preset.with_options({"max_epochs": 2, **options})
        return Trainer(
            tmp_path, preset=preset, pairs=pairs, dev=dev, src_lang="en", tgt_lang="fr", resume=resume, device="cpu"
        )

    return make


def state_of(folder: Path) -> bytes:
    return (folder / "state.safetensors").read_bytes()


def train_until_broken(trainer: Trainer, expected: type[TrainingError], message: str) -> None:
    with pytest.raises(expected, match=message):
        trainer.train()


def test_a_gradient_that_is_no_number_names_the_options_to_lower(new: New, tmp_path: Path) -> None:
    trainer = new(learning_rate=1.0)
    with torch.no_grad():
        trainer.network.decoder.output.bias.fill_(float("nan"))
    train_until_broken(trainer, Diverged, r"at step 0: .*lower learning_rate \(it is 1\)")


def test_a_step_without_a_number_leaves_weights_and_saved_state_as_they_were(new: New, tmp_path: Path) -> None:
    trainer = new()
    with pytest.raises(Cancelled):
        trainer.train(should_stop=lambda: trainer.step >= 3)
    before = state_of(tmp_path)
    resumed = new(resume=True)
    weights = [p.detach().clone() for p in resumed.network.parameters()]
    for parameter in resumed.network.parameters():
        parameter.register_hook(lambda grad: grad * float("inf"))
    train_until_broken(resumed, Diverged, "the gradient is no number")
    assert all(torch.equal(a, b) for a, b in zip(weights, resumed.network.parameters(), strict=True))
    assert state_of(tmp_path) == before


def test_a_full_disk_says_so_and_keeps_the_last_checkpoint(
    new: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new()
    trainer._save_state()
    before = state_of(tmp_path)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    train_until_broken(trainer, DiskFull, "the disk is full .* MB free")
    monkeypatch.undo()
    assert state_of(tmp_path) == before
    assert not list(tmp_path.glob(".state*"))
    resumed = new(resume=True)
    resumed.train()
    assert resumed.step == resumed.total_steps


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=["python", "cpu", "cuda", "system"],
)
def test_too_little_memory_names_the_batch(new: New, monkeypatch: pytest.MonkeyPatch, cause: Exception) -> None:
    trainer = new()

    def refuse(*args: Any) -> None:
        raise cause

    monkeypatch.setattr(trainer._objective, "forward", refuse)
    train_until_broken(trainer, OutOfMemory, "batch_tokens = 256")


def test_an_error_of_another_kind_passes_as_it_is(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new()

    def refuse(*args: Any) -> None:
        raise RuntimeError("the sizes do not match")

    monkeypatch.setattr(trainer._objective, "forward", refuse)
    with pytest.raises(RuntimeError, match="do not match"):
        trainer.train()


def test_a_folder_in_which_another_process_trains_is_refused(new: New, tmp_path: Path) -> None:
    trainer = new()
    with RunFolder(tmp_path).locked():
        train_until_broken(trainer, TrainingError, "another process trains here")
        with pytest.raises(TrainingError, match="another process trains here"):
            new(resume=True)
    trainer.train()


def test_a_damaged_state_is_refused_with_a_way_out(new: New, tmp_path: Path) -> None:
    new()
    (tmp_path / "state.safetensors").write_bytes(b"half of i")
    with pytest.raises(TrainingError, match=r"damaged .* delete it to begin the run again"):
        new(resume=True)
    (tmp_path / "state.safetensors").unlink()
    new(resume=True)
