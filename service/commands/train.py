"""`recurra train`: from parallel text to a checkpoint, with progress."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.errors import InvalidValue
from service.commands import options

if TYPE_CHECKING:
    from model.config import Preset
    from model.training import Trainer


def train(
    data: Annotated[Path, typer.Argument(help="Training pairs: source TAB target, or the source side.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the finished checkpoint.")],
    dev: Annotated[Path, typer.Option("--dev", help="Dev set: JSON lines with references, or TSV.")],
    src_lang: Annotated[str, typer.Option("--src", help="Source language code.")],
    tgt_lang: Annotated[str, typer.Option("--tgt", help="Target language code.")],
    tgt_data: Annotated[
        Path | None, typer.Option("--tgt-data", help="Target side, where it is a file of its own.")
    ] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Test set, scored at the end.")] = None,
    preset_name: Annotated[
        str, typer.Option("--preset", help="Architecture: a name from model/config.py, such as base or small.")
    ] = "base",
    option: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of any model or training option.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run's state; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="Checkpoint whose weights and tokenizer to begin with.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", help="Licence and attribution of the data, kept in metrics.json.")
    ] = "",
    device: options.DeviceOption = "auto",
    nproc: Annotated[int, typer.Option("--nproc", help="Processes (or GPUs) of this machine that train together.")] = 1,
) -> None:
    """Train a model: clean the pairs, learn a tokenizer, train, average the best checkpoints, score."""
    from model import distributed
    from model.config import preset

    task = _Task(
        data=data,
        tgt_data=tgt_data,
        dev=dev,
        test=test,
        out=out,
        run=run or Path("runs") / out.name,
        src_lang=src_lang,
        tgt_lang=tgt_lang,
        preset_name=preset_name,
        preset=preset(preset_name).with_options(dict(_assignment(text) for text in option or [])),
        resume=resume,
        start_from=start_from,
        licence=licence,
        device=device,
    )
    if nproc != 1 and not distributed.is_launched():
        distributed.launch(nproc, "service", sys.argv[1:])
        return
    with distributed.final_errors():
        _train(task)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What the command line asks for."""

    data: Path
    tgt_data: Path | None
    dev: Path
    test: Path | None
    out: Path
    run: Path
    src_lang: str
    tgt_lang: str
    preset_name: str
    preset: Preset
    resume: bool
    start_from: Path | None
    licence: str
    device: str


def _train(task: _Task) -> None:
    from model import distributed
    from model.checkpoint import load_checkpoint
    from model.data.corpus import CleaningRules, clean, read_examples, read_pairs
    from model.training import Trainer

    pairs, report = clean(read_pairs(task.data, tgt_path=task.tgt_data), CleaningRules())
    trainer = Trainer(
        task.run,
        preset=task.preset,
        pairs=pairs,
        dev=read_examples(task.dev, src_lang=task.src_lang, tgt_lang=task.tgt_lang),
        src_lang=task.src_lang,
        tgt_lang=task.tgt_lang,
        resume=None if distributed.num_restarts() else task.resume,
        start_from=load_checkpoint(task.start_from) if task.start_from else None,
        device=task.device,
    )
    if not trainer.group.is_main:
        trainer.train()
        return
    print(report)
    print(f"{trainer.network.num_parameters:,} parameters, {trainer.steps_per_epoch:,} steps an epoch")
    with _TrainingDisplay() as display:
        trainer.train(on_progress=display.show)
    _finish(task, trainer)


def _finish(task: _Task, trainer: Trainer) -> None:
    from model.bleu import score as score_texts
    from model.data.corpus import read_examples

    metrics: dict[str, Any] = {"preset": task.preset_name, "command": _command_line(), "data": task.data.name}
    if task.licence:
        metrics["licence"] = task.licence
    translator = trainer.finish(task.out, metrics)
    if task.test:
        examples = read_examples(task.test, src_lang=task.src_lang, tgt_lang=task.tgt_lang)
        refs = [list(e.refs) for e in examples]
        scores = {}
        for k in (1, 5):
            texts = [t.text for t in translator.translate([e.src for e in examples], k=k)]
            result = score_texts(texts, refs, metrics=("bleu", "chrf"))
            scores[f"beam {k}" if k > 1 else "greedy"] = {name: round(r.score, 2) for name, r in result.items()}
            print(f"{task.test.name}, k = {k}: " + ", ".join(f"{name} {r.score:.2f}" for name, r in result.items()))
        trainer.finish(task.out, {**metrics, "test": {"set": task.test.name, "sentences": len(examples), **scores}})
    print(f"written to {task.out}")


def _command_line() -> str:
    return " ".join(["recurra", *sys.argv[1:]])


def _assignment(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise InvalidValue("--set", text, "NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class _TrainingDisplay:
    """Progress of a run: a bar on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn(
                "{task.completed}/{task.total} steps, loss {task.fields[loss]:.3f}, {task.fields[speed]:,.0f} tokens/s"
            ),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=None, epoch=1, loss=0.0, speed=0.0)

    def __enter__(self) -> _TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, progress: Any) -> None:
        """Takes a `model.training.Progress`."""
        if progress.is_evaluation:
            self._console.print(
                f"epoch {progress.epoch}: dev loss {progress.dev_loss:.3f}, dev BLEU {progress.dev_bleu:.2f}, "
                f"{progress.seconds / 60:.1f} minutes", highlight=False,
            )  # fmt: skip
            return
        self._bar.update(self._task, completed=progress.step, total=progress.total_steps, epoch=progress.epoch,
                         loss=progress.loss, speed=progress.tokens_per_second)  # fmt: skip
        if not self._console.is_terminal:
            self._console.print(
                f"epoch {progress.epoch} step {progress.step}/{progress.total_steps} loss {progress.loss:.3f} "
                f"{progress.tokens_per_second:,.0f} tokens/s, {progress.seconds_left / 60:.0f} minutes left",
                highlight=False,
            )
