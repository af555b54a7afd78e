"""Log lines: an event name, key=value pairs and the id of the request they belong to.

Texts, keys and addresses are never given to a log call; this module cannot know them from other values.

    2026-11-24T10:00:00.123Z info http_request request_id=5f0c route=/translate status=200 ms=12.4
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

ROOT_LOGGER = "recurra"


class EventLog:
    """Writes events to the standard logger `recurra.<name>`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{ROOT_LOGGER}.{name}")

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def exception(self, event: str, exc: BaseException, **fields: Any) -> None:
        """An error with its traceback: for the places that catch what nobody expected."""
        self._write(logging.ERROR, event, {**fields, "error": type(exc).__name__}, exc)

    def _write(self, level: int, event: str, fields: dict[str, Any], exc: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            request_id = request_id_var.get()
            known = {} if request_id is None else {"request_id": request_id}
            self._logger.log(level, event, extra={"fields": known | fields}, exc_info=exc)


class TextFormatter(logging.Formatter):
    """`time level event key=value …`; a value with blanks or quotes is written as a JSON string."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        pairs = "".join(f" {key}={_plain(value)}" for key, value in fields.items())
        line = f"{_timestamp(record)} {record.levelname.lower()} {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _timestamp(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


FORMATTERS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def configure_logging(
    level: str = "info", line_format: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> None:
    """Sends our events and the HTTP server's to `stream` (default stderr). Only the command line calls it."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(FORMATTERS[line_format]())
    for name in (ROOT_LOGGER, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # its start and stop lines repeat ours
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger(ROOT_LOGGER).level))


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    is_plain = text != "" and text.isprintable() and not any(char in text for char in ' "=')
    return text if is_plain else json.dumps(text, ensure_ascii=not text.isprintable())
