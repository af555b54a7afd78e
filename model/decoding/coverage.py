"""How much attention each source token has had, for searches with a coverage penalty (Wu et al. 2016, equation 14).

Shape letters: R segments, K rows a segment, S source length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.decoding.lane import LiveSegment


def log_coverage(sums: Tensor) -> float:
    """Σ_s log(min(Σ_t a_ts, 1)) of the sums [S] that one hypothesis has paid."""
    return float(sums.clamp(1e-9, 1.0).log().sum())


class Coverage:
    """Sums of attention [R, K, S] over the steps; of a lane where nobody asks for it, nothing is kept."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._num_src: list[int] = []
        self._num_rows = 1
        self._is_wanted = False

    def add(self, segments: Sequence[LiveSegment], num_rows: int) -> None:
        """New segments, after all others. A lane's segments all have a coverage penalty, or none has."""
        self._is_wanted |= any(segment.options.coverage_penalty for segment in segments)
        if not self._is_wanted:
            return
        self._num_rows = num_rows
        self._num_src.extend(segment.num_src for segment in segments)
        if self._sums is not None:
            blank = self._sums.new_zeros(len(segments), num_rows, self._sums.shape[2])
            self._sums = torch.cat((self._sums, blank))

    def absorb(self, attention: Tensor | None) -> None:
        """Adds a step's attention [R·K, S]."""
        if not self._is_wanted or attention is None:
            return
        step = attention.view(len(self._num_src), self._num_rows, -1)
        self._sums = step.clone() if self._sums is None else self._sums + step

    def follow(self, parents: np.ndarray) -> None:
        """Rows of a beam go on as continuations of `parents` [R, K]."""
        if self._sums is not None:
            index = torch.from_numpy(parents).to(self._sums.device)
            self._sums = self._sums.gather(1, index[:, :, None].expand_as(self._sums))

    def keep(self, order: Sequence[int]) -> None:
        """Only the segments at these positions stay, in this order."""
        if not self._is_wanted:
            return
        self._num_src = [self._num_src[i] for i in order]
        if self._sums is not None:
            self._sums = self._sums[list(order)]

    def of(self, position: int, row: int) -> float:
        """Σ_s log(min(Σ_t a_ts, 1)) of a row; 0 where nobody asks for it."""
        if self._sums is None:
            return 0.0
        return log_coverage(self._sums[position, row, : self._num_src[position]])
