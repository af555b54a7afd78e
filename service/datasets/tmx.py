"""Sentence pairs out of TMX, the exchange format of translation memories (LISA TMX 1.4b), in bounded memory.

Entities are refused: a few lines of them unpack to gigabytes, or read files of the server. So are a tag or a segment of
a MiB, deep nesting, and ever new names of tags, all of which the parser would hold in memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from xml.parsers import expat

from model.data.corpus import Pair
from model.errors import DataError

_MAX_HELD_BYTES = 1 << 20
_MAX_DEPTH = 50
_MAX_NAMES = 500
_MAX_SHOWN_LANGUAGES = 10
_CODES = frozenset(("bpt", "ept", "ph", "it", "ut"))  # mark-up of the tool that wrote the file, no text
_START = re.compile(rb"\s*<(\?xml|tmx|!DOCTYPE|!--)")


def looks_like_tmx(opening: bytes) -> bool:
    """Whether a file that begins so is XML, in UTF-8 or UTF-16."""
    if opening[:2] in (b"\xff\xfe", b"\xfe\xff"):
        opening = opening[: len(opening) // 2 * 2].decode("utf-16", "replace").encode()
    return _START.match(opening.removeprefix(b"\xef\xbb\xbf")) is not None


def read_tmx(blocks: Iterable[bytes], path: str, *, src_lang: str, tgt_lang: str) -> Iterator[Pair]:
    """A pair for each translation unit, its first segment in each of the two languages; `en` also means `en-GB`.

    A unit without one of them gives a pair with an empty side.

    Raises:
        DataError: broken or dangerous XML, or no unit at all that has both languages.
    """
    parser = _TmxParser(path, src_lang, tgt_lang)
    for block in blocks:
        parser.feed(block)
        yield from parser.take()
    parser.feed(b"", is_last=True)
    yield from parser.take()
    parser.check_found()


class _TmxParser:
    def __init__(self, path: str, src_lang: str, tgt_lang: str) -> None:
        self._path = path
        self._langs = (src_lang.lower(), tgt_lang.lower())
        self._pairs: list[Pair] = []
        self._texts: dict[str, str] = {}  # of the unit at hand, by language
        self._lang = ""
        self._segment: list[str] | None = None
        self._segment_size = 0
        self._code_depth = self._depth = 0
        self._names: set[str] = set()
        self._seen_langs: Counter[str] = Counter()
        self._num_fed = 0
        self._has_both = False
        self._fault: DataError | None = None
        self._expat = expat.ParserCreate()
        self._expat.buffer_text = True
        self._expat.StartElementHandler = self._on_start
        self._expat.EndElementHandler = self._on_end
        self._expat.CharacterDataHandler = self._on_text
        self._expat.EntityDeclHandler = self._on_entity

    def feed(self, block: bytes, *, is_last: bool = False) -> None:
        self._num_fed += len(block)
        try:
            self._expat.Parse(block, is_last)
        except expat.ExpatError as exc:
            where = f"column {exc.offset + 1}, byte {self._expat.ErrorByteIndex}"
            cause = expat.ErrorString(exc.code)
            if is_last:
                cause = f"the file ends in the middle ({cause})"
            raise DataError(f"this is no sound TMX: {cause} ({where})", self._path, exc.lineno) from exc
        if self._num_fed - max(self._expat.CurrentByteIndex, 0) > _MAX_HELD_BYTES + len(block):
            raise self._refusal(f"a tag or comment is longer than {_MAX_HELD_BYTES} bytes")

    def take(self) -> list[Pair]:
        pairs, self._pairs = self._pairs, []
        return pairs

    def check_found(self) -> None:
        if not self._has_both:
            langs = ", ".join(f"{code} ({count})" for code, count in self._seen_langs.most_common(_MAX_SHOWN_LANGUAGES))
            raise DataError(
                f"no unit has both {self._langs[0]} and {self._langs[1]}; the languages are {langs or 'none'}",
                self._path,
            )

    def _on_start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._names.update((name, *attributes))
        if self._depth > _MAX_DEPTH:
            raise self._refusal(f"tags are nested deeper than {_MAX_DEPTH}")
        if len(self._names) > _MAX_NAMES:
            raise self._refusal(f"there are more than {_MAX_NAMES} names of tags and attributes")
        if name == "tu":
            self._texts = {}
        elif name == "tuv":
            self._lang = (attributes.get("xml:lang") or attributes.get("lang") or "").lower()[:40]
            if self._lang in self._seen_langs or len(self._seen_langs) < _MAX_NAMES:
                self._seen_langs[self._lang] += 1
        elif name == "seg":
            self._segment, self._segment_size, self._code_depth = [], 0, 0
        elif name in _CODES and self._segment is not None:
            self._code_depth += 1

    def _on_end(self, name: str) -> None:
        self._depth -= 1
        if name == "tu":
            self._finish_unit()
        elif name == "seg" and self._segment is not None:
            self._texts.setdefault(self._lang, "".join(self._segment))
            self._segment = None
        elif name in _CODES and self._segment is not None:
            self._code_depth -= 1

    def _on_text(self, text: str) -> None:
        if self._segment is None or self._code_depth:
            return
        self._segment.append(text)
        self._segment_size += len(text)
        if self._segment_size > _MAX_HELD_BYTES:
            raise self._refusal(f"the segment is longer than {_MAX_HELD_BYTES} characters")

    def _on_entity(self, *_: object) -> None:
        raise self._refusal("it declares entities, which are not allowed here")

    def _finish_unit(self) -> None:
        src, tgt = (self._text_in(lang) for lang in self._langs)
        self._has_both = self._has_both or bool(src and tgt)
        self._pairs.append(Pair(src, tgt))
        self._texts = {}

    def _text_in(self, lang: str) -> str:
        """The text in a language, or in one of its regions."""
        if lang in self._texts:
            return self._texts[lang]
        return next((text for code, text in self._texts.items() if code.split("-")[0].split("_")[0] == lang), "")

    def _refusal(self, cause: str) -> DataError:
        return DataError(f"this TMX is refused: {cause}", self._path, self._expat.CurrentLineNumber)
