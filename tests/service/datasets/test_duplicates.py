"""Repetitions found through files are those that a set in memory finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.datasets import duplicates
from service.datasets.duplicates import DuplicateFinder, is_set


@settings(max_examples=30)
@given(st.lists(st.integers(0, 60).map(lambda n: str(n).encode()), max_size=200))
def test_repetitions_are_those_that_a_set_finds(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_MAX_PENDING", 7)
        patch.setattr(duplicates, "_MAX_SEEN", 2)  # so that a file takes several passes
        patch.setattr(duplicates, "_NUM_BUCKETS", 3)
        folder = tmp_path_factory.mktemp("hashes")
        finder = DuplicateFinder(folder)
        for line in lines:
            finder.add(line)
        bits = finder.repetitions()
    assert [is_set(bits, i) for i in range(len(lines))] == [line in lines[:i] for i, line in enumerate(lines)]
    assert list(folder.iterdir()) == []


def test_no_line_is_no_repetition(tmp_path: Path) -> None:
    assert not any(DuplicateFinder(tmp_path).repetitions())
