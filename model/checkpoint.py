"""A trained model on disk: one folder, checked as a whole before anything in it is used.

    config.json           format version, languages, network, tokenizer, and the sha256 and size of every other file
    weights.safetensors   the parameters
    tokenizer.*           see model.data.tokenizer; two files where source and target have their own
    metrics.json          how it was trained, on what, its scores, its licence

Nothing here is ever unpickled. A folder that is damaged, foreign or of another version is refused with a
`CheckpointError` naming the file and the cause.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.config import ModelConfig, from_mapping
from model.data.tokenizer import Tokenizer, load_tokenizer
from model.errors import CheckpointError, DataError, InvalidValue
from model.files import sha256_of, write_atomically, write_json
from model.network.seq2seq import Seq2Seq

FORMAT = "recurra-checkpoint"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
METRICS_FILE = "metrics.json"


class _NoDraws(TorchFunctionMode):
    """Leaves out the drawing of first values: on the meta device it imports torch._dynamo, which takes a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_"):  # torch.nn.init's and Tensor's; orthogonal_ draws with the latter
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model as it stands on disk.

    Attributes:
        model: the network's shape.
        weights: parameters by name.
        src_tokenizer, tgt_tokenizer: the same object where the languages share one.
        src_lang, tgt_lang: language codes ("en", "fr").
        metrics: how it was trained, on what, and its scores.
        version: the first 12 digits of the weights' sha256; empty before it is saved.
    """

    model: ModelConfig
    weights: dict[str, Tensor]
    src_tokenizer: Tokenizer
    tgt_tokenizer: Tokenizer
    src_lang: str
    tgt_lang: str
    metrics: dict[str, Any]
    version: str = ""

    def build(self) -> Seq2Seq:
        """The network with these weights, in evaluation mode.

        They are put into place, not copied over first values: drawing those took 0.13 s, a third of a loading.
        """
        with torch.device("meta"), _NoDraws():
            network = Seq2Seq(self.model)
        tied = {id(tensor): nn.Parameter(tensor) for tensor in self.weights.values()}
        network.load_state_dict({name: tied[id(tensor)] for name, tensor in self.weights.items()}, assign=True)
        return network.eval()


def _tokenizer_names(shared: bool, tokenizer: Tokenizer, other: Tokenizer) -> list[tuple[str, Tokenizer]]:
    if shared:
        return [(tokenizer.file_name, tokenizer)]
    return [(f"source.{tokenizer.file_name}", tokenizer), (f"target.{other.file_name}", other)]


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path) -> Path:
    """Writes the folder file by file, `config.json` last, so that a folder cut short is seen to be none."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shared = checkpoint.src_tokenizer is checkpoint.tgt_tokenizer
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in _untied(checkpoint.weights).items()}
    write_atomically(folder / WEIGHTS_FILE, save_tensors(weights, metadata={"format": FORMAT}))
    write_json(folder / METRICS_FILE, checkpoint.metrics)
    tokenizers = _tokenizer_names(shared, checkpoint.src_tokenizer, checkpoint.tgt_tokenizer)
    for name, tokenizer in tokenizers:
        tokenizer.save(folder / name)
    names = [WEIGHTS_FILE, METRICS_FILE, *(name for name, _ in tokenizers)]
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "src_lang": checkpoint.src_lang,
        "tgt_lang": checkpoint.tgt_lang,
        "model": checkpoint.model.to_json(),
        "tokenizers": [name for name, _ in tokenizers],
        "files": {
            name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in names
        },
    }
    write_json(folder / CONFIG_FILE, config)
    return folder


