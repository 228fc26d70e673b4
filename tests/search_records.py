"""Searches as far as they got, made up for tests of what is shown of them."""

from typing import Any

from tune_adamsrt.progress import Progress
from tune_adamsrt.records import EpochReport, SearchInfo, TrialRecord, TrialState

HYPER_PARAMETERS = {"lr": 0.0123456789, "betas": (0.9, 0.99), "weight_decay": 0}


def make_info(**changes: Any) -> SearchInfo:
    values: dict[str, Any] = {
        "name": "resnet20-digits/adamsrt",
        "setting": "resnet20-digits",
        "optimizer": "adamsrt",
        "study_name": "study",
        "trials": 16,
        "epochs": 10,
        "max_epochs_spent": 160,
        "max_concurrent": 2,
        "time_budget_s": None,
        "space": {},
        "tags": {"sampler": "tpe", "scheduler": "asha", "resources": "2 trials at once", "device": "cpu"},
    }
    return SearchInfo(**(values | changes))


def make_report(epoch: int, value: float, seconds: float = 2.0) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        value=value,
        train_loss=1.0,
        train_accuracy=0.5,
        valid_loss=1.0,
        valid_accuracy=value,
        lr=0.01,
        seconds=seconds,
        train_images_per_second=100.0,
    )


def make_trial(number: int, state: TrialState, epochs: int, value: float = 0.9, **changes: Any) -> TrialRecord:
    trial = TrialRecord(number=number, hyper_parameters=dict(HYPER_PARAMETERS), seed=0, state=state, **changes)
    trial.epochs = [make_report(epoch, value) for epoch in range(1, epochs + 1)]
    return trial


def make_progress(*trials: TrialRecord, **changes: Any) -> Progress:
    return Progress(make_info(**changes), started=0.0, trials={trial.number: trial for trial in trials})


def add_reports(progress: Progress, *, every_s: float, count: int) -> float:
    """Reports of epochs that follow each other, the first one beginning at 0; returns the time of the last."""
    for index in range(count):
        progress.add_report((index + 1) * every_s, every_s)
    return count * every_s
