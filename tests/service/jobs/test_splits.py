"""Train, dev and test: nothing shared, the same ones everywhere."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.corpus import Example, Pair
from service.jobs.splits import Splits, split

WORDS = st.sampled_from(["Go.", "go.", "Run!", "Wait.", "I see.", "Va !", "Cours !", "Attends.", "Je vois.", "ß", "SS"])
PAIRS = st.lists(st.builds(Pair, WORDS, WORDS), min_size=1, max_size=30)


def numbered(count: int) -> list[Pair]:
    return [Pair(f"sentence {i}", f"phrase {i}") for i in range(count)]


def sentences(part: Iterable[Pair] | Iterable[Example]) -> set[tuple[int, str]]:
    found = set()
    for entry in part:
        texts = (entry.tgt,) if isinstance(entry, Pair) else entry.refs
        found |= {(0, entry.src.casefold()), *((1, text.casefold()) for text in texts)}
    return found


def is_disjoint(splits: Splits) -> bool:
    train, dev, test = sentences(splits.train), sentences(splits.dev), sentences(splits.test)
    return not (train & dev or train & test or dev & test)


@given(PAIRS, st.floats(0, 0.5), st.floats(0, 0.5))
def test_no_sentence_is_in_two_parts(pairs: list[Pair], dev_share: float, test_share: float) -> None:
    assert is_disjoint(split(pairs, dev_share=dev_share, test_share=test_share))


@given(PAIRS, PAIRS, PAIRS)
def test_no_sentence_is_in_two_parts_where_they_come_from_datasets(a: list[Pair], b: list[Pair], c: list[Pair]) -> None:
    splits = split(a, dev=b, test=c)
    assert is_disjoint(splits)
    assert sentences(splits.test) == sentences(c)


def test_shares_are_met() -> None:
    splits = split(numbered(5000), dev_share=0.1, test_share=0.2)
    assert len(splits.dev) == pytest.approx(500, rel=0.15)
    assert len(splits.test) == pytest.approx(1000, rel=0.15)
    assert len(splits.train) + len(splits.dev) + len(splits.test) == 5000


def test_order_changes_no_part() -> None:
    orders = (numbered(200), numbered(200)[::-1])
    forwards, backwards = (split(pairs, dev_share=0.1, test_share=0.1) for pairs in orders)
    assert set(forwards.train) == set(backwards.train)
    assert {e.src for e in forwards.test} == {e.src for e in backwards.test}


def test_a_test_sentence_stays_one_when_the_dataset_grows() -> None:
    small, large = (split(numbered(size), dev_share=0.1, test_share=0.1) for size in (500, 2000))
    assert {e.src for e in small.test} <= {e.src for e in large.test}


@pytest.mark.parametrize("count", [3, 10])
def test_a_small_dataset_has_something_in_every_part(count: int) -> None:
    splits = split(numbered(count), dev_share=0.01, test_share=0.01)
    assert (len(splits.dev), len(splits.test), len(splits.train)) == (1, 1, count - 2)


def test_all_translations_of_a_held_out_sentence_are_its_references() -> None:
    pairs = [*numbered(3), Pair("sentence 1", "autre phrase")]
    held_out = split(pairs, dev_share=0.5, test_share=0.5)
    refs = {example.src: example.refs for example in (*held_out.dev, *held_out.test)}
    assert refs["sentence 1"] == ("phrase 1", "autre phrase")


def test_what_is_dropped_is_counted() -> None:
    train = [Pair("a", "x"), Pair("b", "y"), Pair("c", "z")]
    splits = split(train, test=[Pair("q", "X"), Pair("B", "p")])
    assert (splits.train, splits.num_dropped) == ([Pair("c", "z")], 2)
