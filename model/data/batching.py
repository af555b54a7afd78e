"""Token ids to batches: truncation, padding, and which sentences go together.

Lengths are the truth here: every batch carries them, and nothing downstream needs to look for pad ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.data.vocab import EOS_ID, PAD_ID
from model.errors import InvalidValue


def truncate_pad(ids: Sequence[int], num_steps: int, pad_id: int = PAD_ID) -> tuple[list[int], int]:
    """Exactly `num_steps` ids, cut off or filled up at the end, and how many of them are valid."""
    valid_len = min(len(ids), num_steps)
    return [*ids[:valid_len], *[pad_id] * (num_steps - valid_len)], valid_len


@dataclass(frozen=True, eq=False)
class Batch:
    """B sentence pairs, padded on the right.

    Both sides end with `<eos>`, unless truncation cut it off. The target has no `<bos>`: the decoder's input is `<bos>`
    and all but the last of `tgt_ids`.

    Attributes:
        src_ids: [B, S] int64.
        src_lens: [B] int64, valid lengths.
        tgt_ids: [B, T] int64.
        tgt_lens: [B] int64, valid lengths.
    """

    src_ids: torch.Tensor
    src_lens: torch.Tensor
    tgt_ids: torch.Tensor
    tgt_lens: torch.Tensor

    def __len__(self) -> int:
        return self.src_ids.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """As the course unpacks it: `X, X_valid_len, Y, Y_valid_len`."""
        return iter((self.src_ids, self.src_lens, self.tgt_ids, self.tgt_lens))

    @property
    def num_src_tokens(self) -> int:
        """Valid source tokens, `<eos>` included."""
        return int(self.src_lens.sum())

    @property
    def num_tgt_tokens(self) -> int:
        """Valid target tokens, `<eos>` included: what the loss is an average over."""
        return int(self.tgt_lens.sum())

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def _pad(sentences: Sequence[Sequence[int]], num_steps: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences with their `<eos>` as ids [B, S] and lens [B]."""
    ended = [[*ids, EOS_ID] for ids in sentences]
    width = max(map(len, ended)) if num_steps is None else num_steps
    rows, lens = zip(*(truncate_pad(ids, width) for ids in ended), strict=True)
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(lens, dtype=torch.int64)


def collate(src: Sequence[Sequence[int]], tgt: Sequence[Sequence[int]], *, num_steps: int | None = None) -> Batch:
    """One batch of token ids without specials: appends `<eos>` and pads to the longest.

    With `num_steps`, both sides become exactly so long, as in the course: a sentence that does not fit loses its end,
    `<eos>` included, so that the decoder is never taught to stop in the middle of a sentence.
    """
    if not src or len(src) != len(tgt):
        raise InvalidValue("batch", (len(src), len(tgt)), "as many source as target sentences, at least one")
    if num_steps is not None and num_steps < 1:
        raise InvalidValue("num_steps", num_steps, "a whole number from 1")
    return Batch(*_pad(src, num_steps), *_pad(tgt, num_steps))


def fixed_batches(
    src: Sequence[Sequence[int]],
    tgt: Sequence[Sequence[int]],
    *,
    batch_size: int,
    num_steps: int,
    seed: int | None = None,
) -> Iterator[Batch]:
    """The course's loader: batches of `batch_size` pairs (the last may be smaller), all `num_steps` long.

    In the order given, or shuffled by the seed.
    """
    if batch_size < 1:
        raise InvalidValue("batch_size", batch_size, "a whole number from 1")
    if len(src) != len(tgt):
        raise InvalidValue("batch", (len(src), len(tgt)), "as many source as target sentences")
    order = np.arange(len(src)) if seed is None else _rng(seed).permutation(len(src))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size].tolist()
        yield collate([src[i] for i in chosen], [tgt[i] for i in chosen], num_steps=num_steps)


def _rng(*seeds: int) -> np.random.Generator:
    if min(seeds) < 0:
        raise InvalidValue("seed", seeds[0] if len(seeds) == 1 else seeds, "a whole number from 0")
    return np.random.default_rng(seeds)


def _cut(order: Sequence[int], widths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cuts an order into runs of which rows × widest stays within `max_tokens`."""
    batches: list[list[int]] = []
    batch: list[int] = []
    width = 0
    for index in order:
        width = max(width, widths[index])
        if batch and (len(batch) + 1) * width > max_tokens:
            batches.append(batch)
            batch, width = [], widths[index]
        batch.append(index)
    return [*batches, batch] if batch else batches


def bucketed_batches(
    src_lens: Sequence[int], tgt_lens: Sequence[int], *, max_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """Which sentences go together, as indices: those of like length, so that little is padding.

    Sorted by (source, target) length, equal lengths in random order, cut so that rows × max(S, T) stays within
    `max_tokens`, the batches then shuffled. `(seed, epoch)` decides everything: a resumed run sees the same batches. A
    sentence longer than `max_tokens` makes a batch of its own.

    Args:
        src_lens, tgt_lens: tokens of each pair's sides, `<eos>` included.
    """
    if max_tokens < 1:
        raise InvalidValue("max_tokens", max_tokens, "a whole number from 1")
    if len(src_lens) != len(tgt_lens):
        raise InvalidValue("lengths", (len(src_lens), len(tgt_lens)), "as many source as target lengths")
    rng = _rng(seed, epoch)
    src, tgt = np.asarray(src_lens, dtype=np.int64), np.asarray(tgt_lens, dtype=np.int64)
    mixed = rng.permutation(len(src))
    order = mixed[np.lexsort((tgt[mixed], src[mixed]))]  # lexsort is stable: ties keep their random order
    batches = _cut(order.tolist(), np.maximum(src, tgt).tolist(), max_tokens)
    return [batches[i] for i in rng.permutation(len(batches)).tolist()]
