"""The load client of the benchmarks, against a server that answers what the test wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from benchmarks.client import CLIENTS, Address, BrokenAnswer, LeanConnection, Load, run

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
REFUSED = b"HTTP/1.1 422 Unprocessable Content\r\ncontent-length: 2\r\n\r\nno"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n, you all!\r\n0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbye"
CUT_SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"


class Scripted:
    """Gives these answers in turn, whatever is asked; hangs up after one that says so, and at the end."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = list(answers)
        self.requests: list[bytes] = []
        self.num_connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while self._answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self._answers.pop(0)
                writer.write(answer)
                await writer.drain()
                if b"connection: close" in answer:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def against(server: Scripted, work: Callable[[Address], Awaitable[None]]) -> None:
    async def both() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        async with listener:
            await work(Address("127.0.0.1", listener.sockets[0].getsockname()[1], "/translate"))

    asyncio.run(both())


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_every_client_reads_every_answer_over_one_connection(name: str) -> None:
    server = Scripted([PLAIN, CHUNKED, REFUSED])

    async def work(address: Address) -> None:
        connection = CLIENTS[name](address)
        assert [await connection.post(b'{"text": "a"}') for _ in range(3)] == [
            (200, b"hello"),
            (200, b"hello, you all!"),
            (422, b"no"),
        ]
        await connection.close()

    against(server, work)
    assert server.num_connections == 1
    assert all(request.startswith(b"POST /translate HTTP/1.1\r\n") for request in server.requests)
    assert all(request.endswith(b'\r\n\r\n{"text": "a"}') for request in server.requests)


def test_the_lean_client_connects_again_after_a_close() -> None:
    server = Scripted([LAST, PLAIN])

    async def work(address: Address) -> None:
        connection = LeanConnection(address)
        assert await connection.post(b"1") == (200, b"bye")
        assert await connection.post(b"2") == (200, b"hello")
        await connection.close()

    against(server, work)
    assert server.num_connections == 2


def test_an_answer_that_is_cut_short_is_broken() -> None:
    async def work(address: Address) -> None:
        with pytest.raises(BrokenAnswer):
            await LeanConnection(address).post(b"1")

    against(Scripted([CUT_SHORT]), work)


def test_a_run_posts_every_body_once_and_counts_what_failed() -> None:
    server = Scripted([PLAIN, REFUSED, PLAIN, PLAIN, REFUSED, PLAIN, PLAIN])
    bodies = [b"%d" % number for number in range(7)]
    loads: list[Load] = []

    async def work(address: Address) -> None:
        loads.append(await run(address, bodies, num_clients=3))

    against(server, work)
    assert sorted(request[-1:] for request in server.requests) == bodies
    assert loads[0].num_failed == 2
    assert len(loads[0].latencies) == 7
    assert list(loads[0].latencies) == sorted(loads[0].latencies)


def test_a_percentile_is_a_latency_that_was_seen() -> None:
    load = Load(seconds=1.0, latencies=tuple(n / 1000 for n in range(1, 101)), num_failed=0, client_cores=0.1)
    assert [round(load.percentile_ms(q)) for q in (0.0, 0.5, 0.95, 1.0)] == [1, 51, 96, 100]
