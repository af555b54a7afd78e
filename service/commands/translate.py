"""`recurra translate`: a line out for each line in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands import options
from service.commands.lines import lines_of, open_input

if TYPE_CHECKING:
    from model.translator import Translation


def translate(
    file: Annotated[Path | None, typer.Argument(help="Text, a line each; else standard input.")] = None,
    model: options.ModelOption = "",
    checkpoints: options.CheckpointsOption = None,
    search: options.SearchOption = None,
    k: options.KOption = None,
    length_penalty: options.LengthPenaltyOption = 1.0,
    n_best: Annotated[int, typer.Option("--n-best", help="So many translations on a line, a TAB between.")] = 1,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a translated sentence.")] = None,
    min_length: Annotated[int, typer.Option(help="Fewest tokens of a translated sentence.")] = 0,
    prefix: Annotated[str, typer.Option(help="Text that every translation has to start with.")] = "",
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Lines read ahead and decoded together.")] = 512,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Translate lines: one out for each line in, in order, empty ones kept."""
    from model.translator import Translator, search_options

    search_fields: dict[str, Any] = {
        "search": search,
        "k": k,
        "length_penalty": length_penalty,
        "n_best": n_best,
        "max_length": max_length,
        "min_length": min_length,
    }
    search_options(**search_fields)  # a wrong option is refused before a model is loaded
    with open_input(file) as (stream, name):
        translator = Translator.load(options.model_folder(model, checkpoints), device=device, precision=precision)
        translations = translator.translate_iter(lines_of(stream, name), prefix=prefix, window=batch, **search_fields)
        for translation in _with_progress(translations):
            line = _as_json(translation) if as_json else _as_text(translation)
            sys.stdout.buffer.write(line.encode() + b"\n")
        sys.stdout.buffer.flush()


def _as_text(translation: Translation) -> str:
    """A line holds no TAB of its own where it is a separator, and never a line feed."""
    texts = [translation.text, *(other.text for other in translation.alternatives)]
    return "\t".join(text.replace("\t", " ") for text in texts) if len(texts) > 1 else texts[0]


def _as_json(translation: Translation) -> str:
    fields = {"text": translation.text, "score": translation.score, "log_prob": translation.log_prob}
    fields |= {"finish": translation.finish}
    others = [{"text": o.text, "score": o.score, "log_prob": o.log_prob} for o in translation.alternatives]
    return json.dumps(fields | {"alternatives": others}, ensure_ascii=False)


def _with_progress(translations: Iterator[Translation]) -> Iterator[Translation]:
    """Counts lines on standard error where that is a terminal; elsewhere nothing is printed."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from translations
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} lines, {task.speed:,.0f} a second"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        for translation in translations:
            yield translation
            bar.advance(task)
