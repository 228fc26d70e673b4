"""Searches that are told to Tracking, and what a real MLflow store holds of them afterwards."""

from collections.abc import Sequence
from typing import Any

from tune_adamsrt.records import EpochReport, SearchInfo, SearchSummary, TrialRecord, TrialState
from tune_adamsrt.tracking import Tracking

STARTED_AT = 1_700_000_000.0
REASONS = {
    TrialState.COMPLETE: "",
    TrialState.STOPPED: "rung 1 (epoch 2): rank 2 of 2, the best 1 went on",
    TrialState.FAILED: "diverged at epoch 1",
}


def info(setting: str = "resnet20-digits") -> SearchInfo:
    return SearchInfo(
        name=f"{setting}/adamsrt",
        setting=setting,
        optimizer="adamsrt",
        study_name=f"{setting}/adamsrt/0",
        trials=3,
        epochs=4,
        max_epochs_spent=12,
        max_concurrent=2,
        time_budget_s=None,
        space={"lr": {"low": 1e-4, "high": 0.1, "log": True}},
        tags={"torch": "2.14.0", "seed": "42"},
    )


def report(epoch: int, value: float = 0.5, train_loss: float = 1.0) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        value=value,
        train_loss=train_loss,
        train_accuracy=0.6,
        valid_loss=0.7,
        valid_accuracy=value,
        lr=0.001,
        seconds=2.5,
        train_images_per_second=1000.0,
        weight_norm=3.0,
        effective_lr=0.0002,
        reported_at=STARTED_AT + 10 * epoch,
    )


def trial(number: int) -> TrialRecord:
    hyper_parameters = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0}
    return TrialRecord(number, hyper_parameters, seed=100 + number, origin="sampled by tpe", started_at=STARTED_AT)


def tell_epoch(tracking: Tracking, trial: TrialRecord, report: EpochReport) -> None:
    """As the study does: the record first, then its observers."""
    trial.epochs.append(report)
    tracking.epoch_reported(trial, report)


def run_trial(tracking: Tracking, trial: TrialRecord, state: TrialState, epochs: int, value: float = 0.5) -> None:
    tracking.trial_started(trial)
    for epoch in range(1, epochs + 1):
        tell_epoch(tracking, trial, report(epoch, value))
    trial.state, trial.ended_at, trial.host, trial.reason = state, STARTED_AT + 100, "node-1", REASONS[state]
    tracking.trial_ended(trial)


def summary(trials: Sequence[TrialRecord], ended_by: str = "all trials done") -> SearchSummary:
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = max(finished, key=lambda trial: trial.value or 0.0, default=None)
    epochs_spent = sum(trial.epochs_spent for trial in trials)
    return SearchSummary(best, len(finished), trials, epochs_spent, 12.5, ended_by)


def run_search(tracking: Tracking, setting: str = "resnet20-digits") -> None:
    trials = [trial(number) for number in range(3)]
    tracking.search_started(info(setting))
    run_trial(tracking, trials[0], TrialState.COMPLETE, epochs=4, value=0.8)
    run_trial(tracking, trials[1], TrialState.STOPPED, epochs=2, value=0.95)
    run_trial(tracking, trials[2], TrialState.FAILED, epochs=1)
    tracking.search_ended(summary(trials))


def runs_of(uri: str, setting: str = "resnet20-digits") -> dict[str, Any]:
    """Name -> MLflow run, each name once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(setting)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def times(uri: str, run: Any, metric: str) -> list[int]:
    """When the points were, in milliseconds since the Unix epoch."""
    from mlflow import MlflowClient

    return sorted(
        point.timestamp for point in MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, metric)
    )


def artifact_names(uri: str, run: Any) -> list[str]:
    from mlflow import MlflowClient

    return sorted(file.path for file in MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id))


def without_mlflow_tags(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith(("mlflow.", "tune_adamsrt."))}


def assert_holds_the_search(uri: str, setting: str) -> None:
    runs = runs_of(uri, setting)
    assert set(runs) == {f"{setting}/adamsrt", "trial-000", "trial-001", "trial-002"}
    parent = runs.pop(f"{setting}/adamsrt")
    for child in runs.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params == {"lr": "0.01", "beta1": "0.9", "beta2": "0.99", "weight_decay": "0.0"}
        assert child.info.start_time == 1_700_000_000_000
        assert child.info.end_time == 1_700_000_100_000
    assert [run.info.status for _, run in sorted(runs.items())] == ["FINISHED", "KILLED", "FAILED"]
    assert without_mlflow_tags(runs["trial-001"].data.tags) == {
        "torch": "2.14.0",
        "setting": setting,
        "optimizer": "adamsrt",
        "epochs": "4",
        "study_name": f"{setting}/adamsrt/0",
        "trial_number": "1",
        "seed": "101",
        "origin": "sampled by tpe",
        "host": "node-1",
        "role": "search",
        "state": "stopped",
        "stopped_at_epoch": "2",
        "stopped_at_rung": "1",
        "reason": REASONS[TrialState.STOPPED],
        "epochs_spent": "2",
    }
    assert runs["trial-002"].data.tags["reason"] == "diverged at epoch 1"
    assert "reason" not in runs["trial-000"].data.tags
    assert runs["trial-000"].data.metrics == {
        "value": 0.8,
        "train_loss": 1.0,
        "train_accuracy": 0.6,
        "valid_loss": 0.7,
        "valid_accuracy": 0.8,
        "lr": 0.001,
        "seconds_per_epoch": 2.5,
        "images_per_second": 1000.0,
        "weight_norm": 3.0,  # grad_norm was not measured
        "effective_lr": 0.0002,
    }
    assert history(uri, runs["trial-000"], "valid_accuracy") == [(epoch, 0.8) for epoch in (1, 2, 3, 4)]
    assert times(uri, runs["trial-000"], "lr") == [1_700_000_000_000 + 10_000 * epoch for epoch in (1, 2, 3, 4)]

    assert parent.info.status == "FINISHED"
    # 0.95 was the value of a stopped trial
    assert history(uri, parent, "best_value") == [(1, 0.8), (2, 0.8), (3, 0.8)]
    assert history(uri, parent, "trials_stopped") == [(1, 0.0), (2, 1.0), (3, 1.0)]
    assert history(uri, parent, "epochs_spent") == [(1, 4.0), (2, 6.0), (3, 7.0)]
    assert parent.data.metrics["best_valid_accuracy"] == 0.8
    assert parent.data.metrics["candidates"] == 1
    tags = parent.data.tags
    best = {name: value for name, value in tags.items() if name.startswith("best_")}
    assert best == {
        "best_trial": "0",
        "best_lr": "0.01",
        "best_beta1": "0.9",
        "best_beta2": "0.99",
        "best_weight_decay": "0.0",
    }
    assert (tags["seed"], tags["trials"], tags["ended_by"]) == ("42", "3", "all trials done")
    assert tags["epochs_spent"] == "7"
