"""`recurra models average`: the mean of several versions' weights as a new version.

Checkpoints of one training run, or of runs that began with the same weights, lie close together, and their mean is
often better than each of them (Polyak and Juditsky 1992; Izmailov et al. 2018). Strangers' mean is no model at all:
what came out is only published, and has to win a comparison before it goes live.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import InvalidValue
from service.commands import options

if TYPE_CHECKING:
    from torch import Tensor

    from model.checkpoint import Checkpoint


def average(
    model: Annotated[str, typer.Argument(help="Name of a model.")],
    versions: Annotated[list[str], typer.Argument(help="Two or more of its versions, of one shape and tokenizer.")],
    checkpoints: options.CheckpointsOption = None,
) -> None:
    """Save the mean of several versions' weights as a new version, and print it. It does not go live."""
    from dataclasses import replace

    from model.checkpoint import load_checkpoint, save_checkpoint

    if len(set(versions)) < 2:
        raise InvalidValue("versions", versions, "two or more different versions")
    store = options.version_store(checkpoints)
    loaded = [load_checkpoint(store.folder(model, version)) for version in dict.fromkeys(versions)]
    _check_alike(loaded)
    with tempfile.TemporaryDirectory() as name:
        mean = replace(loaded[0], weights=_mean(loaded), metrics=_metrics(loaded), version="")
        save_checkpoint(mean, name)
        lineage = {"kind": "average", "parents": [checkpoint.version for checkpoint in loaded]}
        typer.echo(store.publish(model, Path(name), lineage=lineage))


def _check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raises InvalidValue, naming the version that differs from the first."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.model != first.model:
            raise InvalidValue("versions", other.version, f"a version with the network of {first.version}")
        if _tokenizers(other) != _tokenizers(first):
            raise InvalidValue("versions", other.version, f"a version with the tokenizer of {first.version}")


def _tokenizers(checkpoint: Checkpoint) -> list[bytes]:
    """Their files' contents."""
    contents: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        for tokenizer in (checkpoint.src_tokenizer, checkpoint.tgt_tokenizer):
            path = Path(folder) / tokenizer.file_name
            tokenizer.save(path)
            contents.append(path.read_bytes())
    return contents


def _mean(checkpoints: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """Name by name; a tensor that has several names stays one."""
    import torch

    first = checkpoints[0].weights
    means: dict[int, Tensor] = {}
    for name, tensor in first.items():
        if tensor.data_ptr() not in means:
            means[tensor.data_ptr()] = torch.stack([c.weights[name].double() for c in checkpoints]).mean(dim=0).float()
    return {name: means[tensor.data_ptr()] for name, tensor in first.items()}


def _metrics(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """What still holds of the mean: not the scores of one of its parts."""
    kept = ("preset", "licence", "num_parameters", "data", "data_sha256", "tokenizer")
    facts = {name: value for name, value in checkpoints[0].metrics.items() if name in kept}
    return {**facts, "average_of": [checkpoint.version for checkpoint in checkpoints]}
