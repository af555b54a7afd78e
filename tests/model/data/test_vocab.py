"""Tokens with counts, and their numbers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.vocab import BOS_ID, EOS_ID, PAD_ID, SPECIALS, UNK_ID, Vocabulary
from model.errors import DataError, InvalidValue

SENTENCES = [["b", "a", "b", "c"], ["a", "b", "d"]]

token_counts = st.dictionaries(st.text("abc<unkpad>", min_size=1), st.integers(1, 9))


def test_specials_have_the_ids_of_the_course() -> None:
    assert (UNK_ID, PAD_ID, BOS_ID, EOS_ID) == (0, 1, 2, 3)
    assert list(Vocabulary({})) == list(SPECIALS) == ["<unk>", "<pad>", "<bos>", "<eos>"]


def test_tokens_follow_the_specials_by_falling_count_then_by_alphabet() -> None:
    assert list(Vocabulary.from_sentences(SENTENCES))[4:] == ["b", "a", "c", "d"]


def test_rare_tokens_are_unknown_and_counted_there() -> None:
    vocab = Vocabulary.from_sentences(SENTENCES, min_freq=2)
    assert list(vocab)[4:] == ["b", "a"]
    assert vocab["c"] == UNK_ID
    assert "c" not in vocab
    assert (vocab.count("b"), vocab.count("c"), vocab.count("<unk>")) == (3, 0, 2)


def test_a_limit_keeps_the_most_frequent() -> None:
    vocab = Vocabulary.from_sentences(SENTENCES, max_tokens=5)
    assert list(vocab)[4:] == ["b"]
    assert vocab.count("<unk>") == 4


def test_text_cannot_forge_a_special() -> None:
    vocab = Vocabulary({"<eos>": 7, "a": 1})
    assert list(vocab) == [*SPECIALS, "a"]
    assert vocab.count("<eos>") == 0


@given(token_counts, st.integers(1, 5), st.none() | st.integers(5, 9))
def test_ids_and_tokens_are_inverse(counts: dict[str, int], min_freq: int, max_tokens: int | None) -> None:
    vocab = Vocabulary(counts, min_freq=min_freq, max_tokens=max_tokens)
    assert [vocab[token] for token in vocab] == list(range(len(vocab)))
    assert [vocab[token_id] for token_id in range(len(vocab))] == list(vocab)
    assert max_tokens is None or len(vocab) <= max_tokens


@given(token_counts, st.integers(1, 5))
def test_no_occurrence_is_lost(counts: dict[str, int], min_freq: int) -> None:
    vocab = Vocabulary(counts, min_freq=min_freq)
    assert sum(map(vocab.count, vocab)) == sum(count for token, count in counts.items() if token not in SPECIALS)


@given(st.lists(st.text("abcd", min_size=1)), st.randoms())
def test_the_order_of_sentences_does_not_matter(tokens: list[str], random: Any) -> None:
    mixed = random.sample(tokens, len(tokens))
    assert list(Vocabulary(Counter(tokens))) == list(Vocabulary(Counter(mixed)))


@given(token_counts, st.integers(1, 5))
def test_json_gives_the_same_vocabulary_back(counts: dict[str, int], min_freq: int) -> None:
    vocab = Vocabulary(counts, min_freq=min_freq)
    again = Vocabulary.from_json(json.loads(json.dumps(vocab.to_json())))
    assert list(again) == list(vocab)
    assert again.to_json() == vocab.to_json()


def test_a_loaded_vocabulary_keeps_the_order_of_its_file() -> None:
    data = Vocabulary({"a": 1, "b": 2}).to_json()
    data["tokens"].reverse()
    assert list(Vocabulary.from_json(data))[4:] == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"tokens": None},
        {"tokens": ["a"]},
        {"tokens": [["a", "many"]]},
        {"tokens": [["a", 1], ["a", 2]]},
        {"tokens": [["<eos>", 1]]},
        {"min_freq": []},
    ],
)
def test_a_damaged_vocabulary_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="vocabulary"):
        Vocabulary.from_json(Vocabulary({"a": 1}).to_json() | change)


@pytest.mark.parametrize("data", [None, [], "text", {}])
def test_json_that_is_no_vocabulary_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="not a vocabulary"):
        Vocabulary.from_json(data)


@pytest.mark.parametrize("token_id", [-1, 5])
def test_an_id_outside_is_refused(token_id: int) -> None:
    with pytest.raises(InvalidValue, match="from 0 to 4"):
        Vocabulary({"a": 1})[token_id]


@pytest.mark.parametrize("limits", [{"min_freq": 0}, {"max_tokens": 4}])
def test_a_limit_that_leaves_nothing_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(limits))):
        Vocabulary({"a": 1}, **limits)
