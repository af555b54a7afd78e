"""The parts of a multipart form, pulled one by one out of a stream: nothing is held but the piece at hand."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.datasets.errors import BrokenForm

_CHUNK_BYTES = 1 << 17
_MAX_PARTS = 20
_MAX_VALUE_BYTES = 1000  # of a field that is no file


@dataclass(frozen=True, kw_only=True)
class Part:
    """A field of a form. `stream` is to be read before the next part is asked for; what is left of it is skipped."""

    name: str
    is_named_file: bool
    stream: io.BufferedReader[Any]

    def text(self) -> str:
        """A short text. Raises BrokenForm."""
        content = self.stream.read(_MAX_VALUE_BYTES + 1)
        if len(content) > _MAX_VALUE_BYTES:
            raise BrokenForm(
                f"{self.name} is longer than {_MAX_VALUE_BYTES} bytes", field=self.name, value="a long text"
            )
        try:
            return content.decode().strip()
        except UnicodeDecodeError as exc:
            raise BrokenForm(f"{self.name} is not UTF-8", field=self.name, value=str(content[:20])) from exc


class Form:
    """Reads a body piece by piece and cuts it at its boundaries."""

    def __init__(self, body: BinaryIO, boundary: bytes) -> None:
        self._body = body
        # What the parser found in the last piece and nobody has taken yet: the head of a part, its data, its end.
        self._found: deque[tuple[str, bytes]] = deque()
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._is_ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": lambda: self._found.append(("head", self._disposition)),
                    "on_part_data": lambda data, start, end: self._found.append(("data", bytes(data[start:end]))),
                    "on_part_end": lambda: self._found.append(("end", b"")),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as exc:
            raise BrokenForm(f"the boundary of the form cannot be used: {exc}") from exc

    def parts(self) -> Iterator[Part]:
        """Raises BrokenForm for a body that is no form, or ends before its last boundary."""
        num_parts = 0
        while (found := self.next_found()) is not None:
            kind, disposition = found
            if kind != "head":
                continue  # what a part's reader left
            num_parts += 1
            if num_parts > _MAX_PARTS:
                raise BrokenForm(f"the form has more than {_MAX_PARTS} fields")
            name, is_named_file = _names_in(disposition)
            stream = io.BufferedReader(_PartStream(self), _CHUNK_BYTES)
            yield Part(name=name, is_named_file=is_named_file, stream=stream)

    def next_found(self) -> tuple[str, bytes] | None:
        """None at the end of the form."""
        while not self._found:
            if self._is_ended:
                return None
            piece = self._body.read(_CHUNK_BYTES)
            if not piece:
                raise BrokenForm("the form ends before its last boundary: the upload was broken off")
            try:
                self._parser.write(piece)
            except FormParserError as exc:
                raise BrokenForm(f"the body is no multipart form: {exc}") from exc
        return self._found.popleft()

    def put_back(self, data: bytes) -> None:
        self._found.appendleft(("data", data))

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_end(self) -> None:
        self._is_ended = True


class _PartStream(io.RawIOBase):
    """The bytes of the part that is being read."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._is_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # always a writable buffer
        """Fills the buffer, unless the part ends: what the file is shows in its first bytes, which lie together so."""
        filled = 0
        while filled < len(buffer) and not self._is_ended:
            found = self._form.next_found()
            if found is None or found[0] == "end":
                self._is_ended = True
                break
            data = found[1]
            size = min(len(data), len(buffer) - filled)
            buffer[filled : filled + size] = data[:size]
            filled += size
            if size < len(data):
                self._form.put_back(data[size:])
        return filled


def _names_in(disposition: bytes) -> tuple[str, bool]:
    """The field's name, and whether it is a file that has a name."""
    _, options = parse_options_header(disposition)
    if b"name" not in options:
        raise BrokenForm("a part of the form has no name")
    return options[b"name"].decode("utf-8", "replace"), bool(options.get(b"filename"))
