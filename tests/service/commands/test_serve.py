"""`recurra serve` as a process: what it prints, and that it finishes what it accepted when it is told to stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

RECURRA = [sys.executable, "-c", "from service.cli import main; main()"]
ROOT = Path(__file__).parents[3]
TIMEOUT_SECONDS = 60


def start(models_folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RECURRA_CHECKPOINTS": str(models_folder), "RECURRA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*RECURRA, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


@pytest.fixture
def server(models_folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(models_folder, "--port", "0")
    watchdog = threading.Timer(TIMEOUT_SECONDS, process.kill)  # reading its lines would else wait for ever
    watchdog.start()
    yield process
    watchdog.cancel()
    process.kill()
    process.communicate()


def test_it_says_where_it_listens_then_that_it_is_ready_and_drains_at_sigterm(server: Any) -> None:
    listening, ready = server.stdout.readline(), server.stdout.readline()
    url = re.search(r"http://127\.0\.0\.1:\d+", listening)[0]
    assert ready.startswith(f"Recurra is ready on {url} (en-fr). Try: curl -s {url}/translate")
    assert httpx.get(f"{url}/health/ready").status_code == 200

    answers: list[httpx.Response] = []
    body = {"text": ["She is nice and he is tired."] * 400}
    asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/translate", json=body, timeout=60)))
    asking.start()
    while "recurra_live_rows 0.0" in httpx.get(f"{url}/metrics").text:
        assert server.poll() is None
    server.send_signal(signal.SIGTERM)
    asking.join()
    assert len(answers[0].json()["translations"]) == 400
    _, errors = server.communicate(timeout=TIMEOUT_SECONDS)
    assert server.returncode in (0, -signal.SIGTERM)
    assert "engine_stopped" in errors
    assert "Traceback" not in errors
    assert "tired" not in errors


def test_a_port_in_use_is_one_line(models_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(models_folder, "--port", str(taken.getsockname()[1]))
        out, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 1
    assert out == ""
    assert "another program listens there" in errors
    assert len(errors.splitlines()) == 1
