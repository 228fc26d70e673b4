"""The learning curves that searches are compared on have the properties that they claim."""

import math

import numpy as np
import pytest

from adamsrt.training import lr_drop_epochs
from benchmarks.curves import BOUNDS, EPOCHS, PROBLEMS
from tune_adamsrt.settings import load_setting

EVERY_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def bottom(problem, **changes):
    values = {"lr": problem.lr, "betas": (problem.beta1, 1 - problem.one_minus_beta2)}
    return values | {"weight_decay": problem.weight_decay} | changes


def random_points(n, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        lr, beta1, one_minus_beta2, decay = (rng.uniform(*bounds) for bounds in BOUNDS)
        decay = 0.0 if rng.random() < 0.5 else 10**decay
        yield {"lr": 10**lr, "betas": (beta1, 1 - 10**one_minus_beta2), "weight_decay": decay}


def test_the_bounds_are_those_of_the_real_space():
    space = load_setting("resnet18-cifar10").optimizers["adamsrt"].space
    names = ("lr", "beta1", "one_minus_beta2", "weight_decay")
    for name, bounds in zip(names, BOUNDS, strict=True):
        real = space[name]
        scale = (lambda value: value) if name == "beta1" else math.log10
        assert bounds == pytest.approx((scale(real.low), scale(real.high)))


@EVERY_PROBLEM
def test_no_point_is_better_than_the_optimum(problem):
    regrets = [problem.regret(point) for point in random_points(300)]
    assert min(regrets) >= -1e-6
    assert 0 <= problem.regret(bottom(problem)) < 0.005  # the plateau and the start move the optimum a little
    assert 0.002 < np.mean(np.array(regrets) < 0.01) < 0.2  # odds of a false failure: none, the points are fixed


@EVERY_PROBLEM
def test_accuracy_jumps_at_every_drop(problem):
    accuracies = problem.accuracies(bottom(problem))
    for drop in lr_drop_epochs(EPOCHS):
        before, after = accuracies[drop - 1] - accuracies[drop - 6], accuracies[drop + 4] - accuracies[drop - 1]
        assert after > 2 * before


def test_curves_cross():
    problem = next(problem for problem in PROBLEMS if problem.name == "crossing")
    best = problem.accuracies(bottom(problem))
    small = problem.accuracies(bottom(problem, lr=problem.lr / 3))
    assert small[44] > best[44]
    assert small[-1] < best[-1] - 0.01


@EVERY_PROBLEM
def test_a_diverged_run_is_at_chance_with_a_loss_of_nan(problem):
    run = problem.run(bottom(problem, lr=0.5), np.random.default_rng(0))
    assert run.diverges_at is not None
    assert run.diverges_at < lr_drop_epochs(EPOCHS)[0]
    accuracy, loss = run.result(EPOCHS)
    assert (accuracy, math.isnan(loss)) == (0.1, True)


@EVERY_PROBLEM
def test_a_run_is_its_curve_with_noise(problem):
    point = bottom(problem, lr=problem.lr / 2)
    runs = [problem.run(point, np.random.default_rng(seed)) for seed in range(200)]
    last = np.array([run.accuracies[-1] for run in runs if run.diverges_at is None])
    spread = math.hypot(problem.run_noise, 0.35 * problem.epoch_noise)
    assert last.mean() == pytest.approx(problem.final_accuracy(point), abs=5 * spread / math.sqrt(len(last)))
    assert last.std() == pytest.approx(spread, rel=0.3)
