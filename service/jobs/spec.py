"""What a job is asked to do: checked once, when it is submitted, and never changed after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from model.config import Preset, preset

Promote = Literal["never", "if_better", "always"]
FORMAT_VERSION = 1
MIN_PAIRS = 10
_HELD_OUT_SENTENCES = 1000  # of dev and of test each, where the caller says nothing: BLEU is steady to about a point


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """A dataset as it was when the job was submitted."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Where dev or test sentences come from: a share of the training data, or datasets of their own."""

    share: float = 0.0
    datasets: tuple[DataPart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One training job.

    Attributes:
        model: name of the model that gets a new version.
        datasets: what is trained on, in this order.
        src_lang, tgt_lang: the model's direction; a dataset of the other direction is turned round.
        preset, options: architecture, and every option that differs from it.
        start_from: "model@version" whose weights, shape and tokenizer the run begins with.
        num_threads: of one matrix product; kept here, since another number would give other weights.
        num_processes: that train together, for the same reason.
    """

    model: str
    datasets: tuple[DataPart, ...]
    src_lang: str
    tgt_lang: str
    preset: str
    options: Mapping[str, Any]
    dev: HeldOut
    test: HeldOut
    start_from: str | None
    promote: Promote
    num_threads: int
    num_processes: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JobSpec:
        fields = {name: value for name, value in values.items() if name != "format_version"}
        for name in ("dev", "test"):
            held_out = fields[name]
            fields[name] = HeldOut(share=held_out["share"], datasets=_parts(held_out["datasets"]))
        return cls(**{**fields, "datasets": _parts(fields["datasets"])})

    def full_preset(self) -> Preset:
        """The preset with this job's options. Raises InvalidValue."""
        return preset(self.preset).with_options(self.options)


def default_share(num_pairs: int) -> float:
    """About a thousand sentences, or a tenth of a small dataset."""
    return min(0.1, _HELD_OUT_SENTENCES / num_pairs)


def _parts(values: Any) -> tuple[DataPart, ...]:
    return tuple(DataPart(name=value["name"], sha256=value["sha256"]) for value in values)
