"""`recurra data`: fetch, look at and store parallel text before a model is trained on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from model.errors import InvalidValue
from service.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Fetch, look at and store parallel text.")


@app.callback()
def data() -> None:
    """Fetch, look at and store parallel text."""


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


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="tatoeba-en-XX or tatoeba-XX-en, such as tatoeba-en-fr.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default downloads in RECURRA_DATA.")] = None,
    url: Annotated[str, typer.Option("--url", help="Another address of the ZIP archive, such as a mirror.")] = "",
    sha256: Annotated[str, typer.Option("--sha256", help="What the sha256 of the ZIP archive has to be.")] = "",
) -> None:
    """Fetch sentence pairs of Tatoeba; goes on where it was broken off. Writes source TAB target TAB attribution."""
    from service.datasets.download import corpus_named, download

    corpus = corpus_named(name, url=url)
    folder = out or load_settings().data_path / "downloads"
    with _DownloadDisplay(corpus.file_name) as display:
        result = download(corpus, folder, sha256=_checked_sha256(sha256), on_progress=display.show)
    typer.echo(f"{'fetched' if result.is_fetched else 'there already'}: {corpus.file_name}, sha256 {result.sha256}")
    typer.echo(f"{result.num_pairs:,} pairs: {result.tsv_path}")
    typer.echo("licence and attribution: CC BY 2.0 FR, tatoeba.org and manythings.org/anki; column 3 names the authors")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What the dataset is to be called.")],
    file: Annotated[Path, typer.Argument(help="TSV or TMX, or the source side; plain or gzip.")],
    tgt_file: Annotated[Path | None, typer.Argument(help="Target side, where it is a file of its own.")] = None,
    src_lang: Annotated[str, typer.Option("--src", help="Source language code.")] = "",
    tgt_lang: Annotated[str, typer.Option("--tgt", help="Target language code.")] = "",
    max_words: Annotated[int, typer.Option(help="Drop pairs with more words on a side.")] = 100,
    max_ratio: Annotated[float, typer.Option(help="Drop pairs with so many times more words on one side.")] = 4.0,
) -> None:
    """Store local files as a dataset of the service: what POST /datasets does, with the same checks."""
    from service.datasets.errors import told_apart
    from service.datasets.formats import UnpackLimit
    from service.datasets.store import DatasetStore
    from service.datasets.upload import store_files

    settings = load_settings()
    fields = {"name": name, "source": src_lang, "target": tgt_lang}
    fields |= {"max_words": str(max_words), "max_ratio": str(max_ratio)}
    files = {"pairs": file} if tgt_file is None else {"source_file": file, "target_file": tgt_file}
    limit = UnpackLimit(max_bytes=settings.max_dataset_unpacked_bytes)
    with told_apart():
        dataset, is_new = store_files(fields, files, DatasetStore(settings.datasets_path), limit)
    dropped = ", ".join(f"{cause} {count:,}" for cause, count in dataset.report["dropped"].items() if count)
    typer.echo(f"{'stored' if is_new else 'there already'}: {dataset.name}, sha256 {dataset.sha256}")
    typer.echo(f"{dataset.report['num_read']:,} pairs read, {dataset.num_pairs:,} kept, dropped: {dropped or 'none'}")
    for warning in dataset.report["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


@app.command("list")
def list_datasets() -> None:
    """The datasets of the service."""
    from service.datasets.store import DatasetStore

    rows = [("dataset", "languages", "pairs", "sha256")]
    for dataset in DatasetStore(load_settings().datasets_path).list():
        languages = f"{dataset.src_lang}→{dataset.tgt_lang}"
        rows.append((dataset.name, languages, f"{dataset.num_pairs:,}", dataset.sha256[:12]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _checked_sha256(text: str) -> str:
    if text and not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise InvalidValue("--sha256", text, "64 hexadecimal digits")
    return text


class _DownloadDisplay:
    """Progress of a download: a bar on a terminal, a line for each tenth elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("download", total=None)
        self._last_tenth = -1

    def __enter__(self) -> _DownloadDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, num_bytes: int, total: int | None) -> None:
        self._bar.update(self._task, completed=num_bytes, total=total)
        tenth = 10 * num_bytes // total if total else num_bytes // 10_000_000
        if not self._console.is_terminal and tenth != self._last_tenth:
            self._last_tenth = tenth
            share = f" of {total:,}" if total else ""
            self._console.print(f"{self._name}: {num_bytes:,}{share} bytes", highlight=False)
