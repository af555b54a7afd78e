"""A store in an empty folder, and uploads as a client would send them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.datasets.errors import told_apart
from service.datasets.formats import UnpackLimit
from service.datasets.parts import Form
from service.datasets.store import Dataset, DatasetStore
from service.datasets.upload import store_upload

FIELDS = {"name": "small", "source": "en", "target": "fr"}
Send = Callable[..., tuple[Dataset, bool]]


def form_of(fields: dict[str, str], files: dict[str, bytes], *, files_first: bool = False) -> tuple[bytes, bytes]:
    """The body of a form and its boundary, as httpx writes them."""
    parts: list[tuple[str, Any]] = [(name, (None, value)) for name, value in fields.items()]
    file_parts: list[tuple[str, Any]] = [(name, (f"{name}.txt", content)) for name, content in files.items()]
    request = httpx.Request("POST", "http://x", files=file_parts + parts if files_first else parts + file_parts)
    return request.read(), request.headers["content-type"].partition("boundary=")[2].encode()


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


@pytest.fixture
def send(store: DatasetStore) -> Send:
    """`send(pairs=b"…", name="small")`: what becomes of these files with these fields; FIELDS unless told otherwise."""

    def sending(*, files_first: bool = False, max_bytes: int = 10**9, **given: Any) -> tuple[Dataset, bool]:
        files = {name: value for name, value in given.items() if isinstance(value, bytes)}
        fields = FIELDS | {name: value for name, value in given.items() if not isinstance(value, bytes)}
        fields = {name: value for name, value in fields.items() if value is not None}
        body, boundary = form_of(fields, files, files_first=files_first)
        with told_apart():
            return store_upload(Form(io.BytesIO(body), boundary).parts(), store, UnpackLimit(max_bytes=max_bytes))

    return sending


@pytest.fixture
def is_empty(store: DatasetStore) -> Callable[[], bool]:
    """Whether neither a dataset nor a half of one lies in the store."""

    def empty() -> bool:
        return [path for path in store.root.rglob("*") if path.name != ".incoming"] == []

    return empty


@pytest.fixture
def make_form() -> Callable[..., tuple[bytes, bytes]]:
    return form_of
