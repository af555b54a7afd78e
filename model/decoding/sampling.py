"""Ancestral sampling over many segments at once: each row draws its next token from what the network gives it.

The same seed gives the same translation, at any load and in any company: what a row draws depends on its seed, its
number, the step and its own log-probabilities, and on nothing else. Hence whole numbers: probabilities become integer
weights, whose sums are exact in whatever order a kernel adds them up, and no rounding lets a draw fall on a token that
is forbidden.

    token                   a      b      c      d
    probability             0.5    0.25   -      0.25     c is forbidden
    weight                  8      4      0      4        the most probable token has 8 here, 2**40 in earnest
    running sum             8      12     12     16
    u = 0.8: draws d, the first whose running sum is above floor(0.8 · 16) = 12
    top_p = 0.7: a holds 0.5, a and b hold 0.75, so d gets weight 0, and u = 0.8 draws b: floor(0.8 · 12) = 9

Never sees the network. Shape letters: R segments, K rows a segment, N = R·K rows, F rows that draw among some of the
tokens only, V vocabulary (padded).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.constraints import constrain
from model.decoding.coverage import Coverage
from model.decoding.lane import Absorbed, LaneSearch, LiveSegment, common_start
from model.decoding.search import NEVER, Finish, Hypothesis, SegmentResult
from model.network.token_scores import TokenScores

# Tokens 2**40 times less probable than the best are never drawn; the weights of a million tokens still fit an int64.
_LARGEST_WEIGHT = 2.0**40


def weights_of(log_probs: Tensor, temperature: Tensor) -> Tensor:
    """Integers in proportion to the probabilities at a temperature.

    Args:
        log_probs: [N, V]; -inf for what is forbidden, in a row everything may be.
        temperature: [N].

    Returns:
        [N, V] int64; 2**40 for the largest of a row, 0 for what is forbidden.
    """
    largest = log_probs.amax(dim=1, keepdim=True).clamp_min(torch.finfo(log_probs.dtype).min)
    return ((log_probs - largest) / temperature[:, None]).exp_().mul_(_LARGEST_WEIGHT).to(torch.int64)


def without_tail(weights: Tensor, log_probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Weights of the most probable tokens; 0 for the others.

    Args:
        weights: [F, V] int64.
        log_probs: [F, V], which tell tokens of the same weight apart; of equal ones the earlier counts more.
        top_k: [F] int64, how many tokens may stay.
        top_p: [F] float64. Of those, the fewest stay that hold this part of their weight.
    """
    order = log_probs.sort(dim=1, descending=True, stable=True).indices
    ranked = weights.gather(1, order)
    ranks = torch.arange(ranked.shape[1], device=ranked.device)
    ranked.masked_fill_(ranks >= top_k[:, None], 0)
    sums = ranked.cumsum(dim=1)
    better = sums - ranked  # [F, V], what all more probable tokens hold together
    ranked.masked_fill_(better >= top_p[:, None] * sums[:, -1:], 0)
    return torch.zeros_like(weights).scatter_(1, order, ranked)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row, with probability in proportion to its weight: the inverse of the cumulative distribution.

    Args:
        weights: [N, V] int64.
        uniforms: [N] float64 in [0, 1).

    Returns:
        [N] int64; 0 for a row that has no weight at all.
    """
    sums = weights.cumsum(dim=1)
    totals = sums[:, -1]
    targets = torch.minimum((uniforms * totals).to(torch.int64), totals - 1)  # u · total may round up to total
    return torch.searchsorted(sums, targets[:, None], right=True).squeeze(1)


@dataclass(eq=False)
class _Row:
    """One draw of a translation; once it has ended, its row in the lane is dead and waits for the segment's others."""

    random: Random
    tokens: list[int] = field(default_factory=list)  # without `<eos>`
    log_probs: list[float] = field(default_factory=list)  # the network's own, `<eos>` included
    ended: Hypothesis | None = None


