"""Padding, the course's loader and length buckets."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.data.batching import Batch, bucketed_batches, collate, fixed_batches, truncate_pad
from model.data.vocab import EOS_ID, PAD_ID
from model.errors import InvalidValue

sentence = st.lists(st.integers(4, 99), max_size=9)
sides = st.lists(st.tuples(sentence, sentence), min_size=1, max_size=7).map(
    lambda pairs: tuple(map(list, zip(*pairs, strict=True)))
)
lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=60)


def rows(ids: torch.Tensor, lens: torch.Tensor) -> list[list[int]]:
    """The valid part of each row."""
    return [row[:length] for row, length in zip(ids.tolist(), lens.tolist(), strict=True)]


# truncate_pad


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], ([PAD_ID] * 3, 0)),
        ([7, 8], ([7, 8, PAD_ID], 2)),
        ([7, 8, 9], ([7, 8, 9], 3)),
        ([7, 8, 9, 4], ([7, 8, 9], 3)),
    ],
)
def test_a_sentence_is_cut_off_or_filled_up_to_the_steps(ids: list[int], expected: tuple[list[int], int]) -> None:
    assert truncate_pad(ids, 3) == expected


# collate


def test_both_sides_end_with_eos_and_are_padded_to_their_longest() -> None:
    batch = collate([[5, 6, 7], [8]], [[9], [10, 11, 12, 13]])
    assert batch.src_ids.tolist() == [[5, 6, 7, EOS_ID], [8, EOS_ID, PAD_ID, PAD_ID]]
    assert batch.tgt_ids.tolist() == [[9, EOS_ID, PAD_ID, PAD_ID, PAD_ID], [10, 11, 12, 13, EOS_ID]]
    assert (batch.src_lens.tolist(), batch.tgt_lens.tolist()) == ([4, 2], [2, 5])


@given(sides)
def test_the_valid_part_of_a_batch_is_what_was_put_in(pair: tuple[list[list[int]], list[list[int]]]) -> None:
    src, tgt = pair
    batch = collate(src, tgt)
    assert rows(batch.src_ids, batch.src_lens) == [[*ids, EOS_ID] for ids in src]
    assert rows(batch.tgt_ids, batch.tgt_lens) == [[*ids, EOS_ID] for ids in tgt]
    assert batch.num_src_tokens == sum(map(len, src)) + len(src)
    assert batch.num_tgt_tokens == sum(map(len, tgt)) + len(tgt)


@given(sides, st.integers(1, 12))
def test_with_steps_each_side_is_the_course_oracle(
    pair: tuple[list[list[int]], list[list[int]]], num_steps: int
) -> None:
    src, tgt = pair
    batch = collate(src, tgt, num_steps=num_steps)
    for ids, lens, sentences in ((batch.src_ids, batch.src_lens, src), (batch.tgt_ids, batch.tgt_lens, tgt)):
        expected = torch.tensor([([*s, EOS_ID] + [PAD_ID] * num_steps)[:num_steps] for s in sentences])
        assert torch.equal(ids, expected)
        assert torch.equal(lens, (expected != PAD_ID).sum(dim=1))  # no sentence here holds a pad id of its own


def test_a_truncated_sentence_loses_its_eos() -> None:
    assert collate([[5, 6, 7]], [[8, 9]], num_steps=3).src_ids.tolist() == [[5, 6, 7]]
    assert collate([[5, 6, 7]], [[8, 9]], num_steps=3).tgt_ids.tolist() == [[8, 9, EOS_ID]]


def test_an_empty_sentence_is_its_eos() -> None:
    batch = collate([[]], [[]])
    assert batch.src_ids.tolist() == batch.tgt_ids.tolist() == [[EOS_ID]]


def test_a_batch_unpacks_as_in_the_course() -> None:
    batch = collate([[5, 6], [7]], [[8], [9]])
    x, x_valid_len, y, y_valid_len = batch
    assert x is batch.src_ids
    assert x_valid_len is batch.src_lens
    assert y is batch.tgt_ids
    assert y_valid_len is batch.tgt_lens
    assert all(tensor.dtype == torch.int64 for tensor in batch)
    assert len(batch) == 2


def test_a_batch_moves_as_a_whole() -> None:
    moved = collate([[5]], [[6]]).to("meta")
    assert isinstance(moved, Batch)
    assert {tensor.device.type for tensor in moved} == {"meta"}


@pytest.mark.parametrize(("src", "tgt"), [([], []), ([[4]], []), ([[4]], [[5], [6]])])
def test_sides_of_unequal_number_or_none_are_refused(src: list[list[int]], tgt: list[list[int]]) -> None:
    with pytest.raises(InvalidValue, match="batch"):
        collate(src, tgt)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InvalidValue, match="num_steps"):
        collate([[4]], [[5]], num_steps=0)


# fixed_batches

SRC = [[10 + i] for i in range(7)]
TGT = [[20 + i, 30 + i] for i in range(7)]


def test_without_a_seed_the_order_is_kept_and_the_last_batch_is_smaller() -> None:
    batches = list(fixed_batches(SRC, TGT, batch_size=3, num_steps=5))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [row[0] for batch in batches for row in batch.src_ids.tolist()] == [ids[0] for ids in SRC]
    assert {tuple(batch.src_ids.shape[1:]) for batch in batches} == {(5,)}


def test_shuffling_keeps_every_pair_together() -> None:
    batches = list(fixed_batches(SRC, TGT, batch_size=3, num_steps=5, seed=1))
    pairs = [
        (x[0], y[0]) for batch in batches for x, y in zip(batch.src_ids.tolist(), batch.tgt_ids.tolist(), strict=True)
    ]
    assert pairs != [(10 + i, 20 + i) for i in range(7)]
    assert sorted(pairs) == [(10 + i, 20 + i) for i in range(7)]


def test_the_same_seed_shuffles_alike() -> None:
    first, again, other = (
        [batch.src_ids.tolist() for batch in fixed_batches(SRC, TGT, batch_size=3, num_steps=5, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_no_pairs_make_no_batch() -> None:
    assert list(fixed_batches([], [], batch_size=3, num_steps=5)) == []


@pytest.mark.parametrize(("batch_size", "num_tgt"), [(0, 7), (3, 6)])
def test_a_loader_that_cannot_work_is_refused(batch_size: int, num_tgt: int) -> None:
    with pytest.raises(InvalidValue, match="batch"):
        list(fixed_batches(SRC, TGT[:num_tgt], batch_size=batch_size, num_steps=5))


# bucketed_batches


def buckets(lens: list[tuple[int, int]], *, max_tokens: int = 60, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    src_lens, tgt_lens = [src for src, _ in lens], [tgt for _, tgt in lens]
    return bucketed_batches(src_lens, tgt_lens, max_tokens=max_tokens, seed=seed, epoch=epoch)


@given(lengths, st.integers(1, 90), st.integers(0, 3), st.integers(0, 3))
def test_every_sentence_is_in_exactly_one_batch(
    lens: list[tuple[int, int]], max_tokens: int, seed: int, epoch: int
) -> None:
    batches = buckets(lens, max_tokens=max_tokens, seed=seed, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lens)))


@given(lengths, st.integers(1, 90))
def test_a_batch_stays_within_its_tokens_or_holds_one_sentence(lens: list[tuple[int, int]], max_tokens: int) -> None:
    for batch in buckets(lens, max_tokens=max_tokens):
        assert len(batch) == 1 or len(batch) * max(max(lens[index]) for index in batch) <= max_tokens


@given(lengths)
def test_batches_do_not_overlap_in_length(lens: list[tuple[int, int]]) -> None:
    spans = sorted((min(lens[i] for i in batch), max(lens[i] for i in batch)) for batch in buckets(lens))
    assert all(this[1] <= following[0] for this, following in pairwise(spans))


@given(lengths, st.integers(0, 3), st.integers(0, 3))
def test_seed_and_epoch_decide_everything(lens: list[tuple[int, int]], seed: int, epoch: int) -> None:
    assert buckets(lens, seed=seed, epoch=epoch) == buckets(lens, seed=seed, epoch=epoch)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_mixes_otherwise(other: dict[str, int]) -> None:
    lens = [(5, 7)] * 50
    first, second = buckets(lens), buckets(lens, **other)
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


def test_batches_do_not_come_from_short_to_long() -> None:
    batches = buckets([(length, length) for length in range(1, 31)])
    widths = [max(batch) for batch in batches]
    assert widths != sorted(widths)


@pytest.mark.parametrize("change", [{"max_tokens": 0}, {"seed": -1}, {"epoch": -1}])
def test_a_parameter_outside_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(InvalidValue, match=r"max_tokens|seed"):
        buckets([(1, 2)], **change)


def test_unequal_numbers_of_lengths_are_refused() -> None:
    with pytest.raises(InvalidValue, match="lengths"):
        bucketed_batches([1, 2], [1], max_tokens=9, seed=0, epoch=0)
