"""Errors of the service and the one table that turns any exception into an RFC 9457 problem.

    RecurraError                 (model.errors)
    ├── InvalidValue             422 a parameter has a value that is not allowed
    ├── LimitExceeded            413 more than a setting allows, which is named
    ├── UnknownModel             404
    ├── UnknownVersion           404 the model has no such version
    ├── VersionConflict          409 the model's versions are in another state
    │   ├── VersionIsLive        it cannot be deleted
    │   ├── VersionRefused       it does not load; the one that is live stays so
    │   └── NoPreviousVersion    there is nothing to roll back to
    ├── CannotStore              507 a folder of models is full, or not ours to write to
    ├── UnknownJob               404
    ├── JobConflict              409 the job is in another state
    ├── CannotListen             the address or port is taken, or none of ours: the command line ends
    ├── Unavailable              503 + Retry-After; nothing was started
    │   ├── NoModel              no checkpoint at all, or none that could be loaded
    │   ├── ModelLoading         not warmed up yet
    │   ├── FirstProcessAway     of several processes, the one that keeps models and jobs
    │   ├── ModelFailed          its checkpoint was refused
    │   ├── NotReady             what /health/ready says until all is well
    │   ├── QueueFull            more sentences wait than the setting allows
    │   ├── TooManyUploads       more datasets arrive than the setting allows
    │   ├── JobsUnavailable      their database cannot be used, or another process has this replica's name
    │   └── Draining             the server is shutting down
    ├── DeadlinePassed           504 before the first token
    ├── EngineFailure            500 a decode step failed; the engine goes on
    └── DatasetError             see service.datasets.errors
    BodyTooLarge                 413 raised while the body is being read
    ClientGone                   the caller hung up: there is nobody to answer

Code raises the situation; only this module knows statuses.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from model.errors import InvalidValue, RecurraError
from service.datasets import errors as dataset_errors
from service.logs import request_id_var

_MAX_SHOWN_CHARS = 80
_MAX_SHOWN_ERRORS = 20


class LimitExceeded(RecurraError):
    """More than a setting allows; `setting` is the environment variable to raise."""

    def __init__(self, field_name: str, value: int, limit: int, unit: str, setting: str) -> None:
        super().__init__(f"{field_name} has {value:,} {unit}; allowed is at most {limit:,} ({setting})")
        self.field = field_name
        self.value = value
        self.allowed = f"at most {limit:,} {unit} ({setting})"


class BodyTooLarge(HTTPException):
    """The body passed its limit while it was being read.

    An HTTPException only because FastAPI turns every other error of a body's reader into a nameless 400.
    """

    def __init__(self, limit: int, setting: str = "RECURRA_MAX_BODY_BYTES") -> None:
        super().__init__(413, f"the body is larger than {limit:,} bytes ({setting})")


class UnknownModel(RecurraError):
    def __init__(self, name: str, known: list[str]) -> None:
        self.field, self.value = "model", name
        self.allowed = "one of " + ", ".join(known) if known else "nothing: no model is loaded"
        super().__init__(f"there is no model {shown(name)}; there is {', '.join(known) or 'none'}")


class UnknownVersion(RecurraError):
    def __init__(self, model: str, version: str, known: list[str]) -> None:
        self.field, self.value = "version", version
        self.allowed = "one of " + ", ".join(known) if known else "nothing: the model has no versions"
        super().__init__(f"{model} has no version {shown(version)}; it has {', '.join(known) or 'none'}")


class VersionConflict(RecurraError):
    """The model's versions are in another state than the request takes for granted."""


class VersionIsLive(VersionConflict):
    def __init__(self, model: str, version: str) -> None:
        super().__init__(f"{version} is the live version of {model}; promote another one, or roll back, first")


class VersionRefused(VersionConflict):
    def __init__(self, model: str, version: str, cause: str) -> None:
        super().__init__(f"the version {version} of {model} does not load: {cause}")


class NoPreviousVersion(VersionConflict):
    def __init__(self, model: str) -> None:
        super().__init__(f"no other version of {model} was live before that is still there; there is no way back")


class CannotStore(RecurraError):
    """The disk is full, or the folder is not ours to write to."""


