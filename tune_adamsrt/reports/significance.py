"""Whether accuracies over seeds differ by more than noise: t-tests for pairs, corrected for their number. Pure."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

Accuracies = Mapping[int, float]
"""Seed -> accuracy."""


class Test(StrEnum):
    """Welch: two independent samples of unequal variance. Paired: differences on the seeds that both have."""

    __test__ = False  # pytest

    WELCH = "welch"
    PAIRED = "paired"


@dataclass(frozen=True)
class PairTest:
    """Two optimizers on one setting.

    Attributes:
        p: two-sided; 1 where the test cannot be done (see `p_value`).
        corrected_p: after Holm's correction over all pairs of the setting.
    """

    first: str
    second: str
    p: float
    corrected_p: float


def p_value(first: Accuracies, second: Accuracies, test: Test) -> float:
    """Give the two-sided p-value of equal means.

    1 where nothing can be said: fewer than two seeds on a side (paired: in common), or no spread at all. A few seeds
    without any spread are a coarse test set, not certainty.
    """
    if test is Test.PAIRED:
        seeds = sorted(first.keys() & second.keys())
        # Rounded, so that equal differences stay equal: accuracies are quotients of whole numbers.
        differences = np.array([first[seed] - second[seed] for seed in seeds]).round(12)
        if len(seeds) < 2 or np.ptp(differences) == 0:
            return 1.0
        found = stats.ttest_1samp(differences, 0.0).pvalue
    else:
        samples = [np.array(list(values.values())).round(12) for values in (first, second)]
        if min(len(values) for values in samples) < 2 or max(np.ptp(values) for values in samples) == 0:
            return 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one side without spread is fine
            found = stats.ttest_ind(*samples, equal_var=False).pvalue
    return 1.0 if math.isnan(found) else float(found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: rejecting those below alpha errs at all with a probability of at most alpha.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def compare_all(accuracies: Mapping[str, Accuracies], test: Test) -> list[PairTest]:
    """Test every pair of optimizers on one setting.

    All pairs count for the correction, since which optimizer is the best, and so which pairs matter, is only known from
    the same accuracies.
    """
    pairs = list(itertools.combinations(accuracies, 2))
    p_values = [p_value(accuracies[first], accuracies[second], test) for first, second in pairs]
    return [
        PairTest(first, second, p, corrected)
        for (first, second), p, corrected in zip(pairs, p_values, holm(p_values), strict=True)
    ]


def not_worse_than_best(
    accuracies: Mapping[str, Accuracies], tests: Sequence[PairTest], *, alpha: float
) -> tuple[str | None, frozenset[str]]:
    """Give the optimizer with the highest mean, and with it all that are not significantly worse."""
    if not accuracies:
        return None, frozenset()
    best = max(accuracies, key=lambda name: float(np.mean(list(accuracies[name].values()))))
    worse = {
        name
        for found in tests
        if best in (found.first, found.second) and found.corrected_p < alpha
        for name in (found.first, found.second)
    }
    return best, frozenset(accuracies) - (worse - {best})
