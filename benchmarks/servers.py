"""Servers to measure, each a process of its own on a free port: ours, and OpenNMT-py's where its folder is given."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.client import Address

_START_SECONDS = 120.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A server that answers: where, and the number of its process."""

    address: Address
    pid: int

    @property
    def resident_bytes(self) -> int:
        """What of its memory is in RAM now."""
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1])  # type: ignore[index]


@contextmanager
def recurra_server(checkpoint: Path, **settings: object) -> Iterator[Server]:
    """`recurra serve` with one model and these settings (`max_rows=320` for RECURRA_MAX_ROWS), ready."""
    environment = {**os.environ, **{f"RECURRA_{name.upper()}": str(value) for name, value in settings.items()}}
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve", "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / checkpoint.resolve().name).symlink_to(checkpoint.resolve())
        environment["RECURRA_CHECKPOINTS"] = folder
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert process.stdout is not None
            listening, ready = process.stdout.readline(), process.stdout.readline()
            found = re.search(r"http://([\d.]+):(\d+)", listening)
            if found is None or "is ready" not in ready:
                raise SystemExit(f"recurra serve did not start: {listening}{ready}")
            yield Server(Address(found[1], int(found[2]), "/translate"), process.pid)
        finally:
            _stop(process)


@contextmanager
def opennmt_server(folder: Path) -> Iterator[Server]:
    """OpenNMT-py's own server over the models of a peers' folder (`server.json`): model 1 greedy, model 2 beam 5."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [str(folder.resolve() / "venv/bin/onmt_server"), "--ip", "127.0.0.1", "--port", str(port)]
    environment = {"OMP_NUM_THREADS": str(os.cpu_count()), **os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [*command, "--url_root", "/translator", "-m", "server.json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = Address("127.0.0.1", port, "/translator/translate")
        _wait(process, f"http://127.0.0.1:{port}/translator/models")
        yield Server(address, process.pid)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"OpenNMT-py's server did not start (exit status {process.poll()})")


def _stop(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def recurra_body(texts: str | list[str], k: int) -> bytes:
    return json.dumps({"text": texts, "k": k}).encode()


def opennmt_body(texts: str | list[str], k: int) -> bytes:
    items = [texts] if isinstance(texts, str) else texts
    return json.dumps([{"src": text, "id": 1 if k == 1 else 2} for text in items]).encode()


def opennmt_failed(status: int, body: bytes) -> bool:
    """It reports its errors with status 200."""
    return status != 200 or b'"status":"error"' in body.replace(b" ", b"")
