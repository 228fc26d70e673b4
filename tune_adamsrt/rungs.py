"""Successive halving as plain arithmetic: at which epochs trials are compared, and who goes on.

A trial is compared with the others at fixed epochs, the rungs, by the value each of them had at that very epoch, and
the best 1/eta of those seen so far go on: asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", arXiv:1810.05934). In its stopping form a trial that is not among them ends; in its promotion
form it waits, and goes on as soon as it is.
"""

import bisect
import math
from collections.abc import Mapping, Sequence

from adamsrt.training import lr_drop_epochs


def choose_rungs(epochs: int, *, min_epochs: int, reduction_factor: int) -> tuple[int, ...]:
    """Choose the epochs at which trials are compared: min_epochs times powers of the reduction factor.

    The learning rate drops during a trial and accuracy jumps after each drop. All trials share the schedule, so that a
    comparison at one epoch never mixes phases; but right after a drop it says little. A rung that lies within 5 % of
    all epochs after a drop therefore moves back to the last epoch before it (not below min_epochs).

    Returns:
        Ascending epochs, all below `epochs`; empty where min_epochs >= epochs.
    """
    rungs = set()
    epoch = min_epochs
    while epoch < epochs:
        drop = max((drop for drop in lr_drop_epochs(epochs) if drop < epoch), default=0)
        just_dropped = drop >= min_epochs and epoch - drop <= epochs // 20
        rungs.add(drop if just_dropped else epoch)
        epoch *= reduction_factor
    return tuple(sorted(rungs))


class Rungs:
    """The values that trials had at each rung, and who goes on.

    Args:
        epochs: the rungs, ascending.
        reduction_factor: eta; the best 1/eta of a rung go on.
    """

    def __init__(self, epochs: Sequence[int], *, reduction_factor: int) -> None:
        self.epochs = tuple(epochs)
        self.reduction_factor = reduction_factor
        self.values: dict[int, dict[int, float]] = {epoch: {} for epoch in self.epochs}
        self._best_first: dict[int, list[tuple[float, int]]] = {epoch: [] for epoch in self.epochs}  # (-value, trial)
        self._let_on: set[tuple[int, int]] = set()

    def let_on(self, trial: int, epoch: int) -> None:
        """Promote a trial at this rung, whatever its standing, also when it has to be trained up to there again."""
        self._let_on.add((trial, epoch))

    def record(self, trial: int, epoch: int, value: float) -> None:
        """Note a trial's value; other epochs than rungs are ignored, and so is a rung passed before a restart."""
        if epoch in self.values and trial not in self.values[epoch]:
            self.values[epoch][trial] = value
            bisect.insort(self._best_first[epoch], _place(trial, value))

    def reason_to_stop(self, trial: int, epoch: int) -> str | None:
        """Say why a trial must stop at this epoch; None where it goes on. Equal values go on together."""
        at_rung = self.values.get(epoch)
        if at_rung is None or trial not in at_rung:
            return None
        # Rounded up: rounded down, one alone of up to 2 eta - 1 trials would go on, on the word of a noisy early epoch.
        going_on = math.ceil(len(at_rung) / self.reduction_factor)
        return None if self._rank(trial, epoch) <= going_on else self._standing(trial, epoch, going_on)

    def is_promoted(self, trial: int, epoch: int) -> bool:
        """Tell whether a trial is among the best 1/eta of a rung; among fewer than eta, none is. Ties go by number."""
        place = _place(trial, self.values[epoch][trial])
        is_among_best = bisect.bisect_left(self._best_first[epoch], place) < self._promotions(epoch)
        return is_among_best or (trial, epoch) in self._let_on

    def _promotions(self, epoch: int) -> int:
        return len(self.values[epoch]) // self.reduction_factor

    def next_promotion(self, paused: Mapping[int, int]) -> int | None:
        """Choose the paused trial to go on with: the best at the highest rung; None where none is promoted.

        Args:
            paused: trial -> the rung (epoch) where it waits.
        """
        for epoch in sorted(set(paused.values()), reverse=True):
            for _, trial in self._best_first[epoch][: self._promotions(epoch)]:
                if paused.get(trial) == epoch:
                    return trial
        return None

    def reason_left_behind(self, trial: int, epoch: int) -> str:
        """Say why a paused trial was never promoted."""
        return self._standing(trial, epoch, self._promotions(epoch))

    def _standing(self, trial: int, epoch: int, going_on: int) -> str:
        rung = 1 + self.epochs.index(epoch)
        of = len(self.values[epoch])
        return f"rung {rung} (epoch {epoch}): rank {self._rank(trial, epoch)} of {of}, the best {going_on} went on"

    def _rank(self, trial: int, epoch: int) -> int:
        """Give a trial's rank at a rung, 1 for the best; equal values share one."""
        first_equal = (_place(trial, self.values[epoch][trial])[0], -1)
        return 1 + bisect.bisect_left(self._best_first[epoch], first_equal)


def _place(trial: int, value: float) -> tuple[float, int]:
    """Sort trials by value, the best first; a value that is not a number comes last."""
    return (math.inf if math.isnan(value) else -value, trial)
