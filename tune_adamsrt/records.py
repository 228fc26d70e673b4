"""The plain values that flow through a search: what a trial reported, how it ended, and who wants to be told."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

HyperParameters = dict[str, Any]
"""As in best_hyper_parameters.py: lr, betas (a pair), momentum, weight_decay."""


class TrialState(StrEnum):
    """How a trial stands.

    Paused: waits at a rung, with a checkpoint, until it is promoted. Stopped: by the scheduler or a budget. Failed:
    diverged, raised, or lost for good.
    """

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of one trial gave; accuracies are fractions in [0, 1].

    Attributes:
        epoch: epochs trained so far, 1 after the first.
        value: what trials are compared by at this epoch: the best (or last) validation accuracy so far.
        weight_norm, grad_norm, effective_lr: see `adamsrt.training.norms`; None where they were not measured.
        reported_at: seconds since the Unix epoch by the driver's clock; 0 where that was not recorded.
    """

    epoch: int
    value: float
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    lr: float
    seconds: float
    train_images_per_second: float
    weight_norm: float | None = None
    grad_norm: float | None = None
    effective_lr: float | None = None
    reported_at: float = 0.0

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.train_loss) and math.isfinite(self.valid_loss)


@dataclass
class TrialRecord:
    """One trial as the driver knows it.

    Attributes:
        number: Optuna's trial number, from 0.
        origin: "sampled by tpe", or where a first point came from ("published best of resnet18-cifar100").
        reason: why it was stopped or failed; empty otherwise.
        epochs_repeated: epochs trained more than once because a worker was lost after its last checkpoint.
        confirms: in a confirmation, the number of the search's trial that is trained again; None in a search.
    """

    number: int
    hyper_parameters: HyperParameters
    seed: int
    origin: str = ""
    state: TrialState = TrialState.RUNNING
    epochs: list[EpochReport] = field(default_factory=list)
    reason: str = ""
    epochs_repeated: int = 0
    started_at: float = 0.0  # seconds since the Unix epoch
    ended_at: float | None = None
    host: str = ""
    ray_trial_id: str = ""  # of the Tune trial that trained it last
    checkpoint: str | None = None  # path or URI of the folder that a running trial can go on from
    confirms: int | None = None

    @property
    def has_ended(self) -> bool:
        return self.state not in (TrialState.RUNNING, TrialState.PAUSED)

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def epochs_spent(self) -> int:
        """Epochs paid for, those trained twice counted twice."""
        return self.epoch + self.epochs_repeated

    @property
    def value(self) -> float | None:
        """The value at the last epoch; None before the first."""
        return self.epochs[-1].value if self.epochs else None


@dataclass(frozen=True)
class SearchInfo:
    """What is known of a search before its first trial.

    Attributes:
        name: "resnet18-cifar100/adamsrt".
        study_name: the name of the Optuna study.
        trials: trials asked for in total.
        epochs: the full budget of a trial.
        max_epochs_spent: the most epochs that the whole search can spend (trials x epochs).
        tags: everything else worth keeping beside the results: seed, versions, git revision, device, data.
        key: tells this study from any other, also after a restart.
        restored: trials of an earlier run of the same study, in whatever state.
        role: "search", or "confirmation": the search's best again on fresh seeds, in a study of its own.
        position: which of a campaign's searches it is, "search 3 of 7"; empty for a search by itself.
        epochs_after: the most that the campaign may still spend after it.
    """

    name: str
    setting: str
    optimizer: str
    study_name: str
    trials: int
    epochs: int
    max_epochs_spent: int
    max_concurrent: int
    time_budget_s: float | None
    space: Mapping[str, Any]
    tags: Mapping[str, str]
    key: str = ""
    restored: Sequence[TrialRecord] = ()
    role: str = "search"
    position: str = ""
    epochs_after: int = 0

    @property
    def is_bound_by_epochs(self) -> bool:
        """Whether the epochs will be spent before all trials that are allowed have begun."""
        return self.max_epochs_spent < self.trials * self.epochs


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in its denominator; 0 for one value) of n values."""

    mean: float
    std: float
    n: int


def spread_of(values: Sequence[float]) -> Spread:
    """Describe at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


@dataclass(frozen=True)
class Confirmation:
    """What training the best candidates again on fresh seeds came to.

    Attributes:
        candidate: the search's trial that was chosen, by its mean value; None where none trained in full on all seeds.
        runs: all runs of all candidates, in the order in which they were listed.
        test_accuracies: of the chosen candidate's runs, in their order; the only figures that come from the test set.
        candidates: how many candidates were trained again.
        tested: how many candidates were tested so far; more than one where a search went on after its confirmation.
    """

    candidate: TrialRecord | None
    runs: tuple[TrialRecord, ...]
    test_accuracies: tuple[float, ...]
    candidates: int
    tested: int = 1

    @property
    def chosen_runs(self) -> tuple[TrialRecord, ...]:
        """The chosen candidate's runs, one per seed."""
        number = None if self.candidate is None else self.candidate.number
        return tuple(run for run in self.runs if number is not None and run.confirms == number)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.chosen_runs)

    @property
    def valid_accuracy(self) -> Spread:
        """Of the chosen candidate's values, over its seeds."""
        return spread_of([run.value for run in self.chosen_runs if run.value is not None])

    @property
    def test_accuracy(self) -> Spread:
        return spread_of(self.test_accuracies)

    @property
    def epochs_spent(self) -> int:
        return sum(run.epochs_spent for run in self.runs)

    @property
    def best_run(self) -> TrialRecord:
        """The chosen candidate's run with the highest value, the first where several share it; its weights are kept."""
        return max(self.chosen_runs, key=lambda run: run.value or 0.0)


@dataclass(frozen=True)
class SearchSummary:
    """What a search came to.

    Attributes:
        best: the candidate with the highest value at the full budget; None where no trial reached it.
        candidates: how many trials reached the full budget.
        epochs_spent: by all trials, stopped and failed ones included; those of a confirmation are counted apart.
        ended_by: "all trials done", "time budget", "interrupted", ...
        confirmation: None where the best were not trained again.
    """

    best: TrialRecord | None
    candidates: int
    trials: Sequence[TrialRecord]
    epochs_spent: int
    seconds: float
    ended_by: str
    confirmation: Confirmation | None = None


class Observer(Protocol):
    """Someone who is told how a search goes. Called on the driver's main thread; must be quick and must not raise."""

    def search_started(self, info: SearchInfo) -> None: ...

    def trial_started(self, trial: TrialRecord) -> None: ...

    def epoch_reported(self, trial: TrialRecord, report: EpochReport) -> None: ...

    def trial_ended(self, trial: TrialRecord) -> None: ...

    def search_ended(self, summary: SearchSummary) -> None: ...


def top_candidates(candidates: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Pick the best of different configurations, the best first, ranked as by `best_of`."""
    left = list(candidates)
    top: list[TrialRecord] = []
    while left and len(top) < count:
        best = best_of(left)
        assert best is not None
        left.remove(best)
        if all(best.hyper_parameters != other.hyper_parameters for other in top):
            top.append(best)
    return top


def best_of(candidates: Sequence[TrialRecord]) -> TrialRecord | None:
    """Pick the highest value; ties go to the lower validation loss at the last epoch, then to the lower number."""
    return max(
        candidates, key=lambda record: (record.value, -record.epochs[-1].valid_loss, -record.number), default=None
    )
