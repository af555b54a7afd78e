"""A form is cut into its parts wherever the pieces of its body end."""

from __future__ import annotations

import io
from typing import Any

import pytest

from service.datasets.errors import BrokenForm
from service.datasets.parts import Form


class Trickle(io.RawIOBase):
    """A body that comes in pieces of a few bytes."""

    def __init__(self, body: bytes, piece_bytes: int) -> None:
        self._body = io.BytesIO(body)
        self._piece_bytes = piece_bytes

    def read(self, size: int = -1, /) -> bytes:
        return self._body.read(self._piece_bytes)


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 64, 100_000])
def test_parts_are_those_that_were_sent_whatever_the_pieces(make_form: Any, piece_bytes: int) -> None:
    content = b"\r\n--almost a boundary\r\n\r\n" * 50
    body, boundary = make_form({"name": " a "}, {"pairs": content, "target_file": b""})
    form = Form(Trickle(body, piece_bytes), boundary)  # type: ignore[arg-type]
    found = [(part.name, part.is_named_file, part.stream.read()) for part in form.parts()]
    assert found == [("name", False, b" a "), ("pairs", True, content), ("target_file", True, b"")]


def test_what_nobody_read_of_a_part_is_skipped(make_form: Any) -> None:
    body, boundary = make_form({}, {"pairs": b"x" * 500_000, "target_file": b"y"})
    parts = Form(io.BytesIO(body), boundary).parts()
    assert next(parts).stream.read(3) == b"xxx"
    assert next(parts).stream.read() == b"y"
    assert list(parts) == []


def test_a_text_is_short_utf8_without_spaces_around_it(make_form: Any) -> None:
    body, boundary = make_form({"name": "  é "}, {"long": b"x" * 1001, "latin": b"\xe9"})
    parts = Form(io.BytesIO(body), boundary).parts()
    assert next(parts).text() == "é"
    with pytest.raises(BrokenForm, match="long is longer than 1000"):
        next(parts).text()
    with pytest.raises(BrokenForm, match="latin is not UTF-8"):
        next(parts).text()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "broken off"),
        (b"no form at all", "no multipart form"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "has no name"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx' * 2, "broken off"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 30, "more than 20"),
    ],
)
def test_a_body_that_is_no_form_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(BrokenForm, match=message):
        [part.stream.read() for part in Form(io.BytesIO(body), b"b").parts()]


def test_a_boundary_that_is_too_long_is_refused() -> None:
    with pytest.raises(BrokenForm, match="boundary"):
        Form(io.BytesIO(b""), b"b" * 300)
