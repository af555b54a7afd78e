"""The engine's thread: requests join, leave, fail and drain between steps that the test holds and releases."""

from __future__ import annotations

from model.decoding.search import SearchOptions
from service.inference.engine import Engine

TIMEOUT_SECONDS = 30.0
EOS = 3
OPTIONS = SearchOptions(k=2)
Held = tuple[Engine, "StubDecoder"]  # noqa: F821  (the stand-in lives in conftest.py, which tests cannot import)


def segment(*token_ids: int, options: SearchOptions = OPTIONS) -> tuple[list[int], SearchOptions]:
    return [*token_ids, EOS], options


def live(*segments: tuple[list[int], SearchOptions]) -> list[list[int]]:
    return [ids for ids, _ in segments]
