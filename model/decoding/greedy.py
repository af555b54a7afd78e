"""Greedy search over many segments at once: each takes the most probable token, until `<eos>`. Never sees the network.

The same as a beam of width 1, made of fewer operations.

Shape letters: R segments (one row each), V vocabulary, T tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.constraints import constrain
from model.decoding.coverage import Coverage
from model.decoding.lane import Absorbed, LaneSearch, LiveSegment, extended
from model.decoding.search import NEVER, Finish, Hypothesis, SegmentResult
from model.decoding.selection import best_of
from model.network.token_scores import TokenScores

_GROWTH = 32


class GreedySearch(LaneSearch):
    """The live rows of all greedy segments of a lane."""

    def __init__(self, k: int, device: torch.device) -> None:
        super().__init__(k, device)
        self._log_probs: np.ndarray = np.zeros((0, _GROWTH), dtype=np.float32)  # [R, T] of each token
        self._tokens: np.ndarray = np.zeros((0, _GROWTH), dtype=np.int64)  # [R, T]
        self._lens: np.ndarray = np.zeros(0, dtype=np.int64)  # [R]
        self._limits: np.ndarray = np.zeros(0, dtype=np.int64)  # [R]
        self._coverage = Coverage()

    def add(self, segments: Sequence[LiveSegment]) -> None:
        super().add(segments)
        num_new = len(segments)
        self._log_probs, self._tokens = extended(self._log_probs, num_new), extended(self._tokens, num_new)
        self._lens = extended(self._lens, num_new)
        self._limits = np.append(self._limits, [segment.limit for segment in segments])
        self._coverage.add(segments, 1)

    def absorb(self, scores: TokenScores, attention: Tensor | None) -> Absorbed:
        self._coverage.absorb(attention)
        if self.is_constrained:
            for segment, length in zip(self.segments, self._lens.tolist(), strict=True):
                segment.num_tokens = length
            constrain(scores, 1, self.segments, lambda i: [self._history(i)])
        else:
            constrain(scores, 1, (), lambda i: [])
        best, ids = best_of(scores)
        if self._lens.max() >= self._tokens.shape[1]:
            self._widen()
        at = (np.arange(len(ids)), self._lens)
        self._tokens[at] = ids
        self._log_probs[at] = best
        self._lens += 1
        is_done = (ids == EOS_ID) | (self._lens >= self._limits) | (best == NEVER)
        ended = is_done.nonzero()[0].tolist()
        return Absorbed(ids=ids, rows=None, done=[(position, self._result(position, "length")) for position in ended])

    def _widen(self) -> None:
        more = ((0, 0), (0, self._tokens.shape[1]))
        self._tokens, self._log_probs = np.pad(self._tokens, more), np.pad(self._log_probs, more)

    def _history(self, position: int) -> list[int]:
        tokens: list[int] = self._tokens[position, : int(self._lens[position])].tolist()
        return tokens

    def keep(self, order: Sequence[int]) -> None:
        super().keep(order)
        at = np.array(order, dtype=np.int64)
        self._log_probs, self._tokens = self._log_probs[at], self._tokens[at]
        self._lens, self._limits = self._lens[at], self._limits[at]
        self._coverage.keep(order)

    def cut(self, position: int, finish: Finish) -> SegmentResult:
        return self._result(position, finish)

    def agreed_ids(self, position: int) -> list[int]:
        return self._history(position)

    def _result(self, position: int, cut: Finish) -> SegmentResult:
        """Of what a segment has; `cut` is why it stops where it has not ended itself."""
        segment = self.segments[position]
        num_steps = int(self._lens[position])
        tokens: list[int] = self._tokens[position, :num_steps].tolist()
        log_probs: list[float] = self._log_probs[position, :num_steps].tolist()
        has_ended = tokens[-1] == EOS_ID and log_probs[-1] > NEVER
        if log_probs[-1] == NEVER:  # nothing was allowed any more
            tokens, log_probs = tokens[:-1], log_probs[:-1]
        log_prob = math.fsum(log_probs)
        score = segment.options.score(log_prob, max(1, len(tokens)), self._coverage.of(position, 0))
        hypothesis = Hypothesis(
            token_ids=tuple(tokens[:-1] if has_ended else tokens),
            log_prob=log_prob,
            score=score,
            finish="eos" if has_ended else cut,
        )
        best_other = _best_of_others(log_probs, len(segment.options.prefix_ids))
        bound = segment.options.best_score_below(best_other, segment.limit)
        return SegmentResult(
            hypotheses=(hypothesis,),
            num_steps=num_steps,
            is_optimal=True if has_ended and bound <= score else None,
            bound=max(bound, score) if has_ended else None,
        )


def _best_of_others(log_probs: Sequence[float], num_forced: int) -> float:
    """Of the log-probabilities of the chosen tokens: no hypothesis that leaves the greedy one after those that are
    forced is more probable.

    Any other token at t has at most what the chosen one left: log(1 - p).
    """
    best, before = NEVER, 0.0
    for t, log_prob in enumerate(log_probs):
        if t >= num_forced:
            best = max(best, before + math.log(-math.expm1(min(log_prob, -1e-7))))
        before += log_prob
    return best
