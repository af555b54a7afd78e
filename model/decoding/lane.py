"""What every search is to the decoding loop: bookkeeping over the rows of a lane.

Shape letters: R segments of one lane, K rows a segment, V vocabulary (padded), S source length, P parked states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from model.decoding.search import Finish, SearchOptions, SegmentResult
from model.network.token_scores import TokenScores


@dataclass(eq=False)
class LiveSegment:
    """What a search keeps in Python for a segment; searches add tensors of their own beside it.

    Attributes:
        handle: the decoder's number for it.
        limit: tokens a hypothesis may have.
        num_src: tokens of its source, `<eos>` counted.
        num_tokens: of the live hypotheses.
        best: what an earlier stage found: `exact` starts from the beam's best, `forced` runs through it.
    """

    handle: int
    options: SearchOptions
    limit: int
    num_src: int
    num_tokens: int = 0
    best: SegmentResult | None = None


@dataclass(frozen=True, eq=False)
class Absorbed:
    """How the lane's rows go on after a step.

    Attributes:
        ids: [R·K] int64, the token of each row for the next step.
        rows: [R·K] int64, which row of this step each row continues, -1 for a dead row; None where each continues
            itself. Of a search that parks states, which slot.
        done: positions of the segments that are done, with their results. Their rows are still there: `keep` drops
            them.
        parked: rows of this step [P] and the slots [P] where their states are to be kept.
    """

    ids: np.ndarray
    rows: np.ndarray | None
    done: Sequence[tuple[int, SegmentResult]]
    parked: tuple[Sequence[int], Sequence[int]] | None = None


class LaneSearch:
    """One kind of search over all its segments at once: pure bookkeeping on log-probabilities.

    Rows stand segment by segment, K for each. The loop calls `absorb` with the rows' scores and extends the
    rows as it is told; then `keep`, where segments left.

    Args:
        k: K.
        device: where log-probabilities come from.
    """

    parks: ClassVar[bool] = False
    num_first_rows: int  # of a segment's rows, those that are alive in its first step

    def __init__(self, k: int, device: torch.device) -> None:
        self.k = self.num_first_rows = k
        self.device = device
        self.segments: list[LiveSegment] = []
        self.is_constrained = False  # whether any of them is

    @property
    def num_rows(self) -> int:
        return len(self.segments) * self.k

    def add(self, segments: Sequence[LiveSegment]) -> None:
        """New segments, whose rows come after all others; each row's first token is `<bos>`."""
        self.segments.extend(segments)
        self.is_constrained |= any(segment.options.is_constrained for segment in segments)

    def absorb(self, scores: TokenScores, attention: Tensor | None) -> Absorbed:
        """Takes a step: the scores of R·K rows, which it may overwrite, and attention [R·K, S] if there is any."""
        raise NotImplementedError

    def keep(self, order: Sequence[int]) -> None:
        """Only the segments at these positions stay, in this order."""
        self.segments = [self.segments[i] for i in order]
        self.is_constrained = any(segment.options.is_constrained for segment in self.segments)

    def cut(self, position: int, finish: Finish) -> SegmentResult:
        """The best that the segment has so far, for one that has to stop now. It has taken at least one step."""
        raise NotImplementedError

    def agreed_ids(self, position: int) -> list[int]:
        """Tokens that the best hypothesis is sure to start with, as far as the search can tell."""
        raise NotImplementedError


def extended(part: np.ndarray, num_new: int, value: float = 0) -> np.ndarray:
    """An array [R, ...] with so many more entries, all of this value."""
    return np.concatenate((part, np.full((num_new, *part.shape[1:]), value, dtype=part.dtype)))


def common_start(histories: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all of them begin with."""
    agreed: list[int] = []
    for tokens in zip(*histories, strict=False):
        if len(set(tokens)) > 1:
            break
        agreed.append(tokens[0])
    return agreed
