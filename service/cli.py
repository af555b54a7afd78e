"""The command line: `recurra serve | train | translate | score | data | models`.

Each command turns its arguments into one call of the packages and prints what comes back. Long work shows a progress
bar on a terminal and plain lines elsewhere. Errors that are the user's to mend are one line on standard error and exit
status 2; nothing else is caught.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.errors import DataError, InvalidValue, RecurraError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="Self-hosted translation on recurrent networks.")  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Look at parallel text.")
models_app = typer.Typer(no_args_is_help=True, help="Look at the models on disk.")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")

DEFAULT_CHECKPOINTS = Path("checkpoints")

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Name of a model, or the folder of a checkpoint.")]
CheckpointsOption = Annotated[
    Path, typer.Option("--checkpoints", envvar="RECURRA_CHECKPOINTS", help="Folder of the models.")
]
KOption = Annotated[int | None, typer.Option("--k", "-k", help="Beam width; 1 is greedy. Default 5.")]
SearchOption = Annotated[str | None, typer.Option("--search", help="greedy or beam.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def main() -> None:
    """Entry point of the `recurra` command."""
    try:
        app()
    except RecurraError as exc:
        print(f"recurra: {exc}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of a pipe left: `recurra translate < file | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        print("recurra: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _model_folder(model: str, checkpoints: Path) -> Path:
    """The folder of a model: as given, by name, or the only one."""
    if model:
        named = checkpoints / model
        return named if named.is_dir() else Path(model)
    folders = _model_folders(checkpoints)
    if len(folders) != 1:
        names = ", ".join(folder.name for folder in folders) or "none"
        raise InvalidValue("--model", model, f"one of the models in {checkpoints}: {names}")
    return folders[0]


def _model_folders(checkpoints: Path) -> list[Path]:
    return sorted(path.parent for path in checkpoints.glob("*/config.json"))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; else RECURRA_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; else RECURRA_PORT.")] = None,
) -> None:
    """Start the HTTP service. All other settings come from RECURRA_* variables."""
    import uvicorn

    from service.app import create_app
    from service.settings import load_settings

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = load_settings(**given)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
    uvicorn.Server(config).run()


@app.command()
def translate(
    file: Annotated[Path | None, typer.Argument(help="Text, a line each; else standard input.")] = None,
    model: ModelOption = "",
    checkpoints: CheckpointsOption = DEFAULT_CHECKPOINTS,
    search: SearchOption = None,
    k: KOption = None,
    length_penalty: Annotated[float, typer.Option(help="Exponent of the length in the score.")] = 1.0,
    device: DeviceOption = "auto",
) -> None:
    """Translate lines: one out for each line in, in order, empty ones kept."""
    from model.translator import Translator, search_options

    options: dict[str, Any] = {"search": search, "k": k, "length_penalty": length_penalty}
    search_options(**options)  # a wrong option is refused before a model is loaded
    translator = Translator.load(_model_folder(model, checkpoints), device=device)
    source = sys.stdin.buffer if file is None else _open(file)
    out = sys.stdout.buffer
    name = "standard input" if file is None else str(file)
    for translation in translator.translate_iter(_lines(source, name), **options):
        out.write(translation.text.encode() + b"\n")
        out.flush()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise DataError(f"cannot be read: {exc.strerror}", path) from exc


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines without their ends; separators that Unicode also takes for line ends become spaces."""
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise DataError(f"is not UTF-8: byte {exc.start + 1} is 0x{line[exc.start]:02x}", name, number) from exc
        yield " ".join(text.rstrip("\r\n").splitlines())


@app.command()
def score(
    references: Annotated[Path, typer.Argument(help="JSON lines with a test set, or a text of one reference a line.")],
    hypotheses: Annotated[Path | None, typer.Option("--hyp", help="Translations, a line each; else a model's.")] = None,
    model: ModelOption = "",
    checkpoints: CheckpointsOption = DEFAULT_CHECKPOINTS,
    source: Annotated[
        Path | None, typer.Option("--source", help="Source text, where the references hold none.")
    ] = None,
    search: SearchOption = None,
    k: KOption = None,
    metrics: Annotated[str, typer.Option(help="bleu, chrf, ter, bleu-d2l, separated by commas.")] = "bleu,chrf",
    device: DeviceOption = "auto",
) -> None:
    """Score translations, or a model on a test set, and print the metrics with their signatures."""
    from model.bleu import score as score_texts
    from model.data.corpus import read_examples
    from model.translator import Translator

    translator = None if hypotheses else Translator.load(_model_folder(model, checkpoints), device=device)
    if references.suffix in {".jsonl", ".json"}:
        src, tgt = (translator.src_lang, translator.tgt_lang) if translator else _languages(references)
        examples = read_examples(references, src_lang=src, tgt_lang=tgt)
        sources, refs = [e.src for e in examples], [list(e.refs) for e in examples]
    else:
        refs = [[line] for line in _lines(_open(references), str(references))]
        sources = list(_lines(_open(source), str(source))) if source else []
    if translator is None:
        assert hypotheses is not None
        texts = list(_lines(_open(hypotheses), str(hypotheses)))
    else:
        if len(sources) != len(refs):
            raise InvalidValue("--source", len(sources), f"a file of {len(refs)} lines, as many as the references have")
        texts = [t.text for t in translator.translate(sources, search=search, k=k)]
    for name, result in score_texts(texts, refs, metrics=tuple(m.strip() for m in metrics.split(","))).items():
        print(f"{name:9s} {result.score:7.2f}   {result.signature}")