class UnknownJob(RecurraError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {shown(job_id)}; GET /train lists those there are")


class JobConflict(RecurraError):
    """What was asked for does not fit the job's state."""


class CannotListen(RecurraError):
    pass


class Unavailable(RecurraError):
    """Refused at once, nothing was started; worth trying again after `retry_after_seconds`."""

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NoModel(Unavailable):
    pass


class ModelLoading(Unavailable):
    pass


class ModelFailed(Unavailable):
    pass


class FirstProcessAway(Unavailable):
    pass


class NotReady(Unavailable):
    def __init__(self, reason: str, models: Mapping[str, str]) -> None:
        super().__init__(reason)
        self.extra = {"models": dict(models)}


class QueueFull(Unavailable):
    pass


class TooManyUploads(Unavailable):
    pass


class Draining(Unavailable):
    pass


class JobsUnavailable(Unavailable):
    pass


class DeadlinePassed(RecurraError):
    """Time was up before there was anything to answer with."""


class EngineFailure(RecurraError):
    """A step over all live requests failed."""


class ClientGone(Exception):
    """The caller hung up before the answer was ready."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """RFC 9457 problem details, plus a stable `code` and the fields at fault."""

    status: int
    code: str
    title: str
    detail: str
    errors: list[dict[str, Any]] = field(default_factory=list)
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        body: dict[str, Any] = {"title": self.title, "status": self.status, "detail": self.detail, "code": self.code}
        body["request_id"] = request_id_var.get()
        if self.errors:
            body["errors"] = self.errors
        body |= self.extra
        return JSONResponse(body, self.status, headers=dict(self.headers), media_type="application/problem+json")


# The one table: exception → status, code, title. A subclass without a line of its own takes its parent's.
PROBLEMS: dict[type[Exception], tuple[int, str, str]] = {
    RequestValidationError: (422, "invalid_request", "A field of the request is wrong"),
    InvalidValue: (422, "invalid_request", "A field of the request is wrong"),
    LimitExceeded: (413, "limit_exceeded", "The request is larger than a limit"),
    BodyTooLarge: (413, "body_too_large", "The body is larger than the limit"),
    UnknownModel: (404, "unknown_model", "There is no such model"),
    dataset_errors.UnknownDataset: (404, "unknown_dataset", "There is no such dataset"),
    dataset_errors.DatasetExists: (409, "dataset_exists", "The name is taken by another dataset"),
    dataset_errors.UnusableData: (422, "unusable_data", "A file of the upload cannot be used"),
    dataset_errors.UploadTooLarge: (413, "limit_exceeded", "The request is larger than a limit"),
    dataset_errors.BrokenForm: (400, "invalid_body", "The body cannot be read"),
    dataset_errors.UnsupportedForm: (415, "unsupported_media_type", "The body's type is not supported"),
    dataset_errors.DiskFull: (507, "disk_full", "There is no room on the disk"),
    UnknownVersion: (404, "unknown_version", "There is no such version of the model"),
    VersionConflict: (409, "version_conflict", "The model's versions are in another state"),
    VersionIsLive: (409, "version_live", "The version is live"),
    VersionRefused: (409, "version_refused", "The version does not load"),
    NoPreviousVersion: (409, "no_previous_version", "There is no version to roll back to"),
    CannotStore: (507, "cannot_store", "The folder of the models cannot be written"),
    UnknownJob: (404, "unknown_job", "There is no such job"),
    JobConflict: (409, "job_conflict", "The job is in another state"),
    JobsUnavailable: (503, "jobs_unavailable", "Training jobs cannot be used"),
    NoModel: (503, "no_model", "No model is ready"),
    FirstProcessAway: (503, "starting", "The process that does this is being started"),
    ModelLoading: (503, "model_loading", "The model is being loaded"),
    ModelFailed: (503, "model_failed", "The model could not be loaded"),
    NotReady: (503, "not_ready", "The server is not ready"),
    QueueFull: (503, "queue_full", "Too many sentences are waiting"),
    TooManyUploads: (503, "too_many_uploads", "Too many datasets are arriving"),
    Draining: (503, "draining", "The server is shutting down"),
    DeadlinePassed: (504, "deadline_passed", "There was no time for a translation"),
    EngineFailure: (500, "engine_failure", "Decoding failed"),
    Exception: (500, "internal_error", "Something went wrong on the server"),
}

# Statuses that the framework itself raises.
HTTP_CODES: dict[int, tuple[str, str]] = {
    400: ("invalid_body", "The body cannot be read"),
    404: ("not_found", "There is nothing at this path"),
    405: ("method_not_allowed", "This path does not take this method"),
}


def problem_of(exc: Exception, request: Request) -> Problem:
    """The problem to answer with. Internal errors are hidden: their message may hold texts or paths."""
    if isinstance(exc, RequestValidationError):
        return _validation_problem(exc, request)
    if isinstance(exc, HTTPException) and not isinstance(exc, BodyTooLarge):
        return _http_problem(exc, request)
    status, code, title = next(PROBLEMS[cls] for cls in type(exc).__mro__ if cls in PROBLEMS)
    if status == 500:
        detail = "The request could not be answered. The log of the server has the cause under this request id."
        return Problem(status=status, code=code, title=title, detail=detail)
    detail = exc.detail if isinstance(exc, BodyTooLarge) else str(exc)
    headers = {}
    if isinstance(exc, Unavailable):
        headers = {"Retry-After": str(max(1, math.ceil(exc.retry_after_seconds)))}
    extra = exc.extra if isinstance(exc, NotReady) else {}
    return Problem(
        status=status, code=code, title=title, detail=detail, errors=_named_field(exc), extra=extra, headers=headers
    )


async def answer_problem(request: Request, exc: Exception) -> JSONResponse:
    """The exception handler of every expected error."""
    return problem_of(exc, request).response()


def shown(value: Any) -> str:
    """`value` for an error message: short however large or deep it is, and always encodable as UTF-8."""
    short = _REPR.repr(value)
    return short.encode("utf-8", "backslashreplace").decode()[:_MAX_SHOWN_CHARS]


def _named_field(exc: Exception) -> list[dict[str, Any]]:
    if not hasattr(exc, "field"):
        return []
    return [{"field": exc.field, "value": shown(getattr(exc, "value", None)), "allowed": getattr(exc, "allowed", "")}]


def _http_problem(exc: HTTPException, request: Request) -> Problem:
    code, title = HTTP_CODES.get(exc.status_code, ("http_error", exc.detail))
    detail = {
        404: f"There is nothing at {shown(request.url.path)}; GET /docs lists what there is.",
        405: f"{shown(request.url.path)} does not take {shown(request.method)}.",
    }.get(exc.status_code, exc.detail)
    if exc.status_code == 400 and exc.__cause__ is not None:
        detail = _unreadable(exc.__cause__)
    return Problem(status=exc.status_code, code=code, title=title, detail=detail, headers=dict(exc.headers or {}))


def _unreadable(cause: BaseException) -> str:
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not {cause.encoding.upper()}: the byte at offset {cause.start} cannot be decoded"
    if isinstance(cause, RecursionError):
        return "the body's JSON is nested too deeply"
    return "the body is not JSON that this server can read"


def _validation_problem(exc: RequestValidationError, request: Request) -> Problem:
    faults = exc.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        cause, offset = faults[0]["ctx"]["error"], faults[0]["loc"][-1]
        status, code, title = 400, "invalid_json", "The body is not valid JSON"
        return Problem(status=status, code=code, title=title, detail=f"{cause} at character {offset}")
    if any(tuple(fault["loc"]) == ("body",) and fault["type"] != "missing" for fault in faults) and not _is_json(
        request
    ):
        given = shown(request.headers.get("content-type", "none"))
        status, code, title = 415, "unsupported_media_type", "The body's type is not supported"
        return Problem(
            status=status, code=code, title=title, detail=f"Content-Type is {given}; allowed is application/json"
        )
    errors = [_fault(fault) for fault in faults[:_MAX_SHOWN_ERRORS]]
    detail = "; ".join(f"{error['field']} is {error['value']}, allowed is {error['allowed']}" for error in errors[:3])
    status, code, title = PROBLEMS[RequestValidationError]
    return Problem(status=status, code=code, title=title, detail=detail, errors=errors)


def _is_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type.startswith("application/") and media_type.removeprefix("application/").split("+")[-1] == "json"


def _fault(fault: Mapping[str, Any]) -> dict[str, Any]:
    value = "missing" if fault["type"] == "missing" else shown(fault.get("input"))
    return {"field": _field_name(fault["loc"]), "value": value, "allowed": _allowed(fault)}


def _field_name(loc: tuple[int | str, ...]) -> str:
    """("body", "text", "list", 3) → "text[3]": "one", "list" and "share" are the tags of a union's arms, no fields."""
    name = ""
    for part in [part for part in loc[1:] if part not in ("one", "list", "share")]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return shown(name)[1:-1] or "body"


def _allowed(fault: Mapping[str, Any]) -> str:
    context = fault.get("ctx", {})
    match fault["type"]:
        case "missing":
            return "a value: this field is required"
        case "extra_forbidden":
            return "only the fields that GET /docs lists"
        case "string_type":
            return "a string"
        case "string_unicode":
            return "a string of valid Unicode (no lone surrogates)"
        case "list_type":
            return "a list"
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "finite_number":
            return "a number"
        case "literal_error":
            return f"one of {context['expected']}"
        case "greater_than_equal":
            return f"at least {context['ge']}"
        case "less_than_equal":
            return f"at most {context['le']}"
        case "too_short" | "string_too_short":
            return f"at least {context['min_length']} long"
        case "model_attributes_type" | "dict_type" | "model_type":
            return "a JSON object"
    return str(fault["msg"])


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_REPR.maxlevel = 2
