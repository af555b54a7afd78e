"""How the server feeds the process of an upload; what the process answers is in test_worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.datasets.errors import BrokenForm, DatasetExists, UnusableData, error_from_json, error_to_json
from service.datasets.receiver import UploadReceiver
from service.datasets.store import DatasetStore
from service.errors import ClientGone

FORM = "multipart/form-data; boundary=b"


async def never() -> None:
    await asyncio.Event().wait()


def receive(store: DatasetStore, body: AsyncIterator[bytes], hang_up: Any = never, **options: Any) -> Any:
    receiver = UploadReceiver(store, max_unpacked_bytes=10**9, max_uploads=1, **options)

    async def receiving() -> Any:
        try:
            return await receiver.receive(body, FORM, hang_up)
        finally:
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    return asyncio.run(receiving())


async def body_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def stalled(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    await never()


def test_a_caller_that_stops_sending_gives_up_its_place(store: DatasetStore, is_empty: Any) -> None:
    with pytest.raises(BrokenForm, match=r"nothing of the body came for 0\.01 seconds"):
        receive(store, stalled(b"--b\r\n"), idle_seconds=0.01)
    assert is_empty()


def test_what_the_body_raises_is_raised(store: DatasetStore, is_empty: Any) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        raise KeyError("the body")

    with pytest.raises(KeyError, match="the body"):
        receive(store, failing())
    assert is_empty()


def test_a_caller_that_hangs_up_before_the_answer_ends_the_work(
    store: DatasetStore, is_empty: Any, make_form: Any
) -> None:
    body, boundary = make_form({"name": "a", "source": "en", "target": "fr"}, {"pairs": b"a\tb\n" * 100_000})

    async def at_once() -> None:
        pass

    with pytest.raises(ClientGone):
        receive(store, body_of(body.replace(boundary, b"b")), at_once)
    assert is_empty()


@pytest.mark.parametrize(
    "error",
    [
        DatasetExists("taken", field="name", value="x", allowed="a free name"),
        UnusableData("no file at fault"),
    ],
)
def test_an_error_of_the_process_is_the_same_in_the_server(error: Any) -> None:
    found = error_from_json(error_to_json(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
