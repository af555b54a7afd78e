"""A network that is a table: a distribution over a tiny vocabulary, drawn anew for each history. For tests."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.search import NEVER

VOCAB = 8  # <unk> <pad> <bos> <eos>, three words, and one column of padding
WORDS = (4, 5, 6)


@cache
def next_log_probs(history: tuple[int, ...], table: int, *, spread: float = 1.5, end: float = 0.0) -> Tensor:
    """What may follow a history, in the table of that number; nobody may write into it.

    Args:
        spread: of the logits; the smaller, the flatter, and the more does a narrow beam miss.
        end: added to the logit of `<eos>`.

    Returns:
        [V] float32; -inf for the padding.
    """
    key = table
    for token in history:
        key = (key * 31 + token + 1) % 1_000_003
    logits = spread * torch.randn(VOCAB, generator=torch.Generator().manual_seed(key))
    logits[EOS_ID] += end
    logits[WORDS[-1] + 1 :] = NEVER
    return torch.log_softmax(logits, dim=0)
