"""What surrounds every request: its id, its log line and count, the limit of its body, HEAD, and the last catch of all.

Plain ASGI: it neither buffers an answer nor moves a handler to another task, so streams and cancellation pass through.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from types import MappingProxyType

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, ClientGone, problem_of
from service.logs import EventLog, request_id_var
from service.metrics import UNMATCHED_ROUTE, Metrics

REQUEST_ID_HEADER = "X-Request-ID"

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_GONE = 499  # never sent: the word that logs and metrics have for it, after nginx

log = EventLog("http")


class RequestContext:
    """Gives each request its id, logs and counts it, and answers what nobody caught with a 500 that hides its cause."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        request_id_var.set(request_id)
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientGone:
            status = _CLIENT_GONE  # and nothing is sent: there is nobody to read it
        except Exception as exc:  # the top handler
            log.exception("request_failed", exc, route=_route(scope))
            if status is not None:
                raise  # the answer has begun: only closing the connection is left
            await problem_of(exc, Request(scope)).response()(scope, receive, send_with_id)
        finally:
            # A cancelled request (the server ran out of time to drain) has no status either.
            self._note(scope, status or _CLIENT_GONE, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        self._metrics.requests.labels(route, _outcome(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        log.info("http_request", method=_method(scope), route=route, status=status, ms=seconds * 1000)


class BodyLimit:
    """Refuses a body past the limit: by its announced length, or while a chunked one is being read."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, larger: Mapping[str, tuple[int, str]] = MappingProxyType({})
    ) -> None:
        """`larger` has the paths with a limit of their own, and the setting that it comes from."""
        self.app = app
        self._limit = (max_body_bytes, "RECURRA_MAX_BODY_BYTES")
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_body_bytes, setting = self._larger.get(scope["path"], self._limit)
        num_bytes = 0
        announced = Headers(scope=scope).get("content-length", "")

        async def receive_within_limit() -> Message:
            nonlocal num_bytes
            if announced.isdecimal() and int(announced[:20]) > max_body_bytes:
                raise BodyTooLarge(max_body_bytes, setting)
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_body_bytes:
                raise BodyTooLarge(max_body_bytes, setting)
            return message

        await self.app(scope, receive_within_limit, send)


class HeadAsGet:
    """Answers HEAD as GET without its body, which FastAPI's routes leave to their authors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # A copy: the server goes on to see HEAD, where Content-Length is not the length of what is sent.
        as_get = {**scope, "method": "GET"}
        try:
            await self.app(as_get, receive, send_without_body)
        finally:
            scope["route"] = as_get.get("route")  # for the log and the metrics


def _request_id(scope: Scope) -> str:
    """The caller's, where it is fit for a log line; else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The template ("/models/{name}"), never the path: labels and log lines stay bounded."""
    route = scope.get("route")
    return getattr(route, "path", UNMATCHED_ROUTE)


def _method(scope: Scope) -> str:
    method = scope["method"]
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


def _outcome(status: int) -> str:
    if status == _CLIENT_GONE:
        return "cancelled"
    if status in (429, 503):
        return "refused"
    return "ok" if status < 400 else "invalid" if status < 500 else "error"
