"""What the processes behind one port make of a request: their own, the first one's, or a question to all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from service.peers import Peers, merged
from service.processes import Place, place_of


def app_of(number: int) -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    async def answer(path: str, request: Request) -> dict[str, str]:
        body = (await request.body()).decode()
        return {"by": str(number), "method": request.method, "path": path, "query": request.url.query, "body": body}

    return app


class _Threaded(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """Not in the main thread."""


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Place]:
    """The second process's place; the first one is there."""
    place = Place(0, 2, -1, str(tmp_path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(place.socket_path(0)))
    listener.listen()
    server = _Threaded(uvicorn.Config(Peers(app_of(0), place), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield Place(1, 2, -1, str(tmp_path))
    server.should_exit = True
    thread.join()


async def ask(app: ASGIApp, method: str, url: str, body: bytes = b"") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here:8080") as client:
        return await client.request(method, url, content=body)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "by"),
    [
        ("POST", "/translate", "1"),
        ("POST", "/score", "1"),
        ("GET", "/models", "1"),
        ("GET", "/models/en-fr", "1"),
        ("POST", "/models/en-fr/promote", "0"),
        ("GET", "/train/5/events", "0"),
        ("POST", "/train", "0"),
        ("DELETE", "/datasets/x", "0"),
        ("GET", "/trainers", "1"),
    ],
)
async def test_what_changes_models_datasets_or_jobs_is_the_first_ones(
    first: Place, method: str, path: str, by: str
) -> None:
    answer = await ask(Peers(app_of(1), first), method, f"{path}?a=%20b&c", b"body")
    assert answer.status_code == 200
    assert answer.json() == {"by": by, "method": method, "path": path[1:], "query": "a=%20b&c", "body": "body"}


@pytest.mark.anyio
async def test_without_the_first_one_its_requests_are_told_to_come_again(tmp_path: Path) -> None:
    answer = await ask(Peers(app_of(1), Place(1, 2, -1, str(tmp_path))), "POST", "/train", b"{}")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["code"] == "starting"
    assert (await ask(Peers(app_of(1), Place(1, 2, -1, str(tmp_path))), "POST", "/translate")).json()["by"] == "1"


def test_metrics_of_all_processes_stand_side_by_side() -> None:
    text = '# HELP a_total Things\n# TYPE a_total counter\na_total{kind="x"} %d.0\n'
    whole = merged({0: text % 3, 1: text % 4}).decode()
    assert whole.count("# TYPE a_total counter") == 1
    assert 'a_total{kind="x",process="0"} 3.0' in whole
    assert 'a_total{kind="x",process="1"} 4.0' in whole


def test_only_a_process_that_was_told_so_has_a_place() -> None:
    assert place_of({}) is None
    assert place_of({"_RECURRA_PROCESS": '{"number": 1, "num_processes": 3, "listener": 5, "folder": "f"}'}) == Place(
        1, 3, 5, "f"
    )
