"""Options that several commands share, and how a model's name becomes its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from model.decoding.search import DEFAULT_MAX_NODES, STOPS
from model.errors import InvalidValue
from service.inference.versions import VersionStore
from service.settings import load_settings

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Name of a model, or the folder of a checkpoint.")]
CheckpointsOption = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of the models; else RECURRA_CHECKPOINTS.")
]
SearchOption = Annotated[str | None, typer.Option("--search", help="greedy, beam, sample or exact.")]
KOption = Annotated[int | None, typer.Option("--k", "-k", help="Beam width; 1 is greedy. Default 5.")]
LengthPenaltyOption = Annotated[
    float | None, typer.Option(help="Exponent of the length in the score.", show_default="1")
]
CoveragePenaltyOption = Annotated[
    float | None, typer.Option(help="Weight of the penalty for source tokens without attention.", show_default="0")
]
MaxLengthOption = Annotated[int | None, typer.Option(help="Most tokens of a translated sentence.")]
MinLengthOption = Annotated[int | None, typer.Option(help="Fewest tokens of a translated sentence.")]
NoRepeatNgramOption = Annotated[
    int | None, typer.Option(help="No n-gram of this many tokens occurs twice.", show_default="no such rule")
]
BannedOption = Annotated[
    list[str] | None, typer.Option("--banned", help="A word or phrase that may not occur; may be given several times.")
]
TemperatureOption = Annotated[float | None, typer.Option(help="Of sample: below 1 more cautious, above 1 bolder.")]
TopKOption = Annotated[int | None, typer.Option(help="Sample among this many most probable tokens.")]
TopPOption = Annotated[float | None, typer.Option(help="Sample among the fewest tokens that hold this probability.")]
SeedOption = Annotated[int | None, typer.Option(help="Of sample: the same seed gives the same translations.")]
StopWhenOption = Annotated[str | None, typer.Option(help="Of a beam: " + ", ".join(STOPS) + ".", show_default="likely")]
MaxNodesOption = Annotated[
    int | None, typer.Option(help=f"Nodes that exact may extend before it gives up. Default {DEFAULT_MAX_NODES:,}.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or int8.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given(**fields: Any) -> dict[str, Any]:
    """Those that the command line has: the defaults of all others, and which of them go together, is the search's."""
    return {name: value for name, value in fields.items() if value is not None}


def check_banned(texts: Sequence[str] | None) -> None:
    """What can be told of them without a vocabulary. Raises InvalidValue."""
    for text in texts or ():
        if not text.strip():
            raise InvalidValue("banned", text, "texts that are not blank")


def version_store(checkpoints: Path | None) -> VersionStore:
    """The models and their versions."""
    return VersionStore(checkpoints or load_settings().checkpoints_path)


def live_folders(checkpoints: Path | None) -> dict[str, Path]:
    """The folder of each model's live version, by name; models of which nothing is live are left out."""
    store = version_store(checkpoints)
    targets = {name: store.target(name) for name in store.names()}
    return {name: target.folder for name, target in targets.items() if target is not None}


def model_folder(model: str, checkpoints: Path | None) -> Path:
    """The folder of a model's live version: by its name, or the only or default one; or a checkpoint's own path.

    Raises:
        InvalidValue: there is none, or several and no name.
    """
    folders = live_folders(checkpoints)
    name = model or load_settings().default_model or ""
    if name in folders:
        return folders[name]
    if name and Path(name).is_dir():
        return Path(name)
    if not name and len(folders) == 1:
        return next(iter(folders.values()))
    where = checkpoints or load_settings().checkpoints_path
    raise InvalidValue("--model", name, f"one of the models in {where} ({', '.join(folders) or 'none'}), or a folder")
