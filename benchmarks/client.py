"""Closed-loop load on an HTTP server: so many connections, each sends its next request when its last is answered.

The client takes its share of the same cores as the server. `lean` is made to take little: one socket a connection, a
request written in one piece, an answer read up to its Content-Length and not parsed. `httpx` is what a Python program
would most likely use; it takes several times as much. Whichever it is, it is the same for every server of a table, and
the table says how much of a core it took.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx

TIMEOUT_SECONDS = 300.0
HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True)
class Address:
    """Where to post to."""

    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.path}"


class BrokenAnswer(Exception):
    """The server closed the connection, or sent what is no HTTP/1.1 answer."""


class Connection(Protocol):
    """A kept-alive connection; `post` returns status and body."""

    async def post(self, body: bytes) -> tuple[int, bytes]: ...

    async def close(self) -> None: ...


class LeanConnection:
    """HTTP/1.1 over a plain socket, for answers with a Content-Length or in chunks. Opens itself when it is needed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._head = (
            f"POST {address.path} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, body: bytes) -> asyncio.StreamReader:
        """Writes a request; what comes back is read from the stream returned."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._address.host, self._address.port)
        self._writer.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        return self._reader

    async def post(self, body: bytes) -> tuple[int, bytes]:
        try:
            reader = await self.send(body)
            status, fields = _parse(await reader.readuntil(b"\r\n\r\n"))
            if b"content-length" in fields:
                answer = await reader.readexactly(int(fields[b"content-length"]))
            else:
                answer = await _read_chunks(reader)
        except (OSError, asyncio.IncompleteReadError, ValueError) as exc:
            await self.close()
            raise BrokenAnswer(str(exc)) from exc
        if fields.get(b"connection", b"").lower() == b"close":
            await self.close()
        return status, answer

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def _parse(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    fields = dict(line.split(b":", 1) for line in lines if line)
    return int(first.split(b" ", 2)[1]), {name.lower(): value.strip() for name, value in fields.items()}


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


class HttpxConnection:
    """The same by httpx."""

    def __init__(self, address: Address) -> None:
        self._url = address.url
        self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS)

    async def post(self, body: bytes) -> tuple[int, bytes]:
        try:
            answer = await self._client.post(self._url, content=body, headers=HEADERS)
        except httpx.HTTPError as exc:
            raise BrokenAnswer(str(exc)) from exc
        return answer.status_code, answer.content

    async def close(self) -> None:
        await self._client.aclose()


CLIENTS: dict[str, Callable[[Address], Connection]] = {"lean": LeanConnection, "httpx": HttpxConnection}


@dataclass(frozen=True, kw_only=True)
class Load:
    """One run.

    Attributes:
        latencies: seconds of each request, shortest first.
        client_cores: of the machine's cores, what the client itself took.
    """

    seconds: float
    latencies: tuple[float, ...]
    num_failed: int
    client_cores: float

    def percentile_ms(self, share: float) -> float:
        return 1000 * self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


async def run(
    address: Address,
    bodies: Sequence[bytes],
    *,
    num_clients: int,
    client: str = "lean",
    is_failure: Callable[[int, bytes], bool] = lambda status, _: status != 200,
) -> Load:
    """Posts every body once, over so many connections."""
    todo = iter(bodies)
    latencies: list[float] = []
    num_failed = 0

    async def work(connection: Connection) -> None:
        nonlocal num_failed
        for body in todo:
            started = time.perf_counter()
            try:
                failed = is_failure(*await connection.post(body))
            except BrokenAnswer:
                failed = True
            latencies.append(time.perf_counter() - started)
            num_failed += failed
        await connection.close()

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(CLIENTS[client](address)) for _ in range(num_clients)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Load(seconds=seconds, latencies=tuple(sorted(latencies)), num_failed=num_failed, client_cores=cpu / seconds)


def median_of(loads: Sequence[Load], value: Callable[[Load], float]) -> float:
    """Of several runs."""
    return statistics.median(value(load) for load in loads)
