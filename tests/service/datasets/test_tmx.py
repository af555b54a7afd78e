"""Pairs out of translation memories, and what is refused of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model.data.corpus import Pair
from model.errors import DataError
from service.datasets.tmx import looks_like_tmx, read_tmx

HEAD = '<?xml version="1.0" encoding="utf-8"?><tmx version="1.4"><header/><body>'
UNIT = '<tu><tuv xml:lang="en"><seg>Go.</seg></tuv><tuv xml:lang="fr"><seg>Va !</seg></tuv></tu>'


def pairs_of(body: str, *, head: str = HEAD, block: int = 1 << 16) -> list[Pair]:
    content = (head + body + "</body></tmx>").encode()
    blocks = (content[i : i + block] for i in range(0, len(content), block))
    return list(read_tmx(blocks, "pairs", src_lang="en", tgt_lang="fr"))


@pytest.mark.parametrize("block", [1, 5, 1 << 16])
def test_units_are_read_whatever_the_blocks(block: int) -> None:
    assert pairs_of(UNIT * 3, block=block) == [Pair("Go.", "Va !")] * 3


def test_markup_of_other_tools_is_no_text_but_highlighted_text_is() -> None:
    seg = "<seg>A <bpt i='1'>&lt;b></bpt><hi>bold</hi><ept i='1'>&lt;/b></ept> word<ph>{0}<sub>x</sub></ph>.</seg>"
    unit = f'<tu><tuv lang="EN-gb">{seg}</tuv><tuv xml:lang="fr"><seg>B</seg></tuv></tu>'
    assert pairs_of(unit) == [Pair("A bold word.", "B")]


def test_a_unit_without_a_language_has_an_empty_side_and_the_first_of_two_counts() -> None:
    german = '<tu><tuv xml:lang="de"><seg>Los.</seg></tuv><tuv xml:lang="fr"><seg>Va !</seg></tuv></tu>'
    twice = UNIT.replace("</tu>", '<tuv xml:lang="fr"><seg>Pars !</seg></tuv></tu>')
    assert pairs_of(german + twice) == [Pair("", "Va !"), Pair("Go.", "Va !")]


def test_the_exact_language_comes_before_one_of_its_regions() -> None:
    unit = UNIT.replace("<tu>", '<tu><tuv xml:lang="en-GB"><seg>Leave.</seg></tuv>')
    assert pairs_of(unit) == [Pair("Go.", "Va !")]


BOMB = '<?xml version="1.0"?><!DOCTYPE tmx [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><tmx><body>'
THIEF = '<?xml version="1.0"?><!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]><tmx><body>'


@pytest.mark.parametrize(
    ("head", "body", "message"),
    [
        (BOMB, UNIT, "declares entities"),
        (THIEF, UNIT, "declares entities"),
        (HEAD, "<a>" * 60 + UNIT, "deeper than 50"),
        (HEAD, "".join(f"<a{i}/>" for i in range(600)) + UNIT, "more than 500 names"),
        (HEAD, f"<a b='{'x' * (3 << 20)}'/>" + UNIT, "a tag or comment is longer"),
        (HEAD, UNIT.replace("Go.", "Go. " * 300_000), "the segment is longer"),
        (HEAD, UNIT + "\n<tu></tv>", "line 2: this is no sound TMX: mismatched tag"),
        (HEAD, "", "no unit has both en and fr; the languages are none"),
    ],
)
def test_a_dangerous_or_broken_file_is_refused(head: str, body: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pairs_of(body, head=head)


def test_a_long_file_of_short_segments_is_no_bomb() -> None:
    def blocks() -> Iterator[bytes]:
        yield HEAD.encode()
        for _ in range(40):
            yield (UNIT * 1000).encode()
        yield b"</body></tmx>"

    assert sum(1 for _ in read_tmx(blocks(), "pairs", src_lang="en", tgt_lang="fr")) == 40_000


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        (b"<?xml version", True),
        (b"\xef\xbb\xbf\n <tmx", True),
        ("<?xml".encode("utf-16"), True),
        (b"<!DOCTYPE tmx", True),
        (b"<b>\t<b>", False),
        (b"", False),
        ("Go.\tVa".encode("utf-16"), False),
    ],
)
def test_a_tmx_file_is_known_by_its_first_bytes(opening: bytes, expected: bool) -> None:
    assert looks_like_tmx(opening) is expected
