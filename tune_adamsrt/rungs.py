"""Successive halving as plain arithmetic: at which epochs trials are compared, and who goes on.

A trial is compared with the others at fixed epochs, the rungs, by the value each of them had at that very epoch, and
the best 1/eta of those seen so far go on: asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", arXiv:1810.05934). In its stopping form a trial that is not among them ends; in its promotion
form it waits, and goes on as soon as it is.
"""

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
        self._let_on: set[tuple[int, int]] = set()

    def let_on(self, trial: int, epoch: int) -> None:
        """Promote a trial at this rung, whatever its standing, also when it has to be trained up to there again."""
        self._let_on.add((trial, epoch))

    def record(self, trial: int, epoch: int, value: float) -> None:
        """Note a trial's value; other epochs than rungs are ignored, and so is a rung passed before a restart."""
        if epoch in self.values:
            self.values[epoch].setdefault(trial, value)

    def reason_to_stop(self, trial: int, epoch: int) -> str | None:
        """Say why a trial must stop at this epoch; None where it goes on. Equal values go on together."""
        at_rung = self.values.get(epoch)
        if at_rung is None or trial not in at_rung:
            return None
        # Rounded up: rounded down, one alone of up to 2 eta - 1 trials would go on, on the word of a noisy early epoch.
        going_on = math.ceil(len(at_rung) / self.reduction_factor)
        rank = 1 + sum(value > at_rung[trial] for value in at_rung.values())
        if rank <= going_on:
            return None
        return self._standing(trial, epoch, going_on)

    def is_promoted(self, trial: int, epoch: int) -> bool:
        """Tell whether a trial is among the best 1/eta of a rung; among fewer than eta, none is. Ties go by number."""
        return trial in self._promoted(epoch) or (trial, epoch) in self._let_on

    def _promoted(self, epoch: int) -> set[int]:
        at_rung = self.values[epoch]
        best_first = sorted(at_rung, key=lambda trial: (-at_rung[trial], trial))
        return set(best_first[: len(at_rung) // self.reduction_factor])

    def next_promotion(self, paused: Mapping[int, int]) -> int | None:
        """Choose the paused trial to go on with: the best at the highest rung; None where none is promoted.

        Args:
            paused: trial -> the rung (epoch) where it waits.
        """
        promoted_at = {epoch: self._promoted(epoch) for epoch in set(paused.values())}
        promoted = [trial for trial, epoch in paused.items() if trial in promoted_at[epoch]]
        return max(promoted, key=lambda trial: (paused[trial], self.values[paused[trial]][trial], -trial), default=None)

    def reason_left_behind(self, trial: int, epoch: int) -> str:
        """Say why a paused trial was never promoted."""
        return self._standing(trial, epoch, len(self.values[epoch]) // self.reduction_factor)

    def _standing(self, trial: int, epoch: int, going_on: int) -> str:
        at_rung = self.values[epoch]
        rank = 1 + sum(value > at_rung[trial] for value in at_rung.values())
        rung = 1 + self.epochs.index(epoch)
        return f"rung {rung} (epoch {epoch}): rank {rank} of {len(at_rung)}, the best {going_on} went on"
