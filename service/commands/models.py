"""`recurra models`: look at the checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands import options

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

app = typer.Typer(no_args_is_help=True, help="Look at the models on disk.")


@app.command("list")
def list_models(checkpoints: options.CheckpointsOption = None) -> None:
    """The models, with languages, size and scores."""
    from model.checkpoint import load_checkpoint
    from model.errors import CheckpointError

    rows = [("model", "version", "languages", "cell", "parameters", "test BLEU")]
    for folder in options.model_folders(checkpoints):
        name = folder.resolve().name
        try:
            rows.append(_row(name, load_checkpoint(folder)))
        except CheckpointError as exc:
            rows.append((name, f"refused: {exc.path.name} {exc.cause}"))  # type: ignore[arg-type]  # one wide cell
    widths = [max(len(row[i]) for row in rows if len(row) > 2) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Name of a model, or a folder; else the only one.")] = "",
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Everything that a checkpoint says of itself, as JSON."""
    from model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(options.model_folder(model, checkpoints))
    facts = {
        "version": checkpoint.version,
        "source": checkpoint.src_lang,
        "target": checkpoint.tgt_lang,
        "network": checkpoint.model.to_json(),
        "training": checkpoint.metrics,
    }
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


@app.command()
def verify(
    models: Annotated[list[str] | None, typer.Argument(help="Names or folders; else all.")] = None,
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Check all files against their sha256, and that the weights fit the network. Exit status 1: one is refused."""
    from model.checkpoint import load_checkpoint
    from model.errors import CheckpointError

    folders: list[Path] = [options.model_folder(model, checkpoints) for model in models or []]
    num_refused = 0
    for folder in folders or options.model_folders(checkpoints):
        name = folder.resolve().name
        try:
            typer.echo(f"{name}: sound, version {load_checkpoint(folder).version}")
        except CheckpointError as exc:
            num_refused += 1
            typer.echo(f"{name}: refused, {exc}", err=True)
    if num_refused:
        raise typer.Exit(1)


def _row(name: str, checkpoint: Checkpoint) -> tuple[str, str, str, str, str, str]:
    metrics = checkpoint.metrics
    languages = f"{checkpoint.src_lang}→{checkpoint.tgt_lang}"
    bleu = metrics.get("test", {}).get("beam 5", {}).get("bleu", "")
    num_parameters = f"{metrics['num_parameters']:,}" if "num_parameters" in metrics else ""
    return name, checkpoint.version, languages, checkpoint.model.cell, num_parameters, str(bleu)