def _languages(path: Path) -> tuple[str, str]:
    """The two language codes of a JSON-lines test set: its first two keys."""
    with path.open(encoding="utf-8") as stream:
        keys = list(json.loads(stream.readline()))
    return keys[0], keys[1]


@app.command()
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
        str, typer.Option("--preset", help="Architecture; see recurra train --list-presets.")
    ] = "base",
    option: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of any model or training option.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run's state; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    licence: Annotated[
        str, typer.Option("--licence", help="Licence and attribution of the data, kept in metrics.json.")
    ] = "",
    device: DeviceOption = "auto",
) -> None:
    """Train a model: clean the pairs, learn a tokenizer, train, average the best checkpoints, score."""
    from model.bleu import score as score_texts
    from model.config import preset
    from model.data.corpus import CleaningRules, clean, read_examples, read_pairs
    from model.training import Trainer

    chosen = preset(preset_name).with_options(dict(_assignment(text) for text in option or []))
    pairs, report = clean(read_pairs(data, tgt_path=tgt_data), CleaningRules())
    print(report)
    trainer = Trainer(
        run or Path("runs") / out.name,
        preset=chosen,
        pairs=pairs,
        dev=read_examples(dev, src_lang=src_lang, tgt_lang=tgt_lang),
        src_lang=src_lang,
        tgt_lang=tgt_lang,
        resume=resume,
        device=device,
    )
    print(f"{trainer.network.num_parameters:,} parameters, {trainer.steps_per_epoch:,} steps an epoch")
    with _TrainingDisplay() as display:
        trainer.train(on_progress=display.show)
    metrics: dict[str, Any] = {"preset": preset_name, "command": _command_line(), "data": data.name}
    if licence:
        metrics["licence"] = licence
    translator = trainer.finish(out, metrics)
    if test:
        examples = read_examples(test, src_lang=src_lang, tgt_lang=tgt_lang)
        refs = [list(e.refs) for e in examples]
        scores = {}
        for k in (1, 5):
            texts = [t.text for t in translator.translate([e.src for e in examples], k=k)]
            result = score_texts(texts, refs, metrics=("bleu", "chrf"))
            scores[f"beam {k}" if k > 1 else "greedy"] = {name: round(r.score, 2) for name, r in result.items()}
            print(f"{test.name}, k = {k}: " + ", ".join(f"{name} {r.score:.2f}" for name, r in result.items()))
        trainer.finish(out, {**metrics, "test": {"set": test.name, "sentences": len(examples), **scores}})
    print(f"written to {out}")


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


@data_app.command()
def stats(
    file: Annotated[Path, typer.Argument(help="Pairs: source TAB target, or the source side.")],
    tgt_file: Annotated[Path | None, typer.Argument(help="Target side, where it is a file of its own.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the histograms.")] = Path("statistics"),
) -> None:
    """Print counts of parallel text; write length and token-frequency histograms as PNG and JSON."""
    from model.data.corpus import CleaningRules, clean, read_pairs
    from model.data.statistics import CorpusStatistics

    pairs, report = clean(read_pairs(file, tgt_path=tgt_file), CleaningRules())
    print(report)
    statistics = CorpusStatistics.from_pairs(pairs)
    print(statistics)
    for path in statistics.write(out):
        print(f"written: {path}")


@models_app.command("list")
def list_models(checkpoints: CheckpointsOption = DEFAULT_CHECKPOINTS) -> None:
    """The models on disk, with languages, size and scores."""
    from model.checkpoint import load_checkpoint
    from model.errors import CheckpointError

    table = Table("model", "version", "languages", "cell", "parameters", "test BLEU, beam 5")
    for folder in _model_folders(checkpoints):
        try:
            checkpoint = load_checkpoint(folder)
        except CheckpointError as exc:
            table.add_row(folder.name, f"refused: {exc.cause}")
            continue
        metrics = checkpoint.metrics
        bleu = metrics.get("test", {}).get("beam 5", {}).get("bleu", "")
        table.add_row(folder.name, checkpoint.version, f"{checkpoint.src_lang} → {checkpoint.tgt_lang}",
                      checkpoint.model.cell, f"{metrics.get('num_parameters', 0):,}", str(bleu))  # fmt: skip
    Console().print(table)


@models_app.command()
def show(model: str, checkpoints: CheckpointsOption = DEFAULT_CHECKPOINTS) -> None:
    """Everything that a checkpoint says of itself, as JSON."""
    from model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(_model_folder(model, checkpoints))
    about = {"version": checkpoint.version, "source": checkpoint.src_lang, "target": checkpoint.tgt_lang,
             "model": checkpoint.model.to_json(), **checkpoint.metrics}  # fmt: skip
    print(json.dumps(about, indent=2, ensure_ascii=False))


@models_app.command()
def verify(model: str, checkpoints: CheckpointsOption = DEFAULT_CHECKPOINTS) -> None:
    """Check every file of a checkpoint against its sha256, and that the weights fit the network."""
    from model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(_model_folder(model, checkpoints))
    print(f"{model}: sound, version {checkpoint.version}")
