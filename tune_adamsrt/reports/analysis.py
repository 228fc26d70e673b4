"""What the trials of a search say, as plain numbers: the series behind the figures. Nothing here draws or reads."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from scipy.stats import kendalltau  # type: ignore[import-untyped]

from tune_adamsrt.records import TrialRecord, TrialState
from tune_adamsrt.reports.scales import stored_space
from tune_adamsrt.space import SearchSpace
from tune_adamsrt.studies import StoredSearch

MIN_TRIALS = {"rank fidelity": 5, "importance": 10}
TOP_TRIALS = 5  # PED-ANOVA's densities rest on at least as many
SHUFFLES = 100


class TooFewTrialsError(ValueError):
    """A question that the trials at hand cannot answer; the message says what is missing."""


def candidates(search: StoredSearch) -> list[TrialRecord]:
    """The trials that reached the full budget."""
    return [trial for trial in search.trials if trial.state is TrialState.COMPLETE]


@dataclass(frozen=True)
class BestSoFar:
    """Steps of the best value against the epochs spent by all trials together.

    Attributes:
        candidates: (epochs spent, value) whenever a trial at the full budget was better than those before.
        any_epoch: the same, where a trial counts at every epoch.
        spent: epochs spent at the end.
    """

    candidates: tuple[tuple[int, float], ...]
    any_epoch: tuple[tuple[int, float], ...]
    spent: int


def best_so_far(search: StoredSearch) -> BestSoFar:
    """Follow the best value as epochs were spent, in the order in which the driver heard of them.

    Where that order was not recorded, the trials count one after the other, in the order of their ends. Epochs that
    were trained twice count where their trial ends.
    """
    at_full: list[tuple[int, float]] = []
    at_any: list[tuple[int, float]] = []
    spent = 0
    for trial, index in _in_order_of_reports(search.trials):
        report = trial.epochs[index]
        is_last = index == len(trial.epochs) - 1
        spent += 1 + (trial.epochs_repeated if is_last else 0)
        if not report.is_finite:
            continue
        if not at_any or report.value > at_any[-1][1]:
            at_any.append((spent, report.value))
        if is_last and trial.state is TrialState.COMPLETE and (not at_full or report.value > at_full[-1][1]):
            at_full.append((spent, report.value))
    return BestSoFar(tuple(at_full), tuple(at_any), spent)


def _in_order_of_reports(trials: Sequence[TrialRecord]) -> list[tuple[TrialRecord, int]]:
    found = [(trial, index) for trial in trials for index in range(len(trial.epochs))]
    if all(trial.epochs[index].reported_at for trial, index in found):
        return sorted(found, key=lambda at: (at[0].epochs[at[1]].reported_at, at[0].number))
    return sorted(found, key=lambda at: (at[0].ended_at or math.inf, at[0].number))


def rungs_of(search: StoredSearch) -> tuple[int, ...]:
    """The epochs at which the search compared its trials: as it noted them, else as the stopped trials name them."""
    if "rungs" in search.info.tags:
        return tuple(int(epoch) for epoch in re.findall(r"\d+", search.info.tags["rungs"]))
    named = (re.match(r"rung \d+ \(epoch (\d+)\)", trial.reason) for trial in search.trials)
    return tuple(sorted({int(found[1]) for found in named if found}))


def comparison_epochs(search: StoredSearch) -> tuple[int, ...]:
    """The rungs; for a search without any, an eighth, a quarter and a half of the full budget."""
    return rungs_of(search) or tuple(
        sorted({max(1, search.info.epochs // part) for part in (8, 4, 2)} - {search.info.epochs})
    )


@dataclass(frozen=True)
class Stage:
    """What became of the trials that reached one rung (0: all that were started).

    `reached` is the sum of the others; `elsewhere`: stopped between rungs, by a budget.
    """

    epoch: int
    reached: int
    went_on: int
    stopped: int
    elsewhere: int
    failed: int
    running: int


def stages(search: StoredSearch) -> list[Stage]:
    """Follow the trials from rung to rung; the last stage is the full budget, where `went_on` are the candidates."""
    full = search.info.epochs
    epochs = [0, *(rung for rung in rungs_of(search) if rung < full), full]
    found = []
    for epoch, following in zip(epochs, [*epochs[1:], math.inf], strict=True):
        here = [trial for trial in search.trials if trial.epoch >= epoch]
        left = [trial for trial in here if trial.epoch < following and trial.state is not TrialState.COMPLETE]
        states = Counter(trial.state for trial in left)
        stopped = sum(trial.state is TrialState.STOPPED and trial.epoch == epoch > 0 for trial in left)
        found.append(
            Stage(
                epoch=epoch,
                reached=len(here),
                went_on=len(here) - len(left),
                stopped=stopped,
                elsewhere=states[TrialState.STOPPED] - stopped,
                failed=states[TrialState.FAILED],
                running=states[TrialState.RUNNING] + states[TrialState.PAUSED],
            )
        )
    return found


def latest_comparison(search: StoredSearch, *, at_least: int) -> tuple[int, list[TrialRecord]]:
    """Find the latest epoch with enough trials to say something: the full budget where there are, else a rung.

    Returns:
        The epoch and the trials that have a finite value there (at the full budget: the candidates).
    Raises:
        TooFewTrialsError: no rung has as many either.
    """
    finished = candidates(search)
    if len(finished) >= at_least:
        return search.info.epochs, finished
    for epoch in reversed(comparison_epochs(search)):
        here = [trial for trial in search.trials if value_at(trial, epoch) is not None]
        if len(here) >= at_least:
            return epoch, here
    raise TooFewTrialsError(f"needs at least {at_least} trials at one rung or at the full budget")


@dataclass(frozen=True)
class RankFidelity:
    """How well the order of trials at an epoch agrees with their order at a later one.

    Attributes:
        tau: epoch -> Kendall's tau-b, 1 for the same order; epochs at which all are alike are left out.
        until: the later epoch: the full budget, or the latest rung that enough trials reached.
        trials: how many reached it.
    """

    tau: dict[int, float]
    until: int
    trials: int


def rank_fidelity(search: StoredSearch) -> RankFidelity:
    """Compare the order at every epoch with that at the end. Raises TooFewTrialsError."""
    until, trials = latest_comparison(search, at_least=MIN_TRIALS["rank fidelity"])
    final = [value_at(trial, until) for trial in trials]
    if len(set(final)) == 1:
        raise TooFewTrialsError(f"all {len(trials)} trials have the same value at epoch {until}: no order to predict")
    tau = {}
    for epoch in range(1, until + 1):
        values = [value_at(trial, epoch) for trial in trials]
        if None not in values and len(set(values)) > 1:
            tau[epoch] = float(kendalltau(values, final).statistic)
    return RankFidelity(tau, until, len(trials))


@dataclass(frozen=True)
class WinnerAt:
    """Where the best candidate stood at an epoch among all trials that came so far: rank 1 is the best."""

    epoch: int
    rank: int
    trials: int

    @property
    def is_in_best_half(self) -> bool:
        return self.rank <= math.ceil(self.trials / 2)


def winner_at(search: StoredSearch, winner: TrialRecord) -> list[WinnerAt]:
    """Say where the winner stood at every rung, with what is known now: stopped and failed trials included."""
    found = []
    for epoch in comparison_epochs(search):
        own = value_at(winner, epoch)
        values = [value for trial in search.trials if (value := value_at(trial, epoch)) is not None]
        if own is not None:
            found.append(WinnerAt(epoch, 1 + sum(value > own for value in values), len(values)))
    return found


def value_at(trial: TrialRecord, epoch: int) -> float | None:
    """The value at an epoch; None where the trial has none, or it is not finite."""
    if len(trial.epochs) < epoch or not trial.epochs[epoch - 1].is_finite:
        return None
    return trial.epochs[epoch - 1].value


@dataclass(frozen=True)
class Importance:
    """How much each hyper-parameter decides whether a trial is among the best, by PED-ANOVA (arXiv:2304.10255).

    Attributes:
        shares: hyper-parameter -> its share of the sum, the largest first.
        chance: hyper-parameter -> the share that it exceeds in one of twenty cases where values are shuffled.
        top: the share of the trials that count as the best.
        epoch: where their values are taken: the full budget, or the latest rung that enough trials reached.
    """

    shares: dict[str, float]
    chance: dict[str, float]
    top: float
    epoch: int
    trials: int


def importance(search: StoredSearch, *, seed: int = 0) -> Importance:
    """Ask Optuna's default evaluator which hyper-parameters matter. Raises TooFewTrialsError.

    `weight_decay = 0` (whether there is any) and `weight_decay` (how much) are two questions where the space has both.
    """
    space = stored_space(search.info.space)
    epoch, trials = latest_comparison(search, at_least=MIN_TRIALS["importance"])
    trials = [trial for trial in trials if space.contains(trial.hyper_parameters)]
    values = np.array([value_at(trial, epoch) for trial in trials])
    if len(set(values)) <= 1:
        raise TooFewTrialsError(f"all {len(trials)} trials have the same value at epoch {epoch}")
    top = max(0.1, TOP_TRIALS / len(trials))
    study = _study_of(space, trials)
    found = _ped_anova(study, values, top)
    generator = np.random.default_rng(seed)
    shuffled = [_ped_anova(study, generator.permutation(values), top) for _ in range(SHUFFLES)]
    total = sum(found.values()) or 1.0
    names = sorted(found, key=lambda name: -found[name])
    return Importance(
        shares={_shown(name): found[name] / total for name in names},
        chance={_shown(name): float(np.quantile([s.get(name, 0) for s in shuffled], 0.95)) / total for name in names},
        top=top,
        epoch=epoch,
        trials=len(trials),
    )


def _study_of(space: SearchSpace, trials: Sequence[TrialRecord]) -> optuna.Study:
    """A study in memory of just these trials, numbered from 0; their values are given when it is evaluated."""
    distributions = _distributions(space)
    study = optuna.create_study(direction="minimize")
    for trial in trials:
        params = space.encode(trial.hyper_parameters)
        known = {name: distributions[name] for name in params}
        study.add_trial(optuna.create_trial(params=params, distributions=known, value=0.0))
    return study


def _ped_anova(study: optuna.Study, values: NDArray[np.float64], top: float) -> dict[str, float]:
    """The evaluator's own numbers, before they are scaled to a sum of 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells that it takes low targets for good ones
        return get_param_importances(
            study,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=top),
            target=lambda trial: -float(values[trial.number]),
            normalize=False,
        )


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for name, allowed in space.ranges.items():
        if allowed.kind == "choice":
            found[name] = CategoricalDistribution(allowed.values)
        elif allowed.kind != "fixed":
            found[name] = FloatDistribution(allowed.low, allowed.high, log="log" in allowed.kind)
        if allowed.kind == "zero_or_log_uniform":
            found[f"{name}_zero"] = CategoricalDistribution((False, True))
    return found


def _shown(name: str) -> str:
    if name.endswith("_zero"):
        return f"{name.removesuffix('_zero')} = 0"
    return name.removeprefix("one_minus_")


def edge_lines(search: StoredSearch, trial: TrialRecord) -> list[str]:
    """Say which of a trial's values lie at an edge of the space, and what to try."""
    space = stored_space(search.info.space)
    return space.edges(trial.hyper_parameters) if space.contains(trial.hyper_parameters) else []
