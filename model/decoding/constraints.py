"""What may not come next: special tokens, an early `<eos>`, banned sequences, repeated n-grams; and what has to come.

One mechanism for all of it: before a search looks at a step's log-probabilities, those of forbidden tokens become -inf.
Scores of the others stay as the network gave them. A forced token forbids all others at its position, and `<eos>`
before it; it stands above the other rules. A prefix is tokens forced at the first positions.

    history "le chat et le", no_repeat_ngram 2, banned ("chat", "noir")
    the bigram "le chat" has been        -> "chat" is forbidden
    the history does not end in "chat"   -> "noir" is not
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.lane import LiveSegment
from model.decoding.search import NEVER, NUM_BANNED, SearchOptions
from model.network.token_scores import TokenScores

_FINITE = torch.finfo(torch.float32).min


def constrain(
    scores: TokenScores, k: int, segments: Sequence[LiveSegment], history: Callable[[int], list[list[int]]]
) -> None:
    """Forbids, in place.

    Args:
        scores: of R·K rows.
        k: K.
        segments: R of them.
        history: tokens so far of each row of the segment at a position; called only where a rule needs them.
    """
    scores.forbid_first(NUM_BANNED)
    if not any(segment.options.is_constrained for segment in segments):
        return
    log_probs = scores.log_probs()
    for position, segment in enumerate(segments):
        if segment.options.is_constrained:
            rows = log_probs[position * k : (position + 1) * k]
            _constrain_segment(rows, segment, lambda position=position: history(position))  # type: ignore[misc]


def _constrain_segment(rows: Tensor, segment: LiveSegment, history: Callable[[], list[list[int]]]) -> None:
    options, t = segment.options, segment.num_tokens
    token_id = options.forced.get(t)
    if token_id is not None:
        forced = rows[:, token_id].clamp_min(_FINITE)
        rows.fill_(NEVER)
        rows[:, token_id] = forced
        return
    if t < options.num_due:
        rows[:, EOS_ID] = NEVER
    if options.no_repeat_ngram or options.banned_ids:
        for row, tokens in zip(rows, history(), strict=True):
            forbidden = forbidden_next(tokens, options)
            if forbidden:
                row[forbidden] = NEVER


def forbidden_next(tokens: Sequence[int], options: SearchOptions) -> list[int]:
    """Tokens that would repeat an n-gram of the history or complete a banned sequence."""
    forbidden: set[int] = set()
    n = options.no_repeat_ngram
    if n and len(tokens) >= n:
        tail = tuple(tokens[len(tokens) - n + 1 :])
        forbidden.update(tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tuple(tokens[i : i + n - 1]) == tail)
    for sequence in options.banned_ids:
        start = sequence[:-1]
        if not start or tuple(tokens[-len(start) :]) == start:
            forbidden.add(sequence[-1])
    return sorted(forbidden)
