"""`recurra translate`: a line out for each line in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import InvalidValue
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
    n_best: Annotated[int | None, typer.Option(help="So many translations on a line, a TAB between.")] = None,
    length_penalty: options.LengthPenaltyOption = None,
    coverage_penalty: options.CoveragePenaltyOption = None,
    max_length: options.MaxLengthOption = None,
    min_length: options.MinLengthOption = None,
    prefix: Annotated[str, typer.Option(help="Text that every translation has to start with.")] = "",
    no_repeat_ngram: options.NoRepeatNgramOption = None,
    banned: options.BannedOption = None,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = None,
    top_p: options.TopPOption = None,
    seed: options.SeedOption = None,
    stop_when: options.StopWhenOption = None,
    max_nodes: options.MaxNodesOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="With --json: the tokens read and written, their cost, the attention.")
    ] = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="With --explain, of one sentence and a beam: all that the beam looked at.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Lines read ahead and decoded together.")] = 512,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Translate lines: one out for each line in, in order, empty ones kept."""
    from model.translator import Translator, search_options

    search_fields = options.given(
        search=search,
        k=k,
        n_best=n_best,
        length_penalty=length_penalty,
        coverage_penalty=coverage_penalty,
        max_length=max_length,
        min_length=min_length,
        no_repeat_ngram=no_repeat_ngram,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_when=stop_when,
        max_nodes=max_nodes,
        wants_tree=tree or None,
    )
    _check_explanation(explain, tree, as_json)
    options.check_banned(banned)
    search_options(**search_fields)  # a wrong option is refused before a model is loaded
    search_fields |= {"banned": banned or (), "explain": explain}
    with open_input(file) as (stream, name):
        translator = Translator.load(options.model_folder(model, checkpoints), device=device, precision=precision)
        translations = translator.translate_iter(lines_of(stream, name), prefix=prefix, window=batch, **search_fields)
        for translation in _with_progress(translations):
            line = _as_json(translation) if as_json else _as_text(translation)
            sys.stdout.buffer.write(line.encode() + b"\n")
        sys.stdout.buffer.flush()


def _check_explanation(explain: bool, tree: bool, as_json: bool) -> None:
    """Raises InvalidValue where nobody would see what was asked for."""
    if explain and not as_json:
        raise InvalidValue("--explain", explain, "given together with --json: a line of text has no place for it")
    if tree and not explain:
        raise InvalidValue("--tree", tree, "given together with --explain")


def _as_text(translation: Translation) -> str:
    """A line holds no TAB of its own where it is a separator, and never a line feed."""
    texts = [translation.text, *(other.text for other in translation.alternatives)]
    return "\t".join(text.replace("\t", " ") for text in texts) if len(texts) > 1 else texts[0]


def _as_json(translation: Translation) -> str:
    """As an item of `translations` in the service's answer."""
    names = ("text", "score", "log_prob", "finish", "is_optimal", "gap")
    fields: dict[str, Any] = {name: getattr(translation, name) for name in names}
    fields["alternatives"] = [asdict(other) for other in translation.alternatives]
    if translation.explanation is not None:
        fields["explanation"] = asdict(translation.explanation)
    return json.dumps(fields, ensure_ascii=False)


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
