"""Runs a given translation through the network, to tell what each of its tokens cost and where it looked.

The stage after a search whose caller wants an explanation: one row, as many steps as there are tokens, shared with
everybody else's.

Shape letters: R segments (one row each), V vocabulary, S source length, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.lane import Absorbed, LaneSearch, LiveSegment
from model.decoding.search import Finish, SegmentResult
from model.network.token_scores import TokenScores


@dataclass(eq=False)
class _Walk:
    """The tokens to walk through, and what was seen on the way."""

    tokens: list[int]
    log_probs: list[float] = field(default_factory=list)
    attention: list[tuple[float, ...]] = field(default_factory=list)


class ForcedSearch(LaneSearch):
    """All segments of a lane that walk through the best hypothesis of an earlier stage."""

    def __init__(self, k: int, device: torch.device) -> None:
        super().__init__(1, device)
        self._walks: list[_Walk] = []

    def add(self, segments: Sequence[LiveSegment]) -> None:
        super().add(segments)
        for segment in segments:
            assert segment.best is not None, "an earlier stage found it"
            best = segment.best.hypotheses[0]
            self._walks.append(_Walk([*best.token_ids, EOS_ID] if best.finish == "eos" else list(best.token_ids)))

    def absorb(self, scores: TokenScores, attention: Tensor | None) -> Absorbed:
        ids = np.array([walk.tokens[len(walk.log_probs)] for walk in self._walks])
        index = torch.from_numpy(ids).to(self.device)
        costs = scores.log_probs().gather(1, index[:, None]).flatten().tolist()
        looks = [None] * len(costs) if attention is None else attention.tolist()
        done: list[tuple[int, SegmentResult]] = []
        for i, (segment, walk) in enumerate(zip(self.segments, self._walks, strict=True)):
            walk.log_probs.append(costs[i])
            look = looks[i]
            if look is not None:
                walk.attention.append(tuple(look[: segment.num_src]))
            if len(walk.log_probs) == len(walk.tokens):
                done.append((i, self._result(i)))
        return Absorbed(ids=ids, rows=None, done=done)

    def _result(self, position: int) -> SegmentResult:
        walk, best = self._walks[position], self.segments[position].best
        assert best is not None
        return replace(
            best,
            num_steps=best.num_steps + len(walk.log_probs),
            token_log_probs=tuple(walk.log_probs),
            attention=tuple(walk.attention),
        )

    def keep(self, order: Sequence[int]) -> None:
        super().keep(order)
        self._walks = [self._walks[i] for i in order]

    def cut(self, position: int, finish: Finish) -> SegmentResult:
        return self._result(position)

    def agreed_ids(self, position: int) -> list[int]:
        best = self.segments[position].best
        return list(best.hypotheses[0].token_ids) if best is not None else []
