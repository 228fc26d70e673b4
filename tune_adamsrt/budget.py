"""What a search may spend: trials, epochs in total, time; whichever comes first."""

import time
from collections.abc import Callable

from tune_adamsrt.records import TrialState
from tune_adamsrt.study import Study


class Budget:
    """Watches a study and says when it must end.

    Args:
        trials: how many trials to start in total, those of an earlier run of the same study included.
        time_budget_s: seconds from now. None for no limit.
        max_total_epochs: epochs trained by all trials together. None for no limit.
        lets_finish: when time or epochs are spent, what runs is trained to its end; else it is stopped.
        reserves: nothing starts unless the total has room for all the epochs that it may need and for all that those
            that run may still need. So nothing is stopped for the total, and less than one whole trial stays unspent:
            what makes searches of equal totals comparable. (Epochs trained twice after a lost worker come on top.)
    """

    def __init__(
        self,
        study: Study,
        *,
        trials: int,
        time_budget_s: float | None = None,
        max_total_epochs: int | None = None,
        lets_finish: bool = False,
        reserves: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study = study
        self.trials = trials
        self._max_total_epochs = max_total_epochs
        self._time_budget_s = time_budget_s
        self._lets_finish = lets_finish
        self._reserves = reserves
        self._clock = clock
        self._started = clock()

    def reason_to_stop(self, *, unreported_epochs: int = 0) -> str | None:
        """Say why running trials must stop now; None where they go on.

        Args:
            unreported_epochs: trained, but not known to the study yet.
        """
        if self._lets_finish:
            return None
        return self._time_is_spent() or (None if self._reserves else self._epochs_are_spent(unreported_epochs))

    def what_is_spent(self) -> str | None:
        """Name the budget that leaves no room for another trial; None where there is time and epochs left."""
        return self._time_is_spent() or self._epochs_are_spent()

    def reason_not_to_start(self) -> str | None:
        """Say why no further trial may start; None where one may."""
        started = len(self._study.trials) - len(self._study.interrupted)
        return self.what_is_spent() or ("all trials done" if started >= self.trials else None)

    def has_room_for(self, epochs: int) -> bool:
        """Tell whether something that needs up to so many epochs more may start now.

        Where it may not, and trials run, one of these may yet end early and leave its share.
        """
        if not self._reserves or self._max_total_epochs is None:
            return True
        running = self._study.in_state(TrialState.RUNNING)
        promised = sum(self._study.epochs - trial.epoch for trial in running)
        return self._study.epochs_spent + promised + epochs <= self._max_total_epochs

    def _time_is_spent(self) -> str | None:
        has_ended = self._time_budget_s is not None and self._clock() - self._started >= self._time_budget_s
        return "time budget" if has_ended else None

    def _epochs_are_spent(self, unreported_epochs: int = 0) -> str | None:
        if self._max_total_epochs is None:
            return None
        if self._reserves:  # nothing fits any more: neither a new trial nor the one that has least left to do
            waiting = [self._study.epochs - epoch for epoch in self._study.paused.values()]
            needed = min([self._study.epochs, *waiting])
        else:
            needed = 1
        spent = self._study.epochs_spent + unreported_epochs
        return "epoch budget" if spent + needed > self._max_total_epochs else None
