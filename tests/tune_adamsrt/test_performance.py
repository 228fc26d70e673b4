"""Performance against budget, against closed forms and brute force."""

import math
from collections import Counter

import numpy as np
import pytest
from search_records import make_trial

from tune_adamsrt.records import TrialState
from tune_adamsrt.reports.performance import expected_best, lr_sensitivity

COMPLETE, STOPPED, FAILED, RUNNING = TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED, TrialState.RUNNING
DRAWS = 20_000  # the mean of accuracies that spread by 0.4 then errs by 0.003; 5 sigma are the tolerance


def draw(trials, budgets, **options):
    return expected_best(trials, np.random.default_rng(0), budgets=budgets, draws=DRAWS, **options)


def test_of_trials_of_equal_cost_is_the_expected_maximum():
    values = [0.1, 0.5, 0.6, 0.9, 0.95]
    trials = [make_trial(number, COMPLETE, 10, value) for number, value in enumerate(values)]
    found = draw(trials, [10, 20, 30, 40, 50])
    assert found.epochs.tolist() == [10, 20, 30, 40, 50]
    n = len(values)
    for k, mean in enumerate(found.mean, start=1):
        exact = sum(v * ((i / n) ** k - ((i - 1) / n) ** k) for i, v in enumerate(sorted(values), start=1))
        assert mean == pytest.approx(exact, abs=0.015)
    assert found.first == 10
    assert found.low[0] == 0.1 and found.high[0] == 0.95  # 5 % and 95 % of one trial of five
    assert found.low[-1] == 0.6  # P(best of five draws <= 0.5) = 0.4^5 = 1 %


def exact_distribution(costs, values, budget):
    """Best value when the budget is paid -> its probability, by following all that can be drawn."""
    states, ended = {(0, -math.inf): 1.0}, Counter()
    while states:
        following = Counter()
        for (paid, best), p in states.items():
            for cost, value in zip(costs, values, strict=True):
                if paid + cost > budget:
                    ended[best] += p / len(costs)
                else:
                    following[paid + cost, max(best, value)] += p / len(costs)
        states = following
    return ended


def test_stopped_and_failed_trials_cost_and_find_nothing():
    trials = [
        make_trial(0, COMPLETE, 4, 0.8),
        make_trial(1, STOPPED, 1, 0.99),
        make_trial(2, FAILED, 2, 0.97),
        make_trial(3, COMPLETE, 3, 0.6, epochs_repeated=1),
        *(make_trial(number, COMPLETE, 1, 0.7) for number in (4, 5, 6, 7, 8, 9)),
    ]
    costs, values = [4, 1, 2, 4, *[1] * 6], [0.8, -math.inf, -math.inf, 0.6, *[0.7] * 6]
    found = draw([*trials, make_trial(10, RUNNING, 9, 0.99)], [1, 11, 1000])
    assert found.epochs.tolist() == [11]  # 60 % have a candidate after one epoch; the search has spent 17 in all
    exact = exact_distribution(costs, values, 11)
    nothing = exact.pop(-math.inf, 0.0)
    assert sum(value * p for value, p in exact.items()) / (1 - nothing) == pytest.approx(found.mean[0], abs=0.002)
    assert exact_distribution(costs, values, 1)[-math.inf] == pytest.approx(0.4)


def test_never_falls_and_lies_within_its_band():
    generator = np.random.default_rng(1)
    states = [COMPLETE, STOPPED, STOPPED, COMPLETE, FAILED] * 6
    trials = [
        make_trial(number, state, 20 if state is COMPLETE else 4, float(generator.uniform(0.5, 0.9)))
        for number, state in enumerate(states)
    ]
    found = draw(trials, range(1, 400))
    assert len(found.epochs) > 200
    assert (np.diff(found.low) >= 0).all() and (np.diff(found.high) >= 0).all()
    assert (found.low <= found.mean).all() and (found.mean <= found.high).all()
    assert found.high[-1] == max(trial.value for trial in trials if trial.state is COMPLETE)
    assert found.epochs[0] >= 20


def test_is_the_same_for_the_same_seed():
    trials = [make_trial(number, COMPLETE, 10, 0.1 * number) for number in range(5)]
    first, second = (expected_best(trials, np.random.default_rng(3), budgets=[20], draws=50) for _ in range(2))
    other = expected_best(trials, np.random.default_rng(4), budgets=[20], draws=50)
    assert first.mean[0] == second.mean[0] != other.mean[0]


def test_needs_a_trial_that_was_trained_in_full():
    with pytest.raises(ValueError, match="trained in full, got none"):
        draw([make_trial(0, STOPPED, 2), make_trial(1, RUNNING, 5)], [10])


def test_lr_sensitivity_is_relative_to_the_best_and_of_full_trials_only():
    trials = [make_trial(number, COMPLETE, 10, 0.1 * number) for number in range(3)]
    for trial, lr in zip(trials, (0.4, 0.1, 0.2), strict=True):
        trial.hyper_parameters = {"lr": lr}
    stopped = make_trial(3, STOPPED, 2, 0.9)
    found = lr_sensitivity([*trials, stopped], trials[2])
    assert found == [(0.5, 0.1), (1.0, 0.2), (2.0, 0.0)]
