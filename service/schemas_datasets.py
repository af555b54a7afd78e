"""The bodies of the answers about datasets, and the form of an upload for the /docs page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.datasets.store import Dataset


class LanguageGuess(BaseModel):
    """What a side looks like."""

    language: str | None = Field(description="a language code; null where nothing could be guessed")
    share: float = Field(description="share of a sample that looks like it")


class SideAnswer(BaseModel):
    """One side of the kept pairs. Tokens are lower-case words, with , . ! ? as tokens of their own."""

    name: str = Field(description="the language")
    num_tokens: int
    num_types: int = Field(description="different tokens")
    num_once: int = Field(description="tokens that occur once")
    mean_length: float = Field(description="in tokens, as all lengths")
    median_length: int
    p95_length: int
    p99_length: int
    max_length: int
    length_counts: list[tuple[int, int]] = Field(description="[length, sentences]")
    rank_frequencies: list[tuple[int, int]] = Field(description="[rank, frequency], some ranks of each decade")
    top_tokens: list[tuple[str, int]] = Field(description="[token, frequency] of the most frequent")


class StatisticsAnswer(BaseModel):
    """Length and frequency histograms."""

    num_pairs: int
    src: SideAnswer
    tgt: SideAnswer


class ReportAnswer(BaseModel):
    """What was found in the upload and what became of it."""

    format: Literal["tsv", "tmx", "aligned"]
    num_read: int
    num_kept: int
    dropped: dict[str, int] = Field(description="pairs by the cause for which they were dropped")
    examples: dict[str, list[tuple[str, str]]] = Field(description="the first few pairs of each cause, shortened")
    rules: dict[str, float] = Field(description="what a pair may be at most")
    languages: dict[str, LanguageGuess] = Field(description="a guess for source and target")
    warnings: list[str]
    statistics: StatisticsAnswer


class DatasetSummary(BaseModel):
    name: str
    source: str
    target: str
    num_pairs: int
    num_bytes: int = Field(description="of the cleaned pairs, source TAB target a line")
    sha256: str = Field(description="of the cleaned pairs: the same for the same pairs, however they were sent")
    created_at: float = Field(description="in Unix seconds")

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetSummary:
        return cls(
            name=dataset.name,
            source=dataset.src_lang,
            target=dataset.tgt_lang,
            num_pairs=dataset.num_pairs,
            num_bytes=dataset.num_bytes,
            sha256=dataset.sha256,
            created_at=dataset.created_at,
        )


def _example_side(name: str, lengths: list[list[int]], tokens: list[tuple[str, int]]) -> dict[str, Any]:
    return {
        "name": name,
        "num_tokens": 6,
        "num_types": 5,
        "num_once": 4,
        "mean_length": 3.0,
        "median_length": 2,
        "p95_length": 4,
        "p99_length": 4,
        "max_length": 4,
        "length_counts": lengths,
        "rank_frequencies": [[1, 2], [2, 1], [5, 1]],
        "top_tokens": tokens,
    }


EXAMPLE: dict[str, Any] = {
    "name": "small",
    "source": "en",
    "target": "fr",
    "num_pairs": 2,
    "num_bytes": 34,
    "sha256": "9ba2be65002bfb306179a1e236519c4a47c2a074b760b8a1258cfe6aa363d30e",
    "created_at": 1795603150.01,
    "same_content_as": [],
    "report": {
        "format": "tsv",
        "num_read": 5,
        "num_kept": 2,
        "dropped": {"empty": 1, "too_long": 0, "ratio": 1, "duplicate": 1},
        "examples": {
            "empty": [["", ""]],
            "too_long": [],
            "ratio": [["x", "a b c d e"]],
            "duplicate": [["Go.", "Va !"]],
        },
        "rules": {"max_words": 100, "max_ratio": 4},
        "languages": {"source": {"language": "en", "share": 1.0}, "target": {"language": "fr", "share": 1.0}},
        "warnings": [],
        "statistics": {
            "num_pairs": 2,
            "src": _example_side("en", [[2, 1], [4, 1]], [(".", 2), ("am", 1)]),
            "tgt": _example_side("fr", [[2, 1], [3, 1]], [("!", 1), (".", 1)]),
        },
    },
}


class DatasetAnswer(DatasetSummary):
    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    same_content_as: list[str] = Field(description="other names of the same pairs, which lie on the disk once")
    report: ReportAnswer

    @classmethod
    def with_report(cls, dataset: Dataset, same_content_as: Sequence[str]) -> DatasetAnswer:
        summary = DatasetSummary.of(dataset).model_dump()
        return cls.model_validate(summary | {"same_content_as": list(same_content_as), "report": dataset.report})


class DatasetsAnswer(BaseModel):
    datasets: list[DatasetSummary]


def _file(description: str) -> dict[str, Any]:
    return {"type": "string", "format": "binary", "description": f"{description}; plain or gzip"}


FORM: dict[str, Any] = {
    "type": "object",
    "required": ["name", "source", "target"],
    "properties": {
        "name": {
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$",
            "description": "what the dataset is to be called",
            "example": "tatoeba-en-fr",
        },
        "source": {"type": "string", "description": "source language code", "example": "en"},
        "target": {"type": "string", "description": "target language code", "example": "fr"},
        "max_words": {
            "type": "integer",
            "minimum": 1,
            "default": 100,
            "description": "pairs with more words on a side are dropped; to be sent before the files",
        },
        "max_ratio": {
            "type": "number",
            "minimum": 1,
            "default": 4,
            "description": "pairs with so many times more words on one side are dropped; raise it for languages "
            "without spaces; to be sent before the files",
        },
        "pairs": _file("source TAB target a line, or TMX"),
        "source_file": _file("instead of pairs, with target_file: a source a line"),
        "target_file": _file("line n is the translation of line n of source_file"),
    },
}
