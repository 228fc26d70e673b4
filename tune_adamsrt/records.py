"""The plain values that flow through a search: what a trial reported, how it ended, and who wants to be told."""

import math
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
    checkpoint: str | None = None  # path or URI of the folder that a running trial can go on from

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


@dataclass(frozen=True)
class SearchSummary:
    """What a search came to.

    Attributes:
        best: the candidate with the highest value at the full budget; None where no trial reached it.
        candidates: how many trials reached the full budget.
        epochs_spent: by all trials, stopped and failed ones included.
        ended_by: "all trials done", "time budget", "interrupted", ...
    """

    best: TrialRecord | None
    candidates: int
    trials: Sequence[TrialRecord]
    epochs_spent: int
    seconds: float
    ended_by: str


class Observer(Protocol):
    """Someone who is told how a search goes. Called on the driver's main thread; must be quick and must not raise."""

    def search_started(self, info: SearchInfo) -> None: ...

    def trial_started(self, trial: TrialRecord) -> None: ...

    def epoch_reported(self, trial: TrialRecord, report: EpochReport) -> None: ...

    def trial_ended(self, trial: TrialRecord) -> None: ...

    def search_ended(self, summary: SearchSummary) -> None: ...
