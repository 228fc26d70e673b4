"""Performance against budget: what accuracy tuning for a number of epochs can be expected to find. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune_adamsrt.records import TrialRecord, TrialState

Floats = NDArray[np.float64]

COVERED = 0.95  # of the draws must have found a candidate before their mean says anything


@dataclass(frozen=True)
class ExpectedBest:
    """What a search of b epochs is expected to find; see `expected_best`.

    Attributes:
        epochs: (n,) budgets b, ascending; those where too few draws have a candidate are left out.
        mean, low, high: (n,) best validation accuracy so far in [0, 1]: mean and quantiles over the draws.
        first: epochs by which half of the draws have their first candidate.
    """

    epochs: Floats
    mean: Floats
    low: Floats
    high: Floats
    first: float


def expected_best(
    trials: Sequence[TrialRecord],
    generator: np.random.Generator,
    *,
    budgets: Sequence[float],
    draws: int = 1000,
    band: float = 0.9,
) -> ExpectedBest:
    """Bootstrap the best validation accuracy after b epochs of tuning.

    Every draw is a search made of these trials: drawn with replacement, one after the other, each paying the epochs it
    has spent. A trial counts once it is paid for, and only if it was trained in full: stopped and failed ones cost, and
    find nothing. Means and quantiles are over the draws that have a candidate.

    This is exact for independent trials (random search without early stopping). A sampler that learns makes late trials
    better than early ones, which the drawing evens out; and what early stopping would have done with other neighbours
    is not known. It shows what one trial after the other costs, not how many fit side by side. As with every bootstrap,
    nothing above the best trial at hand can come out, so budgets beyond the search's own are not shown.

    Args:
        trials: of one search; those that have not ended are left out.
        budgets: b, in epochs.
        draws: how many searches are drawn.
        band: share of the draws between `low` and `high`.
    Raises:
        ValueError: no trial was trained in full.
    Source: J. Dodge et al., "Show Your Work", arXiv:1909.03004, for trials of equal cost.
    """
    ended = [trial for trial in trials if trial.has_ended]
    costs = np.array([trial.epochs_spent for trial in ended], dtype=np.float64)
    values = np.array([_value(trial) for trial in ended], dtype=np.float64)
    if not np.isfinite(values).any():
        raise ValueError("expected_best needs a trial that was trained in full, got none")
    asked = np.sort(np.asarray(budgets, dtype=np.float64))
    asked = asked[asked <= costs.sum()]
    paid, best = _draw(costs, values, generator, draws=draws, until=float(costs.sum()))
    at_budget = np.stack([_at(paid, best, b) for b in asked]) if len(asked) else np.empty((0, draws))
    is_covered = np.isfinite(at_budget).mean(axis=1) >= COVERED
    shown = np.where(np.isfinite(at_budget), at_budget, np.nan)[is_covered]
    tail = (1 - band) / 2
    first = np.where(np.isfinite(best), paid, np.inf).min(axis=1)
    return ExpectedBest(
        epochs=asked[is_covered],
        mean=np.nanmean(shown, axis=1) if len(shown) else np.empty(0),
        low=np.nanquantile(shown, tail, axis=1) if len(shown) else np.empty(0),
        high=np.nanquantile(shown, 1 - tail, axis=1) if len(shown) else np.empty(0),
        first=float(np.median(first)),
    )


def _draw(
    costs: Floats, values: Floats, generator: np.random.Generator, *, draws: int, until: float
) -> tuple[Floats, Floats]:
    """Draw searches of at least `until` epochs: (draws, k) epochs paid after each trial, and the best value by then."""
    paid, best = np.zeros((draws, 0)), np.zeros((draws, 0))
    spent, so_far = np.zeros((draws, 1)), np.full((draws, 1), -np.inf)
    step = math.ceil(1.5 * until / costs.mean())
    while spent.min() < until:
        drawn = generator.integers(len(costs), size=(draws, step))
        paid = np.hstack([paid, spent + np.cumsum(costs[drawn], axis=1)])
        best = np.hstack([best, np.maximum(so_far, np.maximum.accumulate(values[drawn], axis=1))])
        spent, so_far = paid[:, -1:], best[:, -1:]
    return paid, best


def _at(paid: Floats, best: Floats, budget: float) -> Floats:
    """The best of each draw when `budget` epochs are paid; -inf where it has no candidate yet."""
    count = (paid <= budget).sum(axis=1)
    found: Floats = np.where(count > 0, best[np.arange(len(best)), np.maximum(count, 1) - 1], -np.inf)
    return found


def _value(trial: TrialRecord) -> float:
    is_candidate = trial.state is TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value)
    return trial.value if is_candidate and trial.value is not None else -math.inf


def lr_sensitivity(trials: Sequence[TrialRecord], best: TrialRecord) -> list[tuple[float, float]]:
    """Give (learning rate / that of the best, validation accuracy) of the trials trained in full, by learning rate.

    Stopped trials are left out: at fewer epochs, accuracies do not compare. With early stopping, poor learning rates
    are therefore rarer here than in the search.
    """
    best_lr = best.hyper_parameters["lr"]
    found = [(trial.hyper_parameters["lr"] / best_lr, _value(trial)) for trial in trials]
    return sorted((ratio, value) for ratio, value in found if math.isfinite(value))
