"""`recurra data`: look at parallel text before a model is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at parallel text.")


@app.callback()
def data() -> None:
    """Look at parallel text."""


@app.command()
def stats(
    file: Annotated[Path, typer.Argument(help="Pairs: source TAB target, or the source side; gzip is read as it is.")],
    tgt_file: Annotated[Path | None, typer.Argument(help="Target side, where it is a file of its own.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the histograms.")] = Path("statistics"),
) -> None:
    """Print counts of parallel text; write length and token-frequency histograms as PNG and JSON."""
    from model.data.corpus import CleaningRules, clean, read_pairs
    from model.data.statistics import CorpusStatistics

    pairs, report = clean(read_pairs(file, tgt_path=tgt_file), CleaningRules())
    typer.echo(report)
    statistics = CorpusStatistics.from_pairs(pairs)
    typer.echo(statistics)
    for path in statistics.write(out):
        typer.echo(f"written: {path}")
