"""Hands the body of an upload to a process of its own, piece by piece as it arrives, and waits for what comes of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from python_multipart.multipart import parse_options_header

from service.datasets.errors import BrokenForm, UnsupportedForm, error_from_json
from service.datasets.store import Dataset, DatasetStore
from service.errors import ClientGone, TooManyUploads
from service.logs import EventLog

_ROOT = Path(__file__).resolve().parents[2]  # where the packages are, wherever the server was started
_RETRY_AFTER_SECONDS = 10.0

log = EventLog("datasets")


class UploadReceiver:
    """Receives a few uploads at once; the others are refused, before they are read."""

    def __init__(
        self, store: DatasetStore, *, max_unpacked_bytes: int, max_uploads: int, idle_seconds: float = 60.0
    ) -> None:
        self._store = store
        self._max_unpacked_bytes = max_unpacked_bytes
        self._max_uploads = max_uploads
        self._idle_seconds = idle_seconds  # a caller that sends nothing for so long gives up its place
        self._num_uploads = 0

    async def receive(
        self, body: AsyncIterator[bytes], content_type: str, hang_up: Callable[[], Coroutine[Any, Any, None]]
    ) -> tuple[Dataset, bool]:
        """The dataset, and whether it is new. Where this fails or is cancelled nothing is left of it.

        Args:
            body: the form. What it raises is raised here.
            content_type: of the form, with its boundary.
            hang_up: ends when the caller hangs up after the whole body has come.

        Raises:
            TooManyUploads, UnsupportedForm, DatasetError, InvalidValue.
            ClientGone: the caller hung up before the dataset was ready.
        """
        boundary = _boundary_of(content_type)
        if self._num_uploads >= self._max_uploads:
            message = f"{self._num_uploads} datasets are arriving; allowed is at most {self._max_uploads} at once"
            raise TooManyUploads(f"{message} (RECURRA_MAX_UPLOADS)", retry_after_seconds=_RETRY_AFTER_SECONDS)
        self._num_uploads += 1
        try:
            result = await self._work(body, boundary, hang_up)
        finally:
            self._num_uploads -= 1
        if "error" in result:
            raise error_from_json(result["error"])
        return await asyncio.to_thread(self._store.get, result["name"]), result["is_new"]

    async def _work(
        self, body: AsyncIterator[bytes], boundary: str, hang_up: Callable[[], Coroutine[Any, Any, None]]
    ) -> dict[str, Any]:
        task = {
            "root": str(self._store.root.resolve()),
            "boundary": boundary,
            "max_unpacked_bytes": self._max_unpacked_bytes,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.datasets.worker", json.dumps(task)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the server, which lets its requests finish
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        feeding = asyncio.ensure_future(_feed(process, body, self._idle_seconds))
        try:
            return await _result_of(process, feeding, hang_up)
        finally:
            feeding.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await feeding
            if process.returncode is None:
                process.kill()
                await process.wait()
                await asyncio.to_thread(self._store.sweep)


async def _feed(process: asyncio.subprocess.Process, body: AsyncIterator[bytes], idle_seconds: float) -> None:
    """Waits where the process is slower than the caller; ends early where the process has seen enough."""
    assert process.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        while piece := await _next_piece(body, idle_seconds):
            process.stdin.write(piece)
            await process.stdin.drain()
    process.stdin.close()


async def _next_piece(body: AsyncIterator[bytes], idle_seconds: float) -> bytes:
    """Empty at the end."""
    try:
        async with asyncio.timeout(idle_seconds):
            return await anext(body, b"")
    except TimeoutError as exc:
        raise BrokenForm(f"nothing of the body came for {idle_seconds:g} seconds: the upload was given up") from exc


async def _result_of(
    process: asyncio.subprocess.Process,
    feeding: asyncio.Future[None],
    hang_up: Callable[[], Coroutine[Any, Any, None]],
) -> dict[str, Any]:
    assert process.stdout is not None and process.stderr is not None
    collecting = asyncio.ensure_future(asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait()))
    watching: asyncio.Future[None] | None = None
    try:
        await asyncio.wait((feeding, collecting), return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()  # raises where the caller went away, or sent too much
            watching = asyncio.ensure_future(hang_up())
            await asyncio.wait((watching, collecting), return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                raise ClientGone
        out, err, status = await collecting
    finally:
        collecting.cancel()
        if watching is not None:
            watching.cancel()
    if status != 0:
        log.warning("upload_process_failed", status=status, cause=err.decode("utf-8", "replace")[-2000:])
        raise RuntimeError(f"the process of an upload ended with status {status}")
    result: dict[str, Any] = json.loads(out)
    return result


def _boundary_of(content_type: str) -> str:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        given = repr(content_type[:60]) if content_type else "missing"
        raise UnsupportedForm(f"Content-Type is {given}; allowed is multipart/form-data with a boundary")
    return options[b"boundary"].decode("latin-1")
