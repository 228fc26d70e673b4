"""A trial in MLflow's terms: its epochs as points of curves, its hyper-parameters as params, its end as tags."""

import re
from collections.abc import Mapping
from typing import Any

from tune_adamsrt.mlflow.run import Point
from tune_adamsrt.records import EpochReport, TrialRecord, TrialState

END_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.STOPPED: "KILLED", TrialState.FAILED: "FAILED"}


class EpochPoints:
    """The epochs of a trial as points; a view of its record, which grows."""

    def __init__(self, trial: TrialRecord) -> None:
        self._trial = trial

    def __len__(self) -> int:
        return len(self._trial.epochs)

    def __getitem__(self, part: slice, /) -> list[Point]:
        first, last, _ = part.indices(len(self))
        epochs = self._trial.epochs[:last]
        # An older study does not say when an epoch ended: about as if all had followed each other.
        elapsed_s = sum(report.seconds for report in epochs[:first])
        points = []
        for report in epochs[first:]:
            elapsed_s += report.seconds
            ended_at = report.reported_at or self._trial.started_at + elapsed_s
            points.append((int(ended_at * 1000), report.epoch, metrics(report)))
        return points


def metrics(report: EpochReport) -> dict[str, float]:
    """What is drawn against the epoch; what was not measured is left out."""
    measured = {
        "weight_norm": report.weight_norm,
        "grad_norm": report.grad_norm,
        "effective_lr": report.effective_lr,
    }
    return {
        "value": report.value,
        "train_loss": report.train_loss,
        "train_accuracy": report.train_accuracy,
        "valid_loss": report.valid_loss,
        "valid_accuracy": report.valid_accuracy,
        "lr": report.lr,
        "seconds_per_epoch": report.seconds,
        "images_per_second": report.train_images_per_second,
    } | {name: value for name, value in measured.items() if value is not None}


def params(hyper_parameters: Mapping[str, Any]) -> dict[str, str]:
    """Hyper-parameters by their names, betas as beta1 and beta2.

    The axes of the compare view (parallel coordinates, scatter) need numbers; "(0.9, 0.99)" would be a category.
    """
    named = {name: value for name, value in hyper_parameters.items() if name != "betas"}
    if "betas" in hyper_parameters:
        named["beta1"], named["beta2"] = hyper_parameters["betas"]
    return {name: str(value) for name, value in named.items()}


def end_tags(trial: TrialRecord, state: TrialState) -> dict[str, Any]:
    """How a trial ended: its state, where, and why."""
    tags: dict[str, Any] = {"state": state, "epochs_spent": trial.epochs_spent}
    if state != TrialState.COMPLETE:
        tags[f"{state}_at_epoch"] = trial.epoch
        tags["reason"] = trial.reason
    if state == TrialState.STOPPED and (rung := re.match(r"rung (\d+) ", trial.reason)):
        tags["stopped_at_rung"] = rung[1]
    tags |= {name: value for name in ("host", "ray_trial_id") if (value := getattr(trial, name))}
    return tags


def as_tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts as MLflow takes them."""
    return {re.sub(r"[^\w\-./: ]", "_", name)[:250]: str(value)[:5000] for name, value in values.items()}
