"""Which models are in memory: a budget in bytes, and who has to go. Loads nothing itself.

A model counts from before it is loaded until the last request on it is answered and it is freed. Room is made by
taking out the one that was used least recently, among those that nobody is using. Where all are in use, the newcomer
waits for one to become idle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from service.logs import EventLog

if TYPE_CHECKING:
    from service.inference.live import LiveModel
    from service.inference.served import ServedModel

log = EventLog("residency")


class Residency:
    """Every served model that holds memory, or is about to.

    Args:
        budget_bytes: for all of them; 0 for no limit.
        evict: takes a model out of memory unless somebody is using it; whether it did.
        clock: seconds, monotonic; a test gives its own.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        models: Callable[[], list[LiveModel]],
        evict: Callable[[LiveModel], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._models = models
        self._evict = evict
        self._clock = clock
        self._changed = threading.Condition()
        self._num_bytes: dict[ServedModel, int] = {}

    @property
    def num_bytes(self) -> int:
        with self._changed:
            return sum(self._num_bytes.values())

    @property
    def all_served(self) -> list[ServedModel]:
        """Those that are loading, serve or drain."""
        with self._changed:
            return list(self._num_bytes)

    def has_room(self, num_bytes: int) -> bool:
        """Whether it fits beside all that is there."""
        return not self.budget_bytes or self.num_bytes + num_bytes <= self.budget_bytes

    def admit(self, served: ServedModel, num_bytes: int, *, timeout_seconds: float) -> bool:
        """Makes room, waiting for it where it must; False where there was none in time.

        A model that is larger than the whole budget is let in once nothing else is there: the budget is no reason to
        serve nobody.
        """
        until = self._clock() + timeout_seconds
        while True:
            self._make_room(num_bytes)
            with self._changed:
                if not self._num_bytes or self._fits(num_bytes):
                    self._num_bytes[served] = num_bytes
                    return True
                left = until - self._clock()
                if left <= 0:
                    return False
                self._changed.wait(left)

    def enter(self, served: ServedModel, num_bytes: int) -> None:
        """As `admit`, past the budget if need be: for the next version of a model whose old one goes right after."""
        self._make_room(num_bytes)
        with self._changed:
            self._num_bytes[served] = num_bytes

    def settle(self, served: ServedModel, num_bytes: int) -> None:
        """It is loaded, and takes so much."""
        with self._changed:
            if served in self._num_bytes:
                self._num_bytes[served] = num_bytes
        self._make_room(0)
        if not self.has_room(0):
            log.warning("model_memory_exceeded", num_bytes=self.num_bytes, budget_bytes=self.budget_bytes)

    def leave(self, served: ServedModel) -> None:
        """It is freed."""
        with self._changed:
            self._num_bytes.pop(served, None)
            self._changed.notify_all()

    def note_idle(self) -> None:
        """A model is no longer in use: whoever waits for room looks again."""
        if self.budget_bytes:
            with self._changed:
                self._changed.notify_all()

    def _fits(self, num_bytes: int) -> bool:
        return not self.budget_bytes or sum(self._num_bytes.values()) + num_bytes <= self.budget_bytes

    def _make_room(self, num_bytes: int) -> None:
        """Takes out as many as it must. Those draining count until they are freed, but no more are sent after them."""
        for model in sorted(self._models(), key=lambda model: model.last_used):
            if self._will_fit(num_bytes):
                return
            if self._evict(model):
                log.info("model_unloaded", model=model.name)

    def _will_fit(self, num_bytes: int) -> bool:
        with self._changed:
            staying = sum(
                size for served, size in self._num_bytes.items() if served.engine.state not in ("draining", "stopped")
            )
        return not self.budget_bytes or staying + num_bytes <= self.budget_bytes
