"""Optuna's samplers by name, set up for asking and telling from Ray Tune."""

import bisect
import dataclasses
import heapq
import math
import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

from adamsrt.registry import Registry
from tune_adamsrt.ranges import Range
from tune_adamsrt.space import SearchSpace

# How often a weight decay that may be zero is zero before anything is known (of the paper's grid 1 in 8 is).
ZERO_SHARE = 1 / 6

# Of how many trials with a value a model is made, at most, and how many of these are the best ones.
MOST_SHOWN = 500
BEST_SHOWN = 100

SAMPLERS: Registry[Callable[[SearchSpace, int], BaseSampler]] = Registry("sampler")


class AskTellGridSampler(GridSampler):
    """Optuna's grid; it calls `study.stop()` at the end, which exists inside `study.optimize` only."""

    def after_trial(
        self, study: OptunaStudy, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        return None


class JointSampler(BaseSampler):
    """Any of Optuna's samplers, with one model of the whole space and of all trials that have a value.

    The space that it is shown has no conditions: a range that may be zero is one log range, longer at its lower end,
    and what lies in the added part is zero. The trials that it is shown are those of `_View`; all of one study.

    Args:
        most_shown: of how many trials with a value a model is made, at most.
    """

    def __init__(self, sampler: BaseSampler, space: SearchSpace, *, most_shown: int = MOST_SHOWN) -> None:
        self._sampler = sampler
        self._ranges = {name: allowed for name, allowed in space.ranges.items() if allowed.kind != "fixed"}
        self.joint = {name: _joint_distribution(allowed) for name, allowed in self._ranges.items()}
        self._view = _View(self._encode, most_shown)

    def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Give the space as `SearchSpace.suggest` asks for it, conditional parameters included."""
        asked: dict[str, BaseDistribution] = {}
        for name, allowed in self._ranges.items():
            if allowed.kind == "zero_or_log_uniform":
                asked[f"{name}_zero"] = CategoricalDistribution((False, True))
                asked[name] = FloatDistribution(allowed.low, allowed.high, log=True)
            else:
                asked[name] = self.joint[name]
        return asked

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        seen = self._view.of(study)
        point = dict(self._sampler.sample_relative(seen, trial, self.joint))
        for name, distribution in self.joint.items():
            if name not in point:  # too few trials for a model
                point[name] = self._sampler.sample_independent(seen, trial, name, distribution)
        return self.decode(point)

    def sample_independent(
        self, study: OptunaStudy, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: OptunaStudy, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def _encode(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Give the trial in the joint space; None where a parameter is missing."""
        point = dict(trial.params)
        for name, allowed in self._ranges.items():
            if allowed.kind == "zero_or_log_uniform" and point.pop(f"{name}_zero", False):
                point[name] = float(np.sqrt(_low_with_zero(allowed) * allowed.low))
        if not point.keys() >= self.joint.keys():
            return None
        is_stopped = trial.state is TrialState.PRUNED or (
            trial.state is TrialState.RUNNING and bool(trial.intermediate_values)
        )
        encoded = create_trial(
            state=TrialState.PRUNED if is_stopped else trial.state,
            value=trial.value,
            params={name: point[name] for name in self.joint},
            distributions=self.joint,
            intermediate_values=trial.intermediate_values,
        )
        encoded.number = trial.number
        return encoded

    def decode(self, point: dict[str, Any]) -> dict[str, Any]:
        """Give a point of the joint space as Optuna parameters of the space itself."""
        for name, allowed in self._ranges.items():
            if allowed.kind == "zero_or_log_uniform":
                point[f"{name}_zero"] = point[name] < allowed.low
                point[name] = max(point[name], allowed.low)
        return point


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A trial as the sampler sees it.

    Attributes:
        reports: how many values it had then; with another number it is looked at anew.
        rank: as TPE orders trials, the best first; None where there is nothing to learn from it.
    """

    trial: FrozenTrial | None
    state: TrialState
    reports: int
    rank: tuple[float, ...] | None


class _View:
    """A study as a sampler should see it: a trial that still runs, or waits to be promoted, as if stopped where it is.

    TPE's constant liar counts all that run among the poor. With early stopping they are the survivors. It speaks for
    trials before their first epoch only. Samplers read trials through `Study._get_trials`; all else is the study's own.

    Of more than `most_shown` trials with a value it shows so many: the best BEST_SHOWN, and every so-many-th of the
    others. TPE models at most 25 trials as good, which are the same then. All others only give the density of what was
    tried, of which some hundreds say as much: its kernels are 1 % of each range wide, whether there are 100 or 10,000.
    Trials before their first epoch are all shown, of which there are at most as many as workers.
    """

    def __init__(self, encode: Callable[[FrozenTrial], FrozenTrial | None], most_shown: int) -> None:
        self._encode = encode
        self._most_shown = most_shown
        self._seen: list[_Seen] = []  # by number
        self._open: list[int] = []  # the others change no more
        self._ended: list[int] = []  # those with a value, by number
        self._best_ended: list[tuple[tuple[float, ...], int]] = []  # the best BEST_SHOWN of them
        self._shown: list[FrozenTrial] = []
        self._study: OptunaStudy

    def of(self, study: OptunaStudy) -> OptunaStudy:
        """Give the study as it is now, until the next call."""
        self._study = study
        trials = study.get_trials(deepcopy=False)
        still_open = []
        for number in [*self._open, *range(len(self._seen), len(trials))]:
            seen = self._look_at(number, trials[number])
            if not trials[number].state.is_finished():
                still_open.append(number)
            elif seen.rank is not None:
                bisect.insort(self._ended, number)
                bisect.insort(self._best_ended, (seen.rank, number))
                del self._best_ended[BEST_SHOWN:]
        self._open = still_open
        self._shown = [trial for number in self._numbers_shown() if (trial := self._seen[number].trial) is not None]
        return cast(OptunaStudy, self)

    def _look_at(self, number: int, trial: FrozenTrial) -> _Seen:
        known = self._seen[number] if number < len(self._seen) else None
        as_of = (trial.state, len(trial.intermediate_values))
        if known is not None and known.trial is not None and (known.state, known.reports) == as_of:
            return known
        encoded = self._encode(trial)
        rank = None if encoded is None or trial.state is TrialState.FAIL else _rank(encoded)
        seen = _Seen(encoded, *as_of, rank)
        self._seen[number : number + 1] = [seen]
        return seen

    def _numbers_shown(self) -> list[int]:
        ranked = [(rank, number) for number in self._open if (rank := self._seen[number].rank) is not None]
        with_value = sorted([*self._ended, *(number for _, number in ranked)])
        if len(with_value) > self._most_shown:
            best = {number for _, number in heapq.nsmallest(BEST_SHOWN, [*self._best_ended, *ranked])}
            others = [number for number in with_value if number not in best]
            every = np.linspace(0, len(others) - 1, self._most_shown - len(best)).round().astype(int)
            with_value = [*best, *(others[i] for i in every)]
        before_first_epoch = [number for number in self._open if self._seen[number].rank is None]
        return sorted([*with_value, *before_first_epoch])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._shown if states is None or trial.state in states]


def _rank(trial: FrozenTrial) -> tuple[float, ...] | None:
    """Order trials as TPE does: complete ones by value, then the others by how far they came and their value there."""
    if trial.state is TrialState.COMPLETE:
        assert trial.value is not None
        return (0.0, 0.0, -trial.value)
    if trial.state is not TrialState.PRUNED:
        return None
    if not trial.intermediate_values:
        return (1.0, 1.0, 0.0)
    step, value = max(trial.intermediate_values.items())
    return (1.0, -step, math.inf if math.isnan(value) else -value)


def _joint_distribution(allowed: Range) -> BaseDistribution:
    if allowed.kind == "choice":
        return CategoricalDistribution(allowed.values)
    low = _low_with_zero(allowed) if allowed.kind == "zero_or_log_uniform" else allowed.low
    return FloatDistribution(low, allowed.high, log=allowed.kind != "uniform")


def _low_with_zero(allowed: Range) -> float:
    """Where a log range must begin so that ZERO_SHARE of its length lies below the range itself."""
    return float(allowed.low * (allowed.low / allowed.high) ** (ZERO_SHARE / (1 - ZERO_SHARE)))


SAMPLERS.add(
    "tpe", lambda space, seed: JointSampler(TPESampler(seed=seed, multivariate=True, constant_liar=True), space)
)
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
