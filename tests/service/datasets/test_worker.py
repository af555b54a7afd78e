"""The process of an upload, by itself: what it answers, and what it leaves behind when it or its parent dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.datasets.store import DatasetStore

ROOT = Path(__file__).parents[3]
FIELDS = {"name": "small", "source": "en", "target": "fr"}


@pytest.fixture
def start(store: DatasetStore) -> Callable[[bytes], subprocess.Popen[bytes]]:
    def starting(boundary: bytes) -> subprocess.Popen[bytes]:
        task = {"root": str(store.root), "boundary": boundary.decode(), "max_unpacked_bytes": 10**9}
        command = [sys.executable, "-m", "service.datasets.worker", json.dumps(task)]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    return starting


def test_it_answers_with_the_name_of_what_it_stored(start: Any, make_form: Any, store: DatasetStore) -> None:
    body, boundary = make_form(FIELDS, {"pairs": b"Go.\tVa !\n"})
    out, _ = start(boundary).communicate(body)
    assert json.loads(out) == {"name": "small", "is_new": True}
    assert list(store.get("small").pairs()) == [("Go.", "Va !")]


def test_it_cleans_up_and_ends_where_its_parent_dies(start: Any, make_form: Any, is_empty: Any) -> None:
    body, boundary = make_form(FIELDS, {"pairs": b"Go.\tVa !\n" * 100_000})
    out, _ = start(boundary).communicate(body[:600_000])  # the end of the pipe is what a parent's death looks like
    assert json.loads(out)["error"]["kind"] == "BrokenForm"
    assert is_empty()


def test_what_it_leaves_when_it_is_killed_is_swept_and_was_never_a_dataset(
    start: Any, make_form: Any, store: DatasetStore, is_empty: Any
) -> None:
    body, boundary = make_form(FIELDS, {"pairs": b"Go.\tVa !\n" * 200_000})
    with start(boundary) as process:
        process.stdin.write(body[:1_000_000])  # more than a pipe holds: it has begun
        process.stdin.flush()
        process.kill()
    assert not is_empty()
    assert store.list() == []
    assert store.sweep() == 1
    assert is_empty()


def test_it_needs_neither_torch_nor_the_web_framework_nor_numpy() -> None:
    code = "import sys, service.datasets.worker; print([m for m in ('torch', 'fastapi', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout == b"[]\n"
