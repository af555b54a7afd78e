"""Counts through files are those in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.counting import TokenCounter, frequency_at, summarize

sentences = st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=3)))


@given(sentences, st.integers(1, 5))
def test_counts_through_files_are_those_in_memory(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[list[str]], max_types: int
) -> None:
    counter = TokenCounter(tmp_path_factory.mktemp("counts"), max_types=max_types)
    for sentence in sentences:
        counter.add(sentence)
    totals = list(counter.totals())
    expected = Counter(token for sentence in sentences for token in sentence)
    assert len(totals) == len(expected)
    assert dict(totals) == expected


def test_more_tokens_than_memory_take_several_passes_and_leave_no_file(tmp_path: Path) -> None:
    counter = TokenCounter(tmp_path, max_types=3)
    tokens = [str(i) for i in range(1000)]
    for token in tokens * 2:
        counter.add([token, "often"])
    assert len(list(tmp_path.iterdir())) > 1
    assert dict(counter.totals()) == dict.fromkeys(tokens, 2) | {"often": 2000}
    assert list(tmp_path.iterdir()) == []


def test_the_summary_has_the_most_frequent_and_how_many_are_how_frequent() -> None:
    totals = [(f"{i:04}", 1 + i % 3) for i in range(3000)]
    frequencies, top = summarize(totals, num_top=3)
    assert list(frequencies.items()) == [(3, 1000), (2, 1000), (1, 1000)]
    assert list(top.items()) == [("0002", 3), ("0005", 3), ("0008", 3)]


def test_the_frequency_at_a_rank_is_that_of_the_sorted_list() -> None:
    falling = [9, 9, 4, 1, 1, 1]
    assert list(frequency_at({9: 2, 4: 1, 1: 3}, range(1, 7))) == falling
