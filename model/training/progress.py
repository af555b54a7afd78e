"""What a run says of itself while it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: from 1; step: updates so far; total_steps: planned.
        loss: mean label-smoothed cross-entropy a target token since the last report, in nats.
        tokens_per_second: target tokens trained on a second, since the last report; of all processes together.
        seconds: time spent training, resumes included.
        seconds_left: estimate to the planned end.
        dev_loss, dev_bleu: of the last evaluation, None before the first.
        is_evaluation: this report closes an evaluation.
    """

    epoch: int
    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    seconds_left: float
    dev_loss: float | None = None
    dev_bleu: float | None = None
    is_evaluation: bool = False


class Meter:
    """Loss and speed since the last report; what was last reported where nothing has happened since."""

    def __init__(self) -> None:
        self._loss_sum, self._num_tokens, self._seconds = 0.0, 0, 0.0
        self._last_loss, self._last_rate = math.nan, 0.0

    def add(self, loss_sum: float, num_tokens: int, seconds: float) -> None:
        """One update: the sum of its tokens' losses, their number, the time it took."""
        self._loss_sum += loss_sum
        self._num_tokens += num_tokens
        self._seconds += seconds

    @property
    def loss(self) -> float:
        return self._loss_sum / self._num_tokens if self._num_tokens else self._last_loss

    @loss.setter
    def loss(self, value: float) -> None:
        self._last_loss = value

    def read(self) -> tuple[float, float]:
        """Loss a token and tokens a second; the next reading starts here."""
        loss = self.loss
        if self._seconds:
            self._last_rate = self._num_tokens / self._seconds
        self._loss_sum, self._num_tokens, self._seconds = 0.0, 0, 0.0
        self._last_loss = loss
        return loss, self._last_rate