class SamplingSearch(LaneSearch):
    """The rows of all segments of a lane that sample; K is their n_best, each row a draw of its own."""

    def __init__(self, k: int, device: torch.device) -> None:
        super().__init__(k, device)
        self._rows: list[list[_Row]] = []
        self._coverage = Coverage()
        self._arrange()

    def add(self, segments: Sequence[LiveSegment]) -> None:
        super().add(segments)
        for segment in segments:
            seed = segment.options.seed if segment.options.seed is not None else secrets.randbits(63)
            # A text as the seed: Python hashes it with SHA-512, so that neighbouring numbers have nothing in common.
            self._rows.append([_Row(Random(f"{seed}/{row}")) for row in range(self.k)])
        self._coverage.add(segments, self.k)
        self._arrange()

    def _arrange(self) -> None:
        """What each row asks for, as tensors; anew whenever segments come or go."""
        options = [segment.options for segment in self.segments for _ in range(self.k)]
        self._temperature = torch.tensor([o.temperature for o in options], device=self.device)  # [N]
        some = [row for row, o in enumerate(options) if o.top_k or o.top_p < 1]
        self._filtered = torch.tensor(some, dtype=torch.int64, device=self.device)  # [F]
        top_k = [options[row].top_k or torch.iinfo(torch.int64).max for row in some]
        self._top_k = torch.tensor(top_k, dtype=torch.int64, device=self.device)  # [F]
        self._top_p = torch.tensor([options[row].top_p for row in some], dtype=torch.float64, device=self.device)  # [F]

    def absorb(self, scores: TokenScores, attention: Tensor | None) -> Absorbed:
        self._coverage.absorb(attention)
        constrain(scores, self.k, self.segments if self.is_constrained else (), self._history)
        log_probs = scores.log_probs()
        weights = weights_of(log_probs, self._temperature)
        if len(self._filtered):
            at = self._filtered
            weights[at] = without_tail(weights[at], log_probs[at], self._top_k, self._top_p)
        uniforms = [0.0 if row.ended else row.random.random() for rows in self._rows for row in rows]
        ids = draw(weights, torch.tensor(uniforms, dtype=torch.float64, device=self.device))
        costs = log_probs.gather(1, ids[:, None]).flatten().tolist()
        next_ids = self._take(ids.tolist(), costs)
        done = [(i, self._result(i, "length")) for i, rows in enumerate(self._rows) if all(row.ended for row in rows)]
        return Absorbed(ids=np.array(next_ids), rows=self._alive(), done=done)

    def _alive(self) -> np.ndarray | None:
        """Each row itself, but -1 where it has ended."""
        rows = [-1 if row.ended else i for i, row in enumerate(row for rows in self._rows for row in rows)]
        return np.array(rows) if -1 in rows else None

    def _take(self, ids: Sequence[int], costs: Sequence[float]) -> list[int]:
        """Appends what was drawn [N] at these log-probabilities [N] to the rows that are alive.

        Returns:
            What to feed them next [N]: `<eos>` to dead rows.
        """
        next_ids = [EOS_ID] * len(ids)
        for i, segment in enumerate(self.segments):
            segment.num_tokens += 1
            for number, row in enumerate(self._rows[i], start=i * self.k):
                if row.ended:
                    continue
                if costs[number] > NEVER:
                    row.log_probs.append(costs[number])
                    if ids[number] != EOS_ID:
                        row.tokens.append(ids[number])
                        next_ids[number] = ids[number]
                has_ended = costs[number] > NEVER and ids[number] == EOS_ID
                if has_ended or costs[number] == NEVER or segment.num_tokens >= segment.limit:
                    row.ended = self._hypothesis(i, number - i * self.k, "eos" if has_ended else "length")
        return next_ids

    def _hypothesis(self, position: int, number: int, finish: Finish) -> Hypothesis:
        row = self._rows[position][number]
        log_prob = math.fsum(row.log_probs)
        coverage = self._coverage.of(position, number)
        return Hypothesis(
            token_ids=tuple(row.tokens),
            log_prob=log_prob,
            score=self.segments[position].options.score(log_prob, max(1, len(row.log_probs)), coverage),
            finish=finish,
        )

    def _history(self, position: int) -> list[list[int]]:
        return [row.tokens for row in self._rows[position]]

    def keep(self, order: Sequence[int]) -> None:
        super().keep(order)
        self._rows = [self._rows[i] for i in order]
        self._coverage.keep(order)
        self._arrange()

    def cut(self, position: int, finish: Finish) -> SegmentResult:
        return self._result(position, finish)

    def agreed_ids(self, position: int) -> list[int]:
        """What all rows begin with."""
        return common_start(self._history(position))

    def _result(self, position: int, cut: Finish) -> SegmentResult:
        """All rows, best score first, ties by row; `cut` is why those stop that have not ended yet."""
        hypotheses = [
            row.ended or self._hypothesis(position, number, cut) for number, row in enumerate(self._rows[position])
        ]
        return SegmentResult(
            hypotheses=tuple(sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)),
            num_steps=self.segments[position].num_tokens,
        )
