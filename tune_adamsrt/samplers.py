"""Optuna's samplers by name, set up for asking and telling from Ray Tune."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, TrialState

from adamsrt.registry import Registry
from tune_adamsrt.space import SearchSpace

SAMPLERS: Registry[Callable[[SearchSpace, int], BaseSampler]] = Registry("sampler")


class AskTellGridSampler(GridSampler):
    """Optuna's grid; it calls `study.stop()` at the end, which exists inside `study.optimize` only."""

    def after_trial(
        self, study: OptunaStudy, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        return None


# group=True: the conditional weight decay gets a model of its own instead of independent sampling.
SAMPLERS.add("tpe", lambda space, seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True))
SAMPLERS.add("gp", lambda space, seed: GPSampler(seed=seed, warn_independent_sampling=False))
SAMPLERS.add(
    "cmaes", lambda space, seed: CmaEsSampler(seed=seed, warn_independent_sampling=False, consider_pruned_trials=True)
)
SAMPLERS.add(
    "qmc",
    lambda space, seed: QMCSampler(
        seed=seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
    ),
)
SAMPLERS.add("random", lambda space, seed: RandomSampler(seed=seed))
SAMPLERS.add("grid", lambda space, seed: AskTellGridSampler(space.grid(), seed=seed))

# These read their place in a sequence from the storage, and the sequence must stay the same after a restart.
SEQUENCES = {"qmc", "grid"}


def build_sampler(name: str, space: SearchSpace, seed: int, *, trials_so_far: int = 0) -> BaseSampler:
    """Build Optuna's sampler of that name.

    Args:
        trials_so_far: of a study that goes on. The sampler's random state is not kept; a state begun anew with the
            same seed would draw the first points again.
    Raises:
        UnknownNameError.
    """
    if trials_so_far and name not in SEQUENCES:
        seed = int(np.random.SeedSequence([seed, trials_so_far]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](space, seed)


def check_sampler_suits_scheduler(sampler: str, scheduler: str) -> None:
    """Raise ValueError where a sampler would learn nothing from stopped trials."""
    if sampler == "gp" and scheduler != "fifo":
        raise ValueError(
            f"sampler gp must run with --scheduler fifo, got {scheduler}: "
            "Optuna's GPSampler ignores stopped trials, so early stopping would starve it"
        )


def grid_size(space: SearchSpace) -> int:
    """How many points the paper's grid has for this space."""
    size = 1
    for values in space.grid().values():
        size *= len(values)
    return size
