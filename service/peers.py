"""How the processes behind one port answer as one service: see processes.py.

Each also listens on a socket in a folder of theirs. Over it the first one is handed what only it may do, and whoever is
asked for metrics collects those of all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio
import httpx
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import FirstProcessAway, problem_of
from service.metrics import CONTENT_TYPE
from service.processes import Place

_FIRST_ONLY = ("/train", "/datasets")  # whatever the method
_FIRST_ONLY_CHANGES = ("/models",)  # reading is everybody's
_METRICS = "/metrics"
_METRICS_SECONDS = 5.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host"}


class Peers:
    """Around the app of one process."""

    def __init__(self, app: ASGIApp, place: Place) -> None:
        self.app = app
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_from_peer(scope):
            await self.app(scope, receive, send)
        elif scope["path"] == _METRICS and scope["method"] in ("GET", "HEAD"):
            await Response(await self._metrics(), media_type=CONTENT_TYPE)(scope, receive, send)
        elif not self._place.is_first and _is_for_first(scope["method"], scope["path"]):
            await self._forward(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_from_peer(self, scope: Scope) -> bool:
        server = scope.get("server")
        return server is not None and server[1] is None  # a socket in the file system has no port

    def _client(self, number: int, timeout: float | None) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self._place.socket_path(number)))
        return httpx.AsyncClient(transport=transport, base_url="http://recurra", timeout=timeout)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        query = scope["query_string"].decode("latin-1")
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        async with self._client(0, None) as client:
            asked = client.build_request(
                request.method,
                httpx.URL(path=request.url.path, query=query.encode("latin-1")),
                headers=headers,
                content=request.stream(),
            )
            try:
                answer = await client.send(asked, stream=True)
            except httpx.TransportError:
                away = FirstProcessAway(
                    "the process that keeps models and jobs is being started", retry_after_seconds=2
                )
                await problem_of(away, request).response()(scope, receive, send)
                return
            kept = [(name, value) for name, value in answer.headers.raw if name.lower().decode() not in _HOP_BY_HOP]
            streamed = StreamingResponse(_chunks(answer), answer.status_code)
            streamed.raw_headers = [(name.lower(), value) for name, value in kept]
            await streamed(scope, receive, send)

    async def _metrics(self) -> bytes:
        texts: dict[int, str] = {}

        async def ask(number: int) -> None:
            async with self._client(number, _METRICS_SECONDS) as client:
                try:
                    texts[number] = (await client.get(_METRICS)).text
                except httpx.HTTPError:
                    return  # it is being started, and has nothing to tell

        async with anyio.create_task_group() as group:
            for number in range(self._place.num_processes):
                group.start_soon(ask, number)
        return merged(texts)


def _is_for_first(method: str, path: str) -> bool:
    def is_under(prefixes: tuple[str, ...]) -> bool:
        return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)

    return is_under(_FIRST_ONLY) or (method not in ("GET", "HEAD", "OPTIONS") and is_under(_FIRST_ONLY_CHANGES))


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def merged(texts: dict[int, str]) -> bytes:
    """One exposition of several, by the number of their process, which becomes the label `process`."""

    class Merged(Collector):
        def collect(self) -> Iterator[Metric]:
            families: dict[str, Metric] = {}
            for number, text in sorted(texts.items()):
                for family in text_string_to_metric_families(text):
                    whole = families.setdefault(
                        family.name, Metric(family.name, family.documentation, family.type, family.unit)
                    )
                    for sample in family.samples:
                        labels = {**sample.labels, "process": str(number)}
                        whole.add_sample(sample.name, labels, sample.value)
            yield from families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Merged())
    return generate_latest(registry)
