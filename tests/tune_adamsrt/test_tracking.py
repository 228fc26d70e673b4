"""Tracking against real MLflow stores: what is in them afterwards, and how it gets there."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracked_search import (
    artifact_names,
    assert_holds_the_search,
    history,
    info,
    report,
    run_search,
    run_trial,
    runs_of,
    summary,
    tell_epoch,
    trial,
)

from tune_adamsrt.records import SearchInfo, TrialState
from tune_adamsrt.tracking import Tracking

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("own_environment", "short_backoff")


# ---- what is in the store --------------------------------------------------------------------------------------------


def test_a_search_is_a_parent_run_with_a_child_per_trial(
    uri: str, tracking: Tracking, warnings_told: list[str], tmp_path: Path
) -> None:
    exported = tmp_path / "best_hyper_parameters.py"
    exported.write_text("BEST_HYPER_PARAMETERS = {}\n")
    run_search(tracking)
    tracking.add_artifact(exported)
    assert tracking.close(30.0)
    assert warnings_told == []
    assert_holds_the_search(uri, "resnet20-digits")

    parent = runs_of(uri)["resnet20-digits/adamsrt"]
    assert tracking.run_id == parent.info.run_id
    assert artifact_names(uri, parent) == ["best_hyper_parameters.py", "search_space.json"]
    artifacts = tmp_path / "a folder" / "mlartifacts" / "resnet20-digits" / parent.info.run_id / "artifacts"
    assert json.loads((artifacts / "search_space.json").read_text()) == info().space


def test_the_callers_own_mlflow_is_left_alone(uri: str, tracking: Tracking) -> None:
    import mlflow

    before = mlflow.tracking.is_tracking_uri_set(), mlflow.get_tracking_uri()
    run_search(tracking)
    assert tracking.close(30.0)
    assert (mlflow.tracking.is_tracking_uri_set(), mlflow.get_tracking_uri()) == before
    assert mlflow.get_tracking_uri() != uri
    assert mlflow.active_run() is None


def test_values_that_are_no_numbers_are_kept_as_nan(uri: str, tracking: Tracking, warnings_told: list[str]) -> None:
    tracking.search_started(info())
    diverged = trial(0)
    tracking.trial_started(diverged)
    tell_epoch(tracking, diverged, report(1, value=math.nan, train_loss=math.inf))
    diverged.state, diverged.reason = TrialState.FAILED, "diverged"
    tracking.trial_ended(diverged)
    tracking.search_ended(summary([diverged]))
    assert tracking.close(30.0)
    assert warnings_told == []
    runs = runs_of(uri)
    assert math.isnan(runs["trial-000"].data.metrics["value"])
    assert math.isnan(runs["trial-000"].data.metrics["train_loss"])
    assert runs["trial-000"].data.metrics["valid_loss"] == 0.7
    assert "best_value" not in runs["resnet20-digits/adamsrt"].data.metrics


def test_an_interrupted_search_ends_as_killed_with_its_running_trials(uri: str, tracking: Tracking) -> None:
    tracking.search_started(info())
    tell_epoch(tracking, trial(0), report(1))
    tracking.search_ended(summary([], ended_by="interrupted"))
    assert tracking.close(30.0)
    runs = runs_of(uri)
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert runs["trial-000"].data.tags["reason"] == "interrupted"
    assert runs["trial-000"].data.tags["stopped_at_epoch"] == "1"


def test_a_search_that_raised_ends_as_failed(uri: str, tracking: Tracking) -> None:
    tracking.search_started(info())
    tracking.trial_started(trial(0))
    assert tracking.close(30.0)
    runs = runs_of(uri)
    assert runs["resnet20-digits/adamsrt"].info.status == "FAILED"
    assert runs["trial-000"].info.status == "KILLED"


def test_a_second_search_joins_the_experiment(uri: str, tracking: Tracking) -> None:
    run_search(tracking)
    assert tracking.close(30.0)
    second = Tracking(uri, flush_interval_s=0.01)
    second.search_started(SearchInfo(**{**vars(info()), "name": "resnet20-digits/sgd"}))
    assert second.run_id is not None
    assert second.close(30.0)
    assert {"resnet20-digits/adamsrt", "resnet20-digits/sgd"} < set(runs_of(uri))


# ---- how it is sent --------------------------------------------------------------------------------------------------


def test_reports_are_sent_in_batches(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sizes: list[int] = []
    log_batch = MlflowClient.log_batch

    def counting(self: Any, run_id: str, metrics: Any = (), **others: Any) -> None:
        sizes.append(len(metrics))
        log_batch(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    monkeypatch.delattr(MlflowClient, "log_metric")
    tracking = Tracking(uri, flush_interval_s=60.0)  # only close ends the gathering
    tracking.search_started(info())
    run_trial(tracking, trial(0), TrialState.COMPLETE, epochs=250)
    run_trial(tracking, trial(1), TrialState.COMPLETE, epochs=10)
    tracking.search_ended(summary([]))
    assert tracking.close(30.0)
    assert len(sizes) == 6  # the parent, 250 reports in calls of 80, the second trial
    assert max(sizes) <= 1000
    assert len(history(uri, runs_of(uri)["trial-000"], "value")) == 250


@pytest.mark.parametrize("method", ["create_experiment", "create_run", "log_batch", "set_terminated", "log_text"])
def test_a_lost_answer_neither_loses_nor_doubles_anything(
    method: str, uri: str, tracking: Tracking, warnings_told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    original = getattr(MlflowClient, method)
    calls: list[str] = []

    def does_it_but_raises_once(*args: Any, **others: Any) -> Any:
        result = original(*args, **others)
        calls.append(method)
        if len(calls) == 1:
            raise ConnectionError("connection reset by peer")
        return result

    monkeypatch.setattr(MlflowClient, method, does_it_but_raises_once)
    run_search(tracking)
    assert tracking.close(30.0)
    assert calls
    assert warnings_told == []
    assert_holds_the_search(uri, "resnet20-digits")


def test_what_mlflow_refuses_is_told_and_the_rest_is_delivered(
    uri: str, tracking: Tracking, warnings_told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log_batch = MlflowClient.log_batch

    def refusing(self: Any, run_id: str, metrics: Any = (), **others: Any) -> None:
        if any(metric.key == "lr" and metric.step == 2 for metric in metrics):
            raise MlflowException.invalid_parameter_value("no such metric")
        log_batch(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", refusing)
    run_search(tracking)
    assert not tracking.close(30.0)
    assert len([line for line in warnings_told if "refuses" in line and "no such metric" in line]) == 1
    assert "reports were refused" in warnings_told[-1]
    runs = runs_of(uri)
    assert runs["resnet20-digits/adamsrt"].info.status == "FINISHED"
    assert runs["trial-002"].data.metrics["value"] == 0.5


def test_a_missing_file_is_told_and_the_rest_is_delivered(
    uri: str, tracking: Tracking, warnings_told: list[str], tmp_path: Path
) -> None:
    tracking.search_started(info())
    tracking.add_artifact(tmp_path / "missing.py")
    run_trial(tracking, trial(0), TrialState.COMPLETE, epochs=1)
    tracking.search_ended(summary([]))
    assert tracking.close(30.0)
    assert len(warnings_told) == 1
    assert "missing.py" in warnings_told[0]
    assert runs_of(uri)["resnet20-digits/adamsrt"].info.status == "FINISHED"


def test_a_deleted_experiment_is_told_with_its_remedy(uri: str, tracking: Tracking, warnings_told: list[str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment_id = client.create_experiment("resnet20-digits")
    client.delete_experiment(experiment_id)
    run_search(tracking)
    assert tracking.run_id is None
    assert not tracking.close(30.0)
    assert f"mlflow experiments restore --experiment-id {experiment_id}" in warnings_told[0]


@pytest.mark.parametrize(("ended_by", "status"), [("time budget", "FINISHED"), ("broken off by OSError: x", "FAILED")])
def test_a_search_that_was_broken_off_ends_as_failed(ended_by: str, status: str, uri: str, tracking: Tracking) -> None:
    tracking.search_started(info())
    tracking.search_ended(summary([], ended_by=ended_by))
    assert tracking.close(30.0)
    assert runs_of(uri)["resnet20-digits/adamsrt"].info.status == status


def test_importing_it_does_not_import_mlflow() -> None:
    code = "import sys, tune_adamsrt.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.slow
def test_two_searches_at_once_create_one_store_and_print_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = f"""
import sys
from tune_adamsrt.tracking import Tracking
sys.path.append({str(REPOSITORY / "tests")!r})
from tracked_search import info
for setting in ("resnet20-digits", "vgg16-cifar10"):
    tracking = Tracking({uri!r}, on_warning=print)
    tracking.search_started(info(setting))
    tracking.add_artifact(__import__("pathlib").Path("pyproject.toml"))
    assert tracking.close(120.0)
"""
    searches = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    for search in searches:
        output, _ = search.communicate(timeout=300)
        assert (output, search.returncode) == ("", 0)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    for setting in ("resnet20-digits", "vgg16-cifar10"):
        experiment = client.get_experiment_by_name(setting)
        assert experiment is not None
        assert len(client.search_runs([experiment.experiment_id])) == 2
