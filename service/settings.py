"""Every setting of the service, read from the environment (`RECURRA_*`); knows nothing of what is done with them.

Each field's description is what the README prints. A wrong value raises `SettingsError` with one line for each mistake
that names the variable, the value given and what is allowed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.decoding.search import MAX_K, MAX_LENGTH
from model.errors import RecurraError

ENV_PREFIX = "RECURRA_"


class SettingsError(RecurraError):
    """One or more settings have a value that is not allowed; one line a setting."""


class Settings(BaseSettings):
    """The whole configuration of one process; immutable once read."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")

    checkpoints: Path | None = Field(
        None,
        description="folder with one folder a model; default ./checkpoints, else the folder of the installed project",
    )
    data: Path | None = Field(
        None, description="folder of datasets, training jobs and downloads; default ./data, made when it is needed"
    )
    default_model: str | None = Field(
        None, description="model of a request that names none; needed only where several models fit"
    )
    models_poll_seconds: float = Field(
        5.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="time between two looks for models and live versions that others changed on disk; 0 for never",
    )
    model_memory_bytes: int = Field(
        0, ge=0, description="memory for loaded models, the rest on demand; 0 loads all of them at the start"
    )
    model_wait_seconds: float = Field(
        30.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="time that a request waits for its model to be loaded on demand",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where models run; auto takes CUDA if there is one"
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto", description="number format of the weights in use; auto measures on this machine"
    )
    num_threads: int | None = Field(None, ge=1, le=1024, description="threads of one matrix product; default all cores")
    processes: int = Field(1, ge=1, le=64, description="processes behind the port, which share the cores")

    default_k: int = Field(5, ge=1, description="beam width of a request that names neither search nor k")
    max_k: int = Field(64, ge=1, le=MAX_K, description="largest beam width a request may ask for")
    max_nodes: int = Field(100_000, ge=1, description="largest max_nodes a request for an exact search may ask for")
    max_texts: int = Field(1000, ge=1, description="most texts in one request")
    max_text_chars: int = Field(20_000, ge=1, description="most characters in one text")
    max_body_bytes: int = Field(8_000_000, ge=1024, description="largest request body, in bytes")
    max_dataset_bytes: int = Field(4_000_000_000, ge=1024, description="largest POST /datasets, in bytes as it is sent")
    max_dataset_unpacked_bytes: int = Field(
        16_000_000_000, ge=1024, description="most bytes that the gzip files of one POST /datasets may unpack to"
    )
    max_uploads: int = Field(2, ge=1, le=100, description="POST /datasets that are worked on at once; more get a 503")
    max_target_tokens: int = Field(
        1000, ge=1, le=MAX_LENGTH, description="largest max_length and min_length a request may ask for"
    )
    max_score_pairs: int = Field(10_000, ge=1, description="most sentences in one POST /score")

    max_score_seconds: float = Field(
        60.0,
        ge=0.1,
        le=3600,
        allow_inf_nan=False,
        description="time that one POST /score may take to compute its scores",
    )
    max_compare_seconds: float = Field(
        600.0,
        ge=0.1,
        le=86_400,
        allow_inf_nan=False,
        description="time that the comparison of two versions of a model may take",
    )

    max_rows: int = Field(320, ge=1, description="live hypotheses of all requests together in one decode step")
    max_queued_segments: int = Field(
        10_000, ge=1, description="sentences that may wait for a place; past it requests are refused with 503"
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=3600, allow_inf_nan=False, description="time that live requests get to finish at shutdown"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe event that is logged"
    )
    log_format: Literal["text", "json"] = Field("text", description="a log line as key=value text or as a JSON object")

    jobs_database: str | None = Field(
        None,
        pattern=r"^(sqlite:///|postgresql(\+psycopg)?://).+",
        description="where jobs are kept: postgresql://… for several machines; default a SQLite file in RECURRA_DATA",
    )
    replica: str = Field(
        "local",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="name of this process among those that share RECURRA_DATA; each needs its own",
    )
    jobs_concurrency: int = Field(1, ge=1, le=64, description="jobs that train at the same time on one replica")
    training_threads: int = Field(1, ge=1, le=1024, description="threads of a training job's matrix products")
    training_processes: int = Field(
        1, ge=1, le=64, description="processes (or GPUs) that train one job together, under torchrun"
    )
    training_nice: int = Field(19, ge=0, le=19, description="how far a training process stands back for all others")
    training_scheduler: Literal["other", "batch", "idle"] = Field(
        "idle", description="Linux's class of a training process; idle runs it only where no other wants the core"
    )
    jobs_keep: int = Field(100, ge=0, description="ended jobs that are kept; older ones are deleted")
    jobs_keep_days: float = Field(
        90.0, gt=0, le=36500, allow_inf_nan=False, description="days that an ended job is kept"
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.default_k > self.max_k:
            raise ValueError(
                f"{ENV_PREFIX}DEFAULT_K is {self.default_k}; allowed is at most {ENV_PREFIX}MAX_K = {self.max_k}"
            )
        if self.max_k > self.max_rows:
            raise ValueError(
                f"{ENV_PREFIX}MAX_ROWS is {self.max_rows}; allowed is at least {ENV_PREFIX}MAX_K = {self.max_k}"
            )
        return self

    @property
    def checkpoints_path(self) -> Path:
        """The folder given, else ./checkpoints, else the one beside the installed packages."""
        if self.checkpoints is not None:
            return self.checkpoints
        here = Path("checkpoints")
        return here if here.is_dir() else Path(__file__).resolve().parent.parent / "checkpoints"

    @property
    def data_path(self) -> Path:
        return self.data if self.data is not None else Path("data")

    @property
    def datasets_path(self) -> Path:
        return self.data_path / "datasets"

    @property
    def jobs_url(self) -> str:
        """Of the database of jobs; paths in it are absolute, since a trainer may have another working directory."""
        if self.jobs_database is not None:
            return self.jobs_database
        return f"sqlite:///{self.data_path.resolve() / 'jobs.sqlite'}"


def load_settings(**overrides: Any) -> Settings:
    """Reads the environment; `overrides` (command-line options) win over it. Raises SettingsError."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as exc:
        raise SettingsError("\n".join(_line(error) for error in exc.errors())) from exc


def unknown_variables() -> list[str]:
    """Names in the environment that look like settings but are none: most likely misspelt."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)


def _line(error: Any) -> str:
    if not error["loc"]:  # from _check_sizes, which words its own message
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0])
    return f"{ENV_PREFIX}{name.upper()} is {error['input']!r}; allowed is {_allowed(error)}"


def _allowed(error: Any) -> str:
    field = Settings.model_fields[str(error["loc"][0])]
    bounds = field.metadata
    low = next((bound.ge for bound in bounds if hasattr(bound, "ge")), None)
    high = next((bound.le for bound in bounds if hasattr(bound, "le")), None)
    kind = "a number" if field.annotation is float else "a whole number"
    if low is not None:
        return f"{kind} from {low} to {high}" if high is not None else f"{kind} of at least {low}"
    return str(error.get("ctx", {}).get("expected") or error["msg"])
