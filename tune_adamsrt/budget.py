"""What a search may spend: trials, epochs in total, time; whichever comes first."""

import time
from collections.abc import Callable

from tune_adamsrt.study import Study


class Budget:
    """Watches a study and says when it must end.

    Args:
        trials: how many trials to start in total, those of an earlier run of the same study included.
        time_budget_s: seconds from now. None for no limit.
        max_total_epochs: epochs trained by all trials together. None for no limit.
        lets_finish: when time or epochs are spent, what runs is trained to its end; else it is stopped.
    """

    def __init__(
        self,
        study: Study,
        *,
        trials: int,
        time_budget_s: float | None = None,
        max_total_epochs: int | None = None,
        lets_finish: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study = study
        self.trials = trials
        self._max_total_epochs = max_total_epochs
        self._time_budget_s = time_budget_s
        self._lets_finish = lets_finish
        self._clock = clock
        self._started = clock()

    def reason_to_stop(self, *, unreported_epochs: int = 0) -> str | None:
        """Say why running trials must stop now; None where they go on.

        Args:
            unreported_epochs: trained, but not known to the study yet.
        """
        return None if self._lets_finish else self.what_is_spent(unreported_epochs=unreported_epochs)

    def what_is_spent(self, *, unreported_epochs: int = 0) -> str | None:
        """Name the budget that is spent; None where there is time and epochs left."""
        if self._time_budget_s is not None and self._clock() - self._started >= self._time_budget_s:
            return "time budget"
        spent = self._study.epochs_spent + unreported_epochs
        if self._max_total_epochs is not None and spent >= self._max_total_epochs:
            return "epoch budget"
        return None

    def reason_not_to_start(self) -> str | None:
        """Say why no further trial may start; None where one may."""
        started = len(self._study.trials) - len(self._study.interrupted)
        return self.what_is_spent() or ("all trials done" if started >= self.trials else None)
