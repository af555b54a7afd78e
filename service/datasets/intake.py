"""From pairs as they were sent to a dataset that is ready to be published, in bounded memory.

Two passes. While pairs arrive they are normalised, judged, noted for duplicates, and written to a file of candidates.
At the end that file is read once more: repetitions are left out, the rest is counted, hashed and written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from model.data.corpus import CleaningReport, CleaningRules, Pair, normalize_all
from model.data.statistics import CorpusStatistics, SideCounter, SideStatistics, course_words_all
from model.errors import DataError
from service.datasets.duplicates import DuplicateFinder, is_set
from service.datasets.language import guess, warnings_about
from service.datasets.store import PAIRS_FILE

_BATCH_PAIRS = 500
_FEW_PAIRS = 20
_FEW_CHARS = 20_000  # of a few pairs: such long texts are worked on without waiting for more
_SAMPLE_SIZE = 1000
_MAX_SHOWN_CHARS = 200  # of an example in the report


class _Side:
    """Counts one side of the kept pairs, and keeps a sample of it. `folder` is made, and is gone at the end."""

    def __init__(self, lang: str, folder: Path) -> None:
        folder.mkdir()
        self.lang = lang
        self.sample: list[str] = []
        self._folder = folder
        self._counter = SideCounter(lang, folder)

    def add(self, texts: Sequence[str], sample: Iterable[str]) -> None:
        self._counter.add(course_words_all(texts))
        self.sample.extend(text[:_MAX_SHOWN_CHARS] for text in sample)

    def statistics(self) -> SideStatistics:
        statistics = self._counter.statistics()
        self._folder.rmdir()
        return statistics


class Intake:
    """Takes pairs, some at a time, and makes a dataset of them in `folder`, which has to be empty."""

    def __init__(self, folder: Path, rules: CleaningRules) -> None:
        self._folder = folder
        self._rules = rules
        self._report = CleaningReport()
        self._duplicates = DuplicateFinder(folder)
        self._candidates_path = folder / "candidates"
        self._candidates = self._candidates_path.open("wb")

    def close(self) -> None:
        self._candidates.close()

    def add(self, pairs: Iterable[Pair]) -> None:
        """The first pass."""
        for batch in _batches(pairs):
            self._report.num_read += len(batch)
            sources, targets = normalize_all([pair.src for pair in batch]), normalize_all([pair.tgt for pair in batch])
            lines = []
            for src, tgt in zip(sources, targets, strict=True):
                fault = self._rules.fault_of(src, tgt)
                if fault is None:
                    lines.append(f"{src}\t{tgt}\n".encode())
                else:
                    self._report.add(_shortened(src, tgt), fault)
            for line in lines:
                self._duplicates.add(line)
            self._candidates.writelines(lines)

    def finish(self, *, src_lang: str, tgt_lang: str) -> dict[str, Any]:
        """The second pass; what `dataset.json` says of the pairs.

        Raises:
            DataError: no pair is left.
        """
        self._candidates.close()
        repetitions = self._duplicates.repetitions() if self._rules.drop_duplicates else bytearray()
        self._report.num_kept = self._duplicates.num_lines - sum(map(int.bit_count, repetitions))
        if not self._report.num_kept:
            raise DataError(f"no pair is left to train on ({self._report})")
        sides = [_Side(lang, self._folder / f"counts-{lang}-{i}") for i, lang in enumerate((src_lang, tgt_lang))]
        sha256, num_bytes = self._write(self._kept(repetitions), sides)
        self._candidates_path.unlink()
        return {
            "sha256": sha256,
            "source": src_lang,
            "target": tgt_lang,
            "num_pairs": self._report.num_kept,
            "num_bytes": num_bytes,
            "report": self._described(*sides),
        }

    def _write(self, pairs: Iterable[Pair], sides: list[_Side]) -> tuple[str, int]:
        """Writes and counts the pairs; the sha256 and size of what was written."""
        digest = hashlib.sha256()
        num_bytes = num_written = 0
        step = max(1, self._report.num_kept // _SAMPLE_SIZE)
        with (self._folder / PAIRS_FILE).open("wb") as out:
            for batch in _batches(pairs):
                content = "".join(f"{src}\t{tgt}\n" for src, tgt in batch).encode()
                out.write(content)
                digest.update(content)
                num_bytes += len(content)
                for side, texts in zip(sides, zip(*batch, strict=True), strict=True):
                    side.add(texts, texts[-num_written % step :: step])
                num_written += len(batch)
            out.flush()
            os.fsync(out.fileno())
        return digest.hexdigest(), num_bytes

    def _described(self, src: _Side, tgt: _Side) -> dict[str, Any]:
        statistics = CorpusStatistics(num_pairs=self._report.num_kept, src=src.statistics(), tgt=tgt.statistics())
        languages = {"source": guess(src.sample), "target": guess(tgt.sample)}
        return {
            **self._report.to_json(),
            "rules": {"max_words": self._rules.max_words, "max_ratio": self._rules.max_ratio},
            "languages": languages,
            "warnings": warnings_about({"source": src.lang, "target": tgt.lang}, languages),
            "statistics": statistics.to_json(),
        }

    def _kept(self, repetitions: bytearray) -> Iterator[Pair]:
        with self._candidates_path.open(encoding="utf-8", newline="\n") as candidates:
            for number, line in enumerate(candidates):
                src, _, tgt = line[:-1].partition("\t")
                if repetitions and is_set(repetitions, number):
                    self._report.add(_shortened(src, tgt), "duplicate")
                else:
                    yield Pair(src, tgt)


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Some pairs at a time: enough to work on them together, few enough to hold."""
    pairs = iter(pairs)
    batch: list[Pair] = []
    while few := list(islice(pairs, _FEW_PAIRS)):
        batch += few
        if len(batch) >= _BATCH_PAIRS or sum(len(src) + len(tgt) for src, tgt in few) > _FEW_CHARS:
            yield batch
            batch = []
    if batch:
        yield batch


def _shortened(src: str, tgt: str) -> Pair:
    return Pair(src[:_MAX_SHOWN_CHARS], tgt[:_MAX_SHOWN_CHARS])
