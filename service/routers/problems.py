"""The problems that a route may answer with, for its OpenAPI page."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from service.schemas import ProblemAnswer

_EXAMPLES: dict[int, dict[str, Any]] = {
    400: {"title": "The body is not valid JSON", "code": "invalid_json", "detail": "Expecting value at character 9"},
    404: {
        "title": "There is no such model",
        "code": "unknown_model",
        "detail": "there is no model 'en-xx'; there is en-fr",
        "errors": [{"field": "model", "value": "'en-xx'", "allowed": "one of en-fr"}],
    },
    409: {
        "title": "The name is taken by another dataset",
        "code": "dataset_exists",
        "detail": "there is a dataset 'tatoeba' with other content (1,200 pairs en-fr)",
        "errors": [{"field": "name", "value": "'tatoeba'", "allowed": "a name that is free"}],
    },
    413: {
        "title": "The request is larger than a limit",
        "code": "limit_exceeded",
        "detail": "text has 1,001 texts; allowed is at most 1,000 (RECURRA_MAX_TEXTS)",
        "errors": [{"field": "text", "value": "1001", "allowed": "at most 1,000 texts (RECURRA_MAX_TEXTS)"}],
    },
    415: {
        "title": "The body's type is not supported",
        "code": "unsupported_media_type",
        "detail": "Content-Type is 'text/plain'; allowed is application/json",
    },
    422: {
        "title": "A field of the request is wrong",
        "code": "invalid_request",
        "detail": "k is 0, allowed is at least 1",
        "errors": [{"field": "k", "value": "0", "allowed": "at least 1"}],
    },
    500: {
        "title": "Decoding failed",
        "code": "engine_failure",
        "detail": "The request could not be answered. The log of the server has the cause under this request id.",
    },
    507: {
        "title": "There is no room on the disk",
        "code": "disk_full",
        "detail": "there is no room left on the disk of the datasets; nothing was stored",
    },
    504: {
        "title": "There was no time for a translation",
        "code": "deadline_passed",
        "detail": "the deadline passed before the first token",
    },
    503: {
        "title": "Too many sentences are waiting",
        "code": "queue_full",
        "detail": "10,000 sentences are waiting; allowed is at most 10,000 (RECURRA_MAX_QUEUED_SEGMENTS)",
    },
}


def _schema() -> dict[str, Any]:
    """With its parts inside: a schema given by hand cannot refer to one that the page's own list does not have."""
    schema = ProblemAnswer.model_json_schema()
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["FaultAnswer"]
    return schema


def problems(
    *statuses: int, examples: Mapping[int, dict[str, Any]] = MappingProxyType({})
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer with these statuses; `examples` are the route's own."""
    shown = {**_EXAMPLES, **examples}
    return {
        status: {
            "description": shown[status]["title"],
            "content": {
                "application/problem+json": {
                    "schema": _schema(),
                    "example": {"status": status, "request_id": "5f0c2d", **shown[status]},
                }
            },
        }
        for status in statuses
    }
