"""The bodies of requests and answers about models and their versions. Knows no HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from model.errors import InvalidValue
from service.inference.comparison import Comparison
from service.inference.pointer import Switch
from service.inference.versions import VersionInfo
from service.schemas import Body, OneOrMany, check_texts
from service.settings import Settings


class VersionAnswer(BaseModel):
    """A version of a model on disk."""

    version: str
    is_live: bool
    published_at: datetime
    num_bytes: int = Field(description="of its weights")
    lineage: dict[str, Any] | None = Field(None, description="dataset hash, configuration, seed, parent, job, scores")

    @classmethod
    def of(cls, info: VersionInfo, *, is_detailed: bool) -> VersionAnswer:
        return cls(
            version=info.version,
            is_live=info.is_live,
            published_at=_time(info.published_at),
            num_bytes=info.num_bytes,
            lineage=info.lineage if is_detailed else None,
        )


class SwitchAnswer(BaseModel):
    """A version went live."""

    version: str
    reason: str
    at: datetime

    @classmethod
    def of(cls, switch: Switch) -> SwitchAnswer:
        return cls(version=switch.version, reason=switch.reason, at=_time(switch.at))


class ModelAnswer(BaseModel):
    """A model that is served, or the reason why it is not."""

    name: str
    state: Literal["loading", "ready", "failed", "draining", "stopped", "unloaded", "not_live"] = Field(
        description="unloaded: on disk, loaded by the first request; not_live: none of its versions was promoted"
    )
    cause: str | None = Field(None, description="why it failed, or why this server does not follow the live version")
    version: str | None = Field(None, description="what this server answers with")
    source: str | None = None
    target: str | None = None
    device: str | None = None
    precision: str | None = None
    num_parameters: int | None = None
    live: str | None = Field(None, description="the live version on disk, which every server follows")
    versions: list[VersionAnswer] = Field([], description="all there are, the newest first")
    history: list[SwitchAnswer] | None = Field(None, description="what was live, the last switch first")
    network: dict[str, Any] | None = Field(None, description="cell, layers, sizes, attention")
    training: dict[str, Any] | None = Field(None, description="data, licence, settings, time and scores")

    @classmethod
    def of(cls, facts: dict[str, Any], versions: list[VersionInfo], history: list[Switch] | None) -> ModelAnswer:
        """In detail where the history is given."""
        is_detailed = history is not None
        known = {name: value for name, value in facts.items() if name in cls.model_fields}
        known["live"] = next((info.version for info in versions if info.is_live), None)
        known["versions"] = [VersionAnswer.of(info, is_detailed=is_detailed) for info in versions]
        if history is not None:
            known["history"] = [SwitchAnswer.of(switch) for switch in history]
        if is_detailed and "metadata" in facts:
            metadata = dict(facts["metadata"])
            known |= {"network": metadata.pop("model", None), "training": metadata}
        return cls.model_validate(known)


class ModelsAnswer(BaseModel):
    models: list[ModelAnswer]


class IfBetterBody(Body):
    """A test set on which the version has to beat the live one."""

    sources: list[str] = Field(description="sentences in the source language")
    references: list[OneOrMany] = Field(description="for each sentence its reference, or a list of them")
    k: int = Field(5, ge=1, description="beam width that both translate with")

    @property
    def reference_lists(self) -> list[list[str]]:
        return [[refs] if isinstance(refs, str) else refs for refs in self.references]

    def check(self, settings: Settings) -> None:
        """Raises InvalidValue or LimitExceeded."""
        if not self.sources:
            raise InvalidValue("if_better.sources", [], "a list of at least one string")
        if len(self.references) != len(self.sources):
            allowed = f"a list of {len(self.sources)}, one item for each of if_better.sources"
            raise InvalidValue("if_better.references", f"a list of {len(self.references)}", allowed)
        if self.k > settings.max_k:
            raise InvalidValue("if_better.k", self.k, f"a whole number up to {settings.max_k}")
        limit, setting = settings.max_score_pairs, "RECURRA_MAX_SCORE_PAIRS"
        check_texts("if_better.sources", self.sources, settings, max_texts=limit, setting=setting)
        for i, refs in enumerate(self.reference_lists):
            name = f"if_better.references[{i}]"
            if not refs:
                raise InvalidValue(name, refs, "a list of at least one string")
            check_texts(name, refs, settings, max_texts=settings.max_texts, setting="RECURRA_MAX_TEXTS")


class PromoteBody(Body):
    """Which version is to be live."""

    version: str = Field(max_length=64, description="one of the model's versions", examples=["3f9a1c20b7de"])
    reason: str = Field("promoted over HTTP", max_length=200, description="for the model's history")
    if_better: IfBetterBody | None = Field(
        None, description="promote only where its BLEU is higher than the live version's with p < 0.05"
    )


class ComparisonAnswer(BaseModel):
    """The live version and the candidate on one test set, by paired bootstrap resampling."""

    bleu_live: float
    bleu_candidate: float
    p_value: float = Field(description="how likely a difference at least this large is chance")
    num_sentences: int
    signature: str
    is_better: bool

    @classmethod
    def of(cls, comparison: Comparison) -> ComparisonAnswer:
        return cls.model_validate(comparison.to_json())


class SwitchedAnswer(BaseModel):
    """Which version is live now."""

    model: str
    version: str
    is_promoted: bool = Field(description="false where if_better asked for more than the version could show")
    comparison: ComparisonAnswer | None = None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
