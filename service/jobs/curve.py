"""Loss and BLEU of a run by step, as points and as a picture.

The picture is drawn in a process of its own, `python -m service.jobs.curve` (JSON in, PNG out): matplotlib would hold
the interpreter's lock for half a second, and the engine's thread with it.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import EngineFailure
from service.jobs.events import read_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_POINTS = 2000  # a picture shows no more, and a browser reads no more gladly
_LOSS_COLOR, _DEV_COLOR, _BLEU_COLOR = "#1f6feb", "#57606a", "#d9480f"
_PROJECT = Path(__file__).resolve().parents[2]


def curve(events: Path) -> list[dict[str, Any]]:
    """The points of a run, by step. What a restart trained again is told again, and counts once."""
    points: dict[int, dict[str, Any]] = {}
    for event in read_events(events):
        kind, values = event.values.get("event"), event.values
        if kind not in ("progress", "evaluation"):
            continue
        point = points.setdefault(values["step"], {"step": values["step"], "epoch": values["epoch"]})
        names = ("loss",) if kind == "progress" else ("loss", "dev_loss", "dev_bleu")
        point.update({name: values[name] for name in names})
    return _thinned([points[step] for step in sorted(points)])


def _thinned(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every n-th training point, and every evaluation."""
    stride = -(-len(points) // _MAX_POINTS)
    return [point for i, point in enumerate(points) if i % max(1, stride) == 0 or "dev_loss" in point]


async def draw(title: str, points: list[dict[str, Any]]) -> bytes:
    """A PNG of the points. Raises EngineFailure."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.jobs.curve",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=_PROJECT,
    )
    try:
        picture, errors = await process.communicate(json.dumps({"title": title, "points": points}).encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise EngineFailure(f"drawing failed: {errors.decode(errors='replace')[-500:]}")
    return picture


def render(title: str, points: list[dict[str, Any]]) -> bytes:
    """Loss on the left axis, BLEU on the right one."""
    from matplotlib.figure import Figure  # half a second that only pictures should cost

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    _plot(left, points, "loss", "training loss", _LOSS_COLOR, "-")
    _plot(left, points, "dev_loss", "dev loss", _DEV_COLOR, "o--")
    _plot(right, points, "dev_bleu", "dev BLEU, greedy", _BLEU_COLOR, "s-")
    left.set_xlabel("step")
    left.set_ylabel("loss a target token, nats")
    right.set_ylabel("BLEU", color=_BLEU_COLOR)
    left.set_title(title, loc="left", fontsize=13, fontweight="bold")
    left.grid(axis="y", color="#d0d7de", linewidth=0.6)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    if lines := [*left.get_lines(), *right.get_lines()]:
        left.legend(handles=lines, frameon=False, loc="center right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _plot(axes: Axes, points: list[dict[str, Any]], name: str, label: str, color: str, style: str) -> None:
    known = [(point["step"], point[name]) for point in points if point.get(name) is not None]
    if known:
        steps, values = zip(*known, strict=True)
        axes.plot(steps, values, style, color=color, label=label, linewidth=1.5, markersize=4)


def main() -> None:
    job = json.load(sys.stdin)
    sys.stdout.buffer.write(render(job["title"], job["points"]))


if __name__ == "__main__":
    main()
