"""Loss and BLEU of a run by step."""

from __future__ import annotations

from pathlib import Path

from service.jobs.curve import curve, render
from service.jobs.events import append_event


def tell(path: Path, step: int, loss: float) -> None:
    append_event(path, "progress", step=step, epoch=1, loss=loss)


def test_what_a_restart_trained_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for step, loss in ((1, 5.0), (2, 4.0), (3, 3.5), (2, 4.0), (3, 3.5), (4, 3.0)):
        tell(path, step, loss)
    assert [(point["step"], point["loss"]) for point in curve(path)] == [(1, 5.0), (2, 4.0), (3, 3.5), (4, 3.0)]


def test_an_evaluation_adds_to_the_point_of_its_step(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tell(path, 7, 5.0)
    append_event(path, "evaluation", step=7, epoch=1, loss=5.0, dev_loss=4.5, dev_bleu=1.5)
    assert curve(path) == [{"step": 7, "epoch": 1, "loss": 5.0, "dev_loss": 4.5, "dev_bleu": 1.5}]


def test_a_long_run_is_thinned_and_keeps_its_evaluations(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [f'{{"event": "progress", "step": {step}, "epoch": 1, "loss": 1.0}}\n' for step in range(10_000)]
    path.write_text("".join(lines))
    append_event(path, "evaluation", step=4321, epoch=1, loss=1.0, dev_loss=4.5, dev_bleu=1.5)
    points = curve(path)
    assert len(points) < 2100
    assert [point["step"] for point in points if "dev_loss" in point] == [4321]


def test_a_picture_is_drawn_of_a_run_with_and_without_points() -> None:
    points = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0, "dev_loss": 4.2, "dev_bleu": 3.0}]
    for drawn in (render("en-fr", points), render("en-fr", [])):
        assert drawn.startswith(b"\x89PNG")
