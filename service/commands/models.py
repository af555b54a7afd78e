"""`recurra models`: look at the models on disk, and change which of their versions is live.

What changes here is on disk. Running services on the same folder follow within RECURRA_MODELS_POLL_SECONDS.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands import options
from service.commands.average import average
from service.commands.export import export

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint
    from service.inference.comparison import Comparison
    from service.inference.versions import VersionStore

app = typer.Typer(no_args_is_help=True, help="Models on disk: look at them, and choose which version is live.")

ModelArgument = Annotated[str, typer.Argument(help="Name of a model.")]
VersionArgument = Annotated[str, typer.Argument(help="A version, as `recurra models list` shows it.")]


@app.command("list")
def list_models(checkpoints: options.CheckpointsOption = None) -> None:
    """The models and their versions, with languages, size and scores."""
    store = options.version_store(checkpoints)
    rows: list[tuple[str, ...]] = [("model", "version", "", "languages", "cell", "parameters", "test BLEU")]
    for name in store.names():
        rows.extend(_rows(store, name))
    widths = [max(len(row[i]) for row in rows if len(row) > 3) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Name of a model, or a folder; else the only one.")] = "",
    version: Annotated[str, typer.Option(help="One of its versions; else the live one.")] = "",
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Everything that a checkpoint says of itself and that is known of where it comes from, as JSON."""
    from model.checkpoint import load_checkpoint

    store = options.version_store(checkpoints)
    folder = store.folder(model, version) if version else options.model_folder(model, checkpoints)
    checkpoint = load_checkpoint(folder)
    facts: dict[str, Any] = {
        "version": checkpoint.version,
        "source": checkpoint.src_lang,
        "target": checkpoint.tgt_lang,
        "network": checkpoint.model.to_json(),
        "training": checkpoint.metrics,
    }
    for name in store.names():
        infos = {info.folder: info for info in store.versions(name)}
        if folder in infos:
            facts["lineage"] = infos[folder].lineage
            facts["versions"] = [info.version for info in infos.values()]
            facts["live"] = store.live(name)
            facts["history"] = [asdict(switch) for switch in store.history(name)]
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


@app.command()
def verify(
    models: Annotated[list[str] | None, typer.Argument(help="Names or folders; else all.")] = None,
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Check all files of all versions against their sha256, and that the weights fit the network.

    Exit status 1: one is refused.
    """
    from model.checkpoint import load_checkpoint
    from model.errors import CheckpointError

    store = options.version_store(checkpoints)
    num_refused = 0
    for model in models or store.names():
        if model in store.names():
            name, folders = model, _folders(store, model)
        else:
            folder = options.model_folder(model, checkpoints)
            name, folders = folder.resolve().name, [folder]
        for folder in folders:
            try:
                typer.echo(f"{name}: sound, version {load_checkpoint(folder).version}")
            except CheckpointError as exc:
                num_refused += 1
                typer.echo(f"{name}: refused, {exc}", err=True)
    if num_refused:
        raise typer.Exit(1)


@app.command()
def add(
    model: Annotated[str, typer.Argument(help="Name of a model; made if new.")],
    folder: Annotated[Path, typer.Argument(help="A checkpoint: what `train` wrote, or what `export` copied out.")],
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Copy a checkpoint in as a new version, and print it. It does not go live."""
    from service.inference.versions import lineage_of

    typer.echo(options.version_store(checkpoints).publish(model, folder, lineage=lineage_of(folder)))


@app.command()
def promote(
    model: ModelArgument,
    version: VersionArgument,
    reason: Annotated[str, typer.Option(help="For the model's history.")] = "promoted by hand",
    if_better: Annotated[
        Path | None,
        typer.Option(help="Test set on which it has to beat the live version with p < 0.05; else exit status 1."),
    ] = None,
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Make a version live, once it is seen to load. Running services follow."""
    store = options.version_store(checkpoints)
    folder = store.folder(model, version)
    _check_that_it_loads(folder)
    live = store.live(model)
    if if_better is not None and live is not None:
        comparison = _compare(store.folder(model, live), folder, if_better)
        bleus = f"BLEU {comparison.bleu_candidate:.2f} against {comparison.bleu_live:.2f}, p = {comparison.p_value:.3f}"
        typer.echo(f"{model}: {bleus}, {comparison.num_sentences:,} sentences")
        if not comparison.is_better:
            typer.echo(f"{model}: {live} stays live", err=True)
            raise typer.Exit(1)
    store.set_live(model, version, reason=reason)
    typer.echo(f"{model}: {version} is live")


@app.command()
def rollback(model: ModelArgument, checkpoints: options.CheckpointsOption = None) -> None:
    """Make the version live again that was so before, once it is seen to load. Running services follow."""
    store = options.version_store(checkpoints)
    version = store.previous(model)
    _check_that_it_loads(store.folder(model, version))
    typer.echo(f"{model}: {store.rollback(model, expected=version)} is live")


app.command()(average)
app.command()(export)


def _check_that_it_loads(folder: Path) -> None:
    """Raises CheckpointError."""
    from model.translator import Translator

    Translator.load(folder, device="cpu", precision="fp32").warm_up()


def _compare(live: Path, candidate: Path, test_set: Path) -> Comparison:
    from model.checkpoint import load_checkpoint
    from model.data.corpus import read_examples
    from service.inference.comparison import compare_versions

    checkpoint = load_checkpoint(candidate)
    examples = read_examples(test_set, src_lang=checkpoint.src_lang, tgt_lang=checkpoint.tgt_lang)
    return compare_versions(live, candidate, [e.src for e in examples], [e.refs for e in examples])


def _folders(store: VersionStore, name: str) -> list[Path]:
    """Of all versions; of a model that has none, the folder whose damage is to be told."""
    target = store.target(name)
    return [info.folder for info in store.versions(name)] or ([] if target is None else [target.folder])


def _live(store: VersionStore, name: str) -> Path | None:
    target = store.target(name)
    return None if target is None else target.folder


def _rows(store: VersionStore, name: str) -> list[tuple[str, ...]]:
    from model.checkpoint import load_checkpoint
    from model.errors import CheckpointError

    rows: list[tuple[str, ...]] = []
    for folder in _folders(store, name):
        mark = "live" if folder == _live(store, name) else ""
        try:
            rows.append(_row(name, mark, load_checkpoint(folder)))
        except CheckpointError as exc:
            rows.append((name, f"refused: {exc.path.name} {exc.cause}"))  # one wide cell
    return rows


def _row(name: str, mark: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    metrics = checkpoint.metrics
    languages = f"{checkpoint.src_lang}→{checkpoint.tgt_lang}"
    bleu = metrics.get("test", {}).get("beam 5", {}).get("bleu", "")
    num_parameters = f"{metrics['num_parameters']:,}" if "num_parameters" in metrics else ""
    return name, checkpoint.version, mark, languages, checkpoint.model.cell, num_parameters, str(bleu)
