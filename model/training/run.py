"""The folder of a training run: what lies in it, and how it is written so that a kill at any moment harms nothing.

    run.json                 the options, languages, hashes of the data, precision, threads and processes: what a
                             resume must find unchanged
    tokenizer.*              learnt once (source.tokenizer.* and target.tokenizer.* where there are two)
    state.safetensors        weights, optimizer and position after the last checkpoint, in one file: they must never be
                             of two moments
    step-NNNNNNN.safetensors the weights of the best evaluations, to be averaged
    log.jsonl                a line an evaluation
    .lock                    held by the process that writes here

The order of writing is what makes a kill harmless: run.json comes first; the weights of an evaluation are there before
the state that counts it, and go after the state that no longer does; the log is written from the state.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from model.data.corpus import Example, Pair
from model.data.tokenizer import Tokenizer, load_tokenizer
from model.errors import TrainingError
from model.files import write_atomically, write_json

FORMAT_VERSION = 2
# Options that say when to stop or speak and leave every weight as it is: a resume may bring others.
_FREE_OPTIONS = {"checkpoint_minutes", "log_every_seconds", "max_minutes"}
_OPTIONAL_ON_RESUME = "parent"


def data_hash(pairs: Sequence[Pair]) -> str:
    """sha256 over the pairs in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.src}\t{pair.tgt}\n".encode())
    return digest.hexdigest()


def examples_hash(examples: Sequence[Example]) -> str:
    """sha256 over sentences and references in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.src, *example.refs], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


class RunFolder:
    """Reads and writes a run's files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").exists() or self.has_state

    @property
    def has_state(self) -> bool:
        return (self.path / "state.safetensors").exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out; the lock goes with the process, however it ends.

        Raises:
            TrainingError: another process is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise TrainingError(f"{self.path}: another process trains here; wait until it ends") from exc
            yield

    def remove_unfinished_files(self) -> None:
        """What a killed process was writing; for whoever holds the lock."""
        for path in self.path.glob(".*.*"):
            if path.is_file():
                path.unlink(missing_ok=True)

    # -- run.json --------------------------------------------------------------------------------------------------

    def begin(self, values: Mapping[str, Any]) -> None:
        """Writes run.json.

        Raises:
            TrainingError: a run is in the way.
        """
        if self.exists:
            raise TrainingError(f"{self.path} holds a run already: resume it, or choose another folder")
        write_json(self.path / "run.json", values)

    def found(self) -> dict[str, Any]:
        """What run.json says. Raises TrainingError where there is none."""
        try:
            values = json.loads((self.path / "run.json").read_bytes())
        except (OSError, ValueError) as exc:
            raise TrainingError(f"{self.path} holds no run to resume") from exc
        if not isinstance(values, dict):
            raise TrainingError(f"{self.path} holds no run to resume: run.json is no object")
        return values

    def check_same(self, wanted: Mapping[str, Any]) -> None:
        """Raises TrainingError where the run that lies here is another one, naming what differs."""
        found = self.found()
        for key, value in wanted.items():
            here = found.get(key)
            if key == _OPTIONAL_ON_RESUME and value is None and self.has_state:
                continue
            if key == "training" and isinstance(here, dict):
                here = {**here, **{name: value[name] for name in _FREE_OPTIONS}}
                changed = sorted(name for name in value if here.get(name) != value[name])
                if changed:
                    raise TrainingError(f"{self.path} holds another run: its training option {changed[0]} differs")
            elif key == "num_processes" and here != value:
                raise TrainingError(
                    f"{self.path} holds a run of {here} processes, and this is {value}: resume it with nproc = {here}"
                )
            elif here != value:
                raise TrainingError(f"{self.path} holds another run: its {key} is not the same")

    # -- tokenizers ------------------------------------------------------------------------------------------------

    def tokenizer(self, prefix: str) -> Tokenizer | None:
        """The tokenizer that lies here, if one does."""
        for path in sorted(self.path.glob(f"{prefix}tokenizer.*")):
            return load_tokenizer(path)
        return None

    def save_tokenizer(self, prefix: str, tokenizer: Tokenizer) -> None:
        tokenizer.save(self.path / (prefix + tokenizer.file_name))

    # -- state -----------------------------------------------------------------------------------------------------

    def save_state(self, tensors: dict[str, Tensor], values: Mapping[str, Any]) -> None:
        write_atomically(self.path / "state.safetensors", save(tensors, metadata={"state": json.dumps(values)}))

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and values of `save_state`. Raises TrainingError where the file is damaged."""
        path = self.path / "state.safetensors"
        try:
            with safe_open(path, framework="pt") as stream:
                values = json.loads(stream.metadata()["state"])
            return load_file(path), values
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as exc:
            raise TrainingError(f"{path} is damaged ({exc}): delete it to begin the run again") from exc

    # -- evaluations -----------------------------------------------------------------------------------------------

    def _weights_path(self, step: int) -> Path:
        return self.path / f"step-{step:07d}.safetensors"

    def save_weights(self, step: int, weights: dict[str, Tensor]) -> None:
        write_atomically(self._weights_path(step), save(weights))

    def load_weights(self, step: int) -> dict[str, Tensor]:
        try:
            return load_file(self._weights_path(step))
        except (OSError, SafetensorError) as exc:
            raise TrainingError(f"{self._weights_path(step)} is missing or damaged") from exc

    def keep_weights(self, steps: Sequence[int]) -> None:
        """Deletes the weights of all other evaluations."""
        kept = {self._weights_path(step) for step in steps}
        for path in self.path.glob("step-*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def write_log(self, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """log.jsonl anew: what was logged after the last checkpoint of a killed process would stand there twice."""
        write_atomically(self.path / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in evaluations).encode())
