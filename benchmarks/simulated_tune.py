"""Ray Tune without Ray: its controller's calls, in its order, under a simulated clock.

Workers train runs of `curves.py`, each epoch in about the same simulated time. tests/benchmarks/test_simulated_tune.py
compares it with the real one.
"""

import heapq
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from benchmarks.curves import EPOCHS, Problem

MAX_CONCURRENT = 8
UNLIMITED = 1_000_000

HyperParameters = dict[str, Any]


class Arm(Protocol):
    """One search method: what Tune's controller talks to, and the trial whose configuration its user would take now."""

    searcher: Searcher
    scheduler: TrialScheduler
    has_our_trainable: bool  # which numbers its results, ends by itself and says why it failed

    def chosen(self, trials: Sequence["SimulatedTrial"]) -> "SimulatedTrial | None": ...


class SimulatedTrial:
    """A trial and its worker.

    `value` is what our Trainable reports with `selection: best`: the best accuracy so far, or, where the loss is not
    finite, the accuracy of that epoch. All searches get it.
    """

    def __init__(self, number: int, hyper_parameters: HyperParameters, problem: Problem, seed: int) -> None:
        self.trial_id = ""
        self.number = number
        self.hyper_parameters = hyper_parameters
        self.regret = problem.regret(self.hyper_parameters)
        self.epoch = 0
        self.value = 0.0
        self.best = 0.0
        rng = run_generator(self.hyper_parameters, seed)
        self.run = problem.run(self.hyper_parameters, rng)
        self.epoch_time = math.exp(rng.normal(0, 0.05))

    def train(self) -> dict[str, Any]:
        """Train an epoch; give what Tune's controller gets."""
        self.epoch += 1
        accuracy, loss = self.run.result(self.epoch)
        is_finite = math.isfinite(loss)
        self.best = max(self.best, accuracy) if is_finite else self.best
        self.value = self.best if is_finite else accuracy
        return result_of(self.epoch, self.value, accuracy, loss)


def run_generator(hyper_parameters: HyperParameters, seed: int) -> np.random.Generator:
    """Give a run's generator; it depends on the configuration and the search's seed, not on who asks for it."""
    return np.random.default_rng([seed, *struct.pack("d", hyper_parameters["lr"])])


def result_of(epoch: int, value: float, accuracy: float, loss: float) -> dict[str, Any]:
    """Give a Tune result with what our Trainable reports after an epoch."""
    return {
        "training_iteration": epoch,
        "epoch": epoch,
        "value": value,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "valid_loss": loss,
        "valid_accuracy": accuracy,
        "lr": 0.0,
        "seconds": 1.0,
        "train_images_per_second": 1.0,
    }


def simulate(
    arm: Arm,
    problem: Problem,
    seed: int,
    *,
    max_epochs: int,
    max_trials: int = UNLIMITED,
    max_concurrent: int = MAX_CONCURRENT,
    note: Callable[[list[SimulatedTrial], int], None] = lambda trials, spent: None,
    note_every: int = EPOCHS,
) -> list[SimulatedTrial]:
    """Run one search under a simulated clock, with the calls of Ray 2.60's TuneController and in its order.

    (tune/execution/tune_controller.py: _process_trial_result, then stop_trial where the decision is STOP.) One thing
    differs: a searcher that is FINISHED is asked again when the next worker is free; Tune would end the search.

    Args:
        note: called with all trials and the epochs spent, after every note_every of them.
    """
    trials: list[SimulatedTrial] = []
    clock: list[tuple[float, int, str]] = []  # when an epoch ends, of which trial, and Tune's name for it
    asked = itertools.count()

    def fill_workers(now: float) -> None:
        while len(clock) < max_concurrent:
            if len(trials) >= max_trials:
                return
            trial_id = f"{next(asked):05d}"
            config = arm.searcher.suggest(trial_id)
            if config is None or config == Searcher.FINISHED:
                return
            number = config.get("trial_number", len(trials))
            if number == len(trials):
                trials.append(SimulatedTrial(number, config["hyper_parameters"], problem, seed))
            trial = trials[number]  # with promotion, one that goes on from its checkpoint
            trial.trial_id = trial_id
            arm.scheduler.on_trial_add(None, trial)
            heapq.heappush(clock, (now + trial.epoch_time, number, trial_id))

    fill_workers(0.0)
    spent = 0
    while clock and spent < max_epochs:
        now, number, trial_id = heapq.heappop(clock)
        trial = trials[number]
        result = trial.train() | {"trial_id": trial_id} | own_part(trial, arm.has_our_trainable)
        spent += 1
        if result.get("done"):
            decision = TrialScheduler.STOP
        else:
            decision = arm.scheduler.on_trial_result(None, trial, result)
        if decision == TrialScheduler.STOP:  # such a result never reaches searcher.on_trial_result
            result["done"] = True
            arm.scheduler.on_trial_complete(None, trial, result)
            arm.searcher.on_trial_complete(trial_id, result=result)
            fill_workers(now)
        else:
            arm.searcher.on_trial_result(trial_id, result)
            heapq.heappush(clock, (now + trial.epoch_time, number, trial_id))
        if spent % note_every == 0:
            note(trials, spent)
    return trials


def own_part(trial: SimulatedTrial, has_our_trainable: bool) -> dict[str, Any]:
    """Give what our Trainable adds to its results; a stock user's function reports its metrics only."""
    if not has_our_trainable:
        return {}
    number = {"trial_number": trial.number}
    if trial.run.has_diverged(trial.epoch):
        return number | {"failure": f"diverged: train_loss is nan at epoch {trial.epoch}", "done": True}
    return number | {"done": trial.epoch == EPOCHS}