def _untied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each shared tensor once: under the first of its names."""
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(folder, "there is no such folder")
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise CheckpointError(path, "is missing: this folder is no checkpoint, or its writing was cut short") from exc
    except OSError as exc:
        raise CheckpointError(path, f"cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(path, "is not JSON: truncated or altered") from exc
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(path, f"is no {FORMAT}: another program's file")
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            path, f"has format version {config.get('format_version')!r}; this program reads {FORMAT_VERSION}"
        )
    return config


def _check_files(folder: Path, config: dict[str, Any]) -> None:
    files = config.get("files")
    if not isinstance(files, dict) or WEIGHTS_FILE not in files:
        raise CheckpointError(folder / CONFIG_FILE, "lists no files")
    for name, expected in files.items():
        path = folder / name
        if Path(name).name != name or not isinstance(expected, dict):
            raise CheckpointError(folder / CONFIG_FILE, f"lists {name!r}, which is no plain file name")
        if not path.is_file():
            raise CheckpointError(path, "is missing")
        size = path.stat().st_size
        if size != expected.get("bytes"):
            raise CheckpointError(path, f"has {size} bytes instead of {expected.get('bytes')}: truncated or altered")
        if sha256_of(path) != expected.get("sha256"):
            raise CheckpointError(path, "does not have the sha256 that config.json lists: altered")


def _read_tokenizers(folder: Path, config: dict[str, Any]) -> tuple[Tokenizer, Tokenizer]:
    names = config.get("tokenizers")
    if not isinstance(names, list) or len(names) not in (1, 2) or not set(names) <= set(config["files"]):
        raise CheckpointError(folder / CONFIG_FILE, "lists no tokenizer")
    try:
        tokenizers = [load_tokenizer(folder / name) for name in names]
    except DataError as exc:
        raise CheckpointError(folder, str(exc)) from exc
    return tokenizers[0], tokenizers[-1]


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Reads and checks a whole folder.

    Raises:
        CheckpointError: a file is missing, truncated, altered, foreign or of another version.
    """
    folder = Path(folder)
    config = _read_config(folder)
    _check_files(folder, config)
    config_path = folder / CONFIG_FILE
    try:
        model = from_mapping(ModelConfig, config["model"])
        src_lang, tgt_lang = str(config["src_lang"]), str(config["tgt_lang"])
    except (KeyError, TypeError, InvalidValue) as exc:
        raise CheckpointError(config_path, f"does not describe a network of this version: {exc}") from exc
    src_tokenizer, tgt_tokenizer = _read_tokenizers(folder, config)
    if (src_tokenizer.vocab_size, tgt_tokenizer.vocab_size) != (model.src_vocab_size, model.tgt_vocab_size):
        raise CheckpointError(config_path, "its vocabulary sizes are not those of the tokenizer")
    weights_path = folder / WEIGHTS_FILE
    content = weights_path.read_bytes()
    try:
        weights = load_tensors(content)
    except SafetensorError as exc:
        raise CheckpointError(weights_path, f"is no safetensors file: {exc}") from exc
    try:
        metrics = json.loads((folder / METRICS_FILE).read_bytes())
    except ValueError as exc:
        raise CheckpointError(folder / METRICS_FILE, "is not JSON") from exc
    return Checkpoint(
        model=model,
        weights=_matched(weights, model, weights_path),
        src_tokenizer=src_tokenizer,
        tgt_tokenizer=tgt_tokenizer,
        src_lang=src_lang,
        tgt_lang=tgt_lang,
        metrics=metrics,
        version=hashlib.sha256(content).hexdigest()[:12],
    )


def _matched(weights: dict[str, Tensor], model: ModelConfig, path: Path) -> dict[str, Tensor]:
    """The weights under all their names, once they are seen to fit the network."""
    with torch.device("meta"), _NoDraws():
        wanted = Seq2Seq(model).state_dict(keep_vars=True)
    first_names: dict[int, str] = {}
    matched: dict[str, Tensor] = {}
    as_float: dict[str, Tensor] = {}  # one tensor for all names of a shared one
    for name, tensor in wanted.items():
        stored = first_names.setdefault(id(tensor), name)
        if stored not in weights:
            raise CheckpointError(path, f"lacks the tensor {stored}")
        if weights[stored].shape != tensor.shape:
            shapes = f"{list(weights[stored].shape)} instead of {list(tensor.shape)}"
            raise CheckpointError(path, f"has {stored} of shape {shapes}")
        matched[name] = as_float.setdefault(stored, weights[stored].float())
    if extra := sorted(set(weights) - set(first_names.values())):
        raise CheckpointError(path, f"has tensors that this network has no place for: {', '.join(extra[:3])}")
    return matched
