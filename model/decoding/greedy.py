"""Greedy search over many segments at once: each takes the most probable token, until `<eos>`. Never sees the network.

The same as a beam of width 1, made of fewer operations.

Shape letters: R segments (one row each), V vocabulary, T tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.constraints import constrain
from model.decoding.coverage import Coverage
from model.decoding.lane import Absorbed, LaneSearch, LiveSegment
from model.decoding.search import NEVER, Finish, Hypothesis, SegmentResult
from model.decoding.selection import best_of
from model.network.token_scores import TokenScores

_GROWTH = 32


class GreedySearch(LaneSearch):
    """The live rows of all greedy segments of a lane."""

    def __init__(self, k: int, device: torch.device) -> None:
        super().__init__(k, device)
        self._log_probs = torch.empty(0, _GROWTH, device=device)  # [R, T] of each token
        self._tokens = torch.empty(0, _GROWTH, dtype=torch.int64, device=device)  # [R, T]
        self._lens = torch.empty(0, dtype=torch.int64, device=device)  # [R]
        self._limits = torch.empty(0, dtype=torch.int64, device=device)  # [R]
        self._coverage = Coverage()

    def add(self, segments: Sequence[LiveSegment]) -> None:
        super().add(segments)
        num_new, width = len(segments), self._tokens.shape[1]
        self._log_probs = torch.cat((self._log_probs, self._log_probs.new_zeros(num_new, width)))
        self._tokens = torch.cat((self._tokens, self._tokens.new_zeros(num_new, width)))
        self._lens = torch.cat((self._lens, self._lens.new_zeros(num_new)))
        limits = torch.tensor([segment.limit for segment in segments], device=self.device)
        self._limits = torch.cat((self._limits, limits))
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
        if int(self._lens.max()) >= self._tokens.shape[1]:
            self._widen()
        self._tokens.scatter_(1, self._lens[:, None], ids[:, None])
        self._log_probs.scatter_(1, self._lens[:, None], best[:, None])
        self._lens += 1
        is_done = (ids == EOS_ID) | (self._lens >= self._limits) | (best == NEVER)
        ended = is_done.nonzero().flatten()
        results = self._results(ended, "length") if len(ended) else []
        return Absorbed(ids=ids, rows=None, done=list(zip(ended.tolist(), results, strict=True)))

    def _widen(self) -> None:
        more = (0, self._tokens.shape[1])
        self._tokens = torch.nn.functional.pad(self._tokens, more)
        self._log_probs = torch.nn.functional.pad(self._log_probs, more)

    def _history(self, position: int) -> list[int]:
        tokens: list[int] = self._tokens[position, : int(self._lens[position])].tolist()
        return tokens

    def keep(self, order: Sequence[int]) -> None:
        super().keep(order)
        index = torch.tensor(order, dtype=torch.int64, device=self.device)
        self._log_probs, self._tokens = self._log_probs[index], self._tokens[index]
        self._lens, self._limits = self._lens[index], self._limits[index]
        self._coverage.keep(order)

    def cut(self, position: int, finish: Finish) -> SegmentResult:
        return self._results(torch.tensor([position], device=self.device), finish)[0]

    def agreed_ids(self, position: int) -> list[int]:
        return self._history(position)

    def _results(self, positions: Tensor, cut: Finish) -> list[SegmentResult]:
        """Of what segments [D] have; `cut` is why one stops that has not ended itself."""
        lens = self._lens[positions]
        width = int(lens.max())
        log_probs = self._log_probs[positions, :width]  # [D, T]
        tokens = self._tokens[positions, :width].tolist()
        others = _best_of_others(log_probs).tolist()
        return [
            self._result(position, tokens[i][:length], log_probs_of[:length], others[i][:length], cut)
            for i, (position, length, log_probs_of) in enumerate(
                zip(positions.tolist(), lens.tolist(), log_probs.tolist(), strict=True)
            )
        ]

    def _result(
        self, position: int, tokens: list[int], log_probs: list[float], others: list[float], cut: Finish
    ) -> SegmentResult:
        segment = self.segments[position]
        has_ended = tokens[-1] == EOS_ID and log_probs[-1] > NEVER
        num_steps = len(tokens)
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
        num_forced = len(segment.options.prefix_ids)
        best_other = max(others[num_forced : len(log_probs)], default=NEVER)
        bound = segment.options.best_score_below(best_other, segment.limit)
        return SegmentResult(
            hypotheses=(hypothesis,),
            num_steps=num_steps,
            is_optimal=True if has_ended and bound <= score else None,
            bound=max(bound, score) if has_ended else None,
        )


def _best_of_others(log_probs: Tensor) -> Tensor:
    """Of log_probs [D, T] of the chosen tokens: no hypothesis that leaves the greedy one at t is more probable [D, T].

    Any other token at t has at most what the chosen one left: log(1 - p).
    """
    exact = log_probs.double()
    before = exact.cumsum(dim=1) - exact
    return before + (-torch.expm1(exact.clamp(max=-1e-7))).log()
