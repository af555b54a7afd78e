"""`recurra bench`: measure what a model's searches do on real text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from model.decoding.search import DEFAULT_MAX_NODES
from model.errors import InvalidValue
from service.commands import options
from service.commands.lines import read_lines
from service.commands.score import aligned

if TYPE_CHECKING:
    from model.search_errors import SearchErrors, SearchReport, Spelled, Spread
    from model.translator import Translator

_Number = TypeVar("_Number", int, float)

app = typer.Typer(no_args_is_help=True, help="Measure a model's searches.")

_HEAD = ("search", "missed", "", "longer", "score gap", "log-prob gap", "tokens", "steps", "nodes", "BLEU", "if proven")


@app.callback()
def bench() -> None:
    """Measure a model's searches."""


@app.command("search-errors")
def search_errors(
    file: Annotated[Path, typer.Argument(help="Sentences, a line each, or JSON lines with references.")],
    refs: Annotated[list[Path] | None, typer.Argument(help="References, a line for each sentence.")] = None,
    model: options.ModelOption = "",
    checkpoints: options.CheckpointsOption = None,
    widths: Annotated[str, typer.Option("--k", "-k", help="Beam widths, separated by commas; 1 is greedy.")] = "1,2,5",
    length_penalty: Annotated[str, typer.Option(help="Exponents of the length, separated by commas.")] = "0,1",
    max_nodes: Annotated[int, typer.Option(help="Nodes that each proof may extend.")] = DEFAULT_MAX_NODES,
    max_seconds: Annotated[
        float, typer.Option(help="Time for the proofs of one length penalty; short sentences come first.")
    ] = 300.0,
    max_length: options.MaxLengthOption = None,
    sentences: Annotated[int, typer.Option(help="Read so many lines only; 0 for all.")] = 0,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """How often greedy and beam search miss the model's best translation, proven by exact search, and by how much."""
    from model.search_errors import measure, search_options
    from model.translator import Translator

    ks = _numbers("--k", widths, int)
    penalties = _numbers("--length-penalty", length_penalty, float)
    for penalty in penalties:  # refused before a model is loaded
        search_options(ks, length_penalty=penalty, max_length=max_length, max_nodes=max_nodes)
    if not 0 < max_seconds < math.inf:
        raise InvalidValue("--max-seconds", max_seconds, "a number above 0")
    if sentences < 0:
        raise InvalidValue("--sentences", sentences, "a whole number from 0")

    translator = Translator.load(options.model_folder(model, checkpoints), device=device, precision=precision)
    texts, references = _read(file, refs or [], translator)
    if sentences:
        texts, references = texts[:sentences], references and references[:sentences]
    reports: list[SearchErrors] = []
    for penalty in penalties:
        with _progress(f"length penalty {penalty:g}") as on_progress:
            report = measure(
                translator,
                texts,
                references=references,
                widths=ks,
                length_penalty=penalty,
                max_length=max_length,
                max_nodes=max_nodes,
                max_seconds=max_seconds,
                on_progress=on_progress,
            )
        reports.append(report)
        if not as_json:
            typer.echo("\n".join(_lines(translator, report)))
    if as_json:
        facts = {"model": translator.name, "version": translator.version, "precision": translator.precision}
        typer.echo(json.dumps(facts | {"reports": [report.to_json() for report in reports]}, ensure_ascii=False))


def _numbers(flag: str, given: str, kind: Callable[[str], _Number]) -> list[_Number]:
    try:
        return [kind(part) for part in given.split(",")]
    except ValueError as exc:
        what = "whole numbers" if kind is int else "numbers"
        raise InvalidValue(flag, given, f"{what}, separated by commas") from exc


def _read(file: Path, refs: list[Path], translator: Translator) -> tuple[list[str], list[list[str]] | None]:
    """Sentences and, where there are any, the references of each."""
    lines = read_lines(file)
    if refs:
        return lines, aligned(refs, len(lines), file)
    if not next((line.lstrip() for line in lines if line.strip()), "").startswith("{"):
        return [line for line in lines if line.strip()], None
    from model.data.corpus import read_examples

    examples = read_examples(file, src_lang=translator.src_lang, tgt_lang=translator.tgt_lang)
    return [example.src for example in examples], [list(example.refs) for example in examples]


# -- on a terminal -----------------------------------------------------------------------------------------------------


def _lines(translator: Translator, report: SearchErrors) -> Iterator[str]:
    yield (
        f"{translator.name} {translator.version}, {translator.precision}, length penalty {report.length_penalty:g}: "
        f"{report.num_sentences:,} sentences in {report.seconds:.0f} s"
    )
    yield (
        f"best translation proven of {report.num_proven:,} ({_share(report.num_proven, report.num_sentences)}); "
        f"{report.num_given_up:,} not within {report.max_nodes:,} nodes, "
        f"{report.num_out_of_time:,} not within {report.max_seconds:g} s"
    )
    yield f"of those proven, the best translation is empty for {report.num_empty:,}"
    yield ""
    rows = [_HEAD, *(_row(search, report.num_proven) for search in report.searches)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
    yield "missed, longer (than the best translation), tokens: if proven. Gaps: mean / median / largest, if missed"
    if report.example is not None:
        yield ""
        yield f"greedy search misses the best translation of: {report.example.source}"
        yield f"  greedy  {_spelled(report.example.greedy)}"
        yield f"  best    {_spelled(report.example.best)}"
    yield ""


def _row(search: SearchReport, num_proven: int) -> tuple[str, ...]:
    return (
        search.name,
        f"{search.num_missed:,}",
        _share(search.num_missed, num_proven),
        f"{search.num_longer:,}",
        _gap(search.score_gap),
        _gap(search.log_prob_gap),
        f"{search.mean_tokens:.1f}",
        f"{search.mean_steps:.1f}",
        f"{search.mean_nodes:,.1f}",
        "" if search.bleu is None else f"{search.bleu:.2f}",
        "" if search.proven_bleu is None else f"{search.proven_bleu:.2f}",
    )


def _share(num: int, num_all: int) -> str:
    return f"{num / num_all:.1%}" if num_all else "-"


def _gap(gap: Spread | None) -> str:
    return "-" if gap is None else f"{gap.mean:.3f} / {gap.median:.3f} / {gap.max:.3f}"


def _spelled(spelled: Spelled) -> str:
    """Each token with its probability, and what they come to."""
    factors = "  ".join(f"{t} {p:.3f}" for t, p in zip(spelled.tokens, spelled.probabilities, strict=True))
    return f"{factors}  = {math.exp(spelled.log_prob):.3g}, score {spelled.score:.4f}"


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error where that is a terminal; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label)
        yield lambda num_done, num_all: bar.update(task, completed=num_done, total=num_all)
