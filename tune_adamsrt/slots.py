"""How many trials are out at a time: as many as fit, looked up anew while a search runs, since nodes come and go."""

import time
from collections.abc import Callable
from typing import Any

from ray.tune.search import ConcurrencyLimiter, Searcher

LOOK_EVERY_S = 5.0


class WithinSlots(ConcurrencyLimiter):
    """Asks a searcher for no more trials than fit side by side.

    Ray Tune itself would hold on to the number that it was given at the start. Without one it would ask for a single
    trial ahead of those that run: one node at a time from an autoscaler.

    Args:
        max_concurrent: at the start.
        slots: how many trials fit now. None: always max_concurrent.
    """

    def __init__(
        self,
        searcher: Searcher,
        max_concurrent: int,
        slots: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(searcher, max_concurrent)
        self._slots = slots
        self._clock = clock
        self._looked_at = clock()

    def suggest(self, trial_id: str) -> Any:
        """Give the next trial's configuration, None for later, or Searcher.FINISHED."""
        if self._slots is not None and self._clock() - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = self._clock()
            try:
                self.max_concurrent = max(1, self._slots())
            except Exception:  # a head that does not answer for a moment; Ray raises bare ones
                return super().suggest(trial_id)
        return super().suggest(trial_id)
