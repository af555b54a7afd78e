"""A log line: event, key=value, request id; and what is never in one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.logs import ROOT_LOGGER, EventLog, configure_logging, request_id_var


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where lines go; the loggers are put back afterwards."""
    loggers = [logging.getLogger(name) for name in (ROOT_LOGGER, "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield io.StringIO()
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_text_line_is_an_event_with_its_pairs(stream: io.StringIO) -> None:
    configure_logging("info", "text", stream)
    EventLog("x").info("model_ready", model="en-fr", seconds=1.23456, cause="two words", empty="", quote='a"b')
    line = stream.getvalue()
    assert line.endswith(' info model_ready model=en-fr seconds=1.235 cause="two words" empty="" quote="a\\"b"\n')


def test_a_value_cannot_forge_a_line(stream: io.StringIO) -> None:
    configure_logging("info", "text", stream)
    EventLog("x").info("event", value="a\nb=c\u2028\x1b[31m")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_a_json_line_has_the_same_fields(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    token = request_id_var.set("abc")
    EventLog("x").warning("event", number=3)
    request_id_var.reset(token)
    line = json.loads(stream.getvalue())
    assert (line["level"], line["event"], line["request_id"], line["number"]) == ("warning", "event", "abc", 3)


def test_events_below_the_level_are_not_written(stream: io.StringIO) -> None:
    configure_logging("warning", "text", stream)
    EventLog("x").info("event")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_an_unexpected_error_has_its_traceback(stream: io.StringIO, line_format: Any) -> None:
    configure_logging("info", line_format, stream)
    try:
        raise RuntimeError("why")
    except RuntimeError as exc:
        EventLog("x").exception("step_failed", exc)
    assert "RuntimeError: why" in stream.getvalue()


def test_a_request_is_one_line_without_its_text(stream: io.StringIO, client: Any) -> None:
    configure_logging("debug", "text", stream)
    client.post("/translate", {"text": "confidential", "prefix": "hidden"}, headers={"X-Request-ID": "id-1"})
    client.post("/translate", {"text": "a", "model": "confidential", "k": "hidden"})
    lines = stream.getvalue()
    assert "http_request request_id=id-1 method=POST route=/translate status=200 ms=" in lines
    assert "confidential" not in lines
    assert "hidden" not in lines
