"""Tracking against real MLflow stores: what is in them afterwards, and what a search notices of it (nothing)."""

import json
import math
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tune_adamsrt import mlflow_writer
from tune_adamsrt.records import EpochReport, SearchInfo, SearchSummary, TrialRecord, TrialState
from tune_adamsrt.tracking import Tracking
from tune_adamsrt.tracking_uri import ui_command

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_writer, "BACKOFF_S", 0.01)


@pytest.fixture
def warnings_told() -> list[str]:
    return []


@pytest.fixture
def tracking(uri: str, warnings_told: list[str]) -> Iterator[Tracking]:
    tracking = Tracking(uri, on_warning=warnings_told.append, flush_interval_s=0.01)
    yield tracking
    tracking.close(1.0)


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
    return EpochReport(epoch, value, train_loss, 0.6, 0.7, value, 0.001, 2.5, 1000.0)


def trial(number: int) -> TrialRecord:
    hyper_parameters = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0}
    return TrialRecord(number, hyper_parameters, seed=100 + number, origin="sampled by tpe", started_at=1_700_000_000.0)


def run_trial(tracking: Tracking, trial: TrialRecord, state: TrialState, epochs: int, value: float = 0.5) -> None:
    tracking.trial_started(trial)
    for epoch in range(1, epochs + 1):
        trial.epochs.append(report(epoch, value))
        tracking.epoch_reported(trial, trial.epochs[-1])
    trial.state, trial.ended_at, trial.host = state, 1_700_000_100.0, "node-1"
    trial.reason = "" if state == TrialState.COMPLETE else "because"
    tracking.trial_ended(trial)


def summary(trials: list[TrialRecord], ended_by: str = "all trials done") -> SearchSummary:
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


def artifact_names(uri: str, run: Any) -> list[str]:
    from mlflow import MlflowClient

    return sorted(file.path for file in MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id))


def without_mlflow_tags(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith(("mlflow.", "tune_adamsrt."))}


# ---- what is in the store --------------------------------------------------------------------------------------------


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
        "state": "stopped",
        "stopped_at_epoch": "2",
        "reason": "because",
        "epochs_spent": "2",
    }
    assert runs["trial-002"].data.tags["reason"] == "because"
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
    }
    assert history(uri, runs["trial-000"], "valid_accuracy") == [(epoch, 0.8) for epoch in (1, 2, 3, 4)]

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

    run_search(tracking)
    assert tracking.close(30.0)
    assert not mlflow.tracking.is_tracking_uri_set()
    assert mlflow.active_run() is None


def test_values_that_are_no_numbers_are_kept_as_nan(uri: str, tracking: Tracking, warnings_told: list[str]) -> None:
    tracking.search_started(info())
    diverged = trial(0)
    tracking.trial_started(diverged)
    tracking.epoch_reported(diverged, report(1, value=math.nan, train_loss=math.inf))
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


def test_an_epoch_trained_twice_is_logged_once(uri: str, tracking: Tracking) -> None:
    tracking.search_started(info())
    resumed = trial(0)
    for epoch in (1, 2, 2, 3):
        tracking.epoch_reported(resumed, report(epoch))
        time.sleep(0.002)  # MLflow itself merges equal points of the same millisecond
    tracking.search_ended(summary([]))
    assert tracking.close(30.0)
    assert history(uri, runs_of(uri)["trial-000"], "value") == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_an_interrupted_search_ends_as_killed_with_its_running_trials(uri: str, tracking: Tracking) -> None:
    tracking.search_started(info())
    tracking.trial_started(trial(0))
    tracking.epoch_reported(trial(0), report(1))
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
    assert len(sizes) == 5  # the parent, 250 reports in calls of 100, the second trial
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
    assert "reports were not delivered" in warnings_told[-1]
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


# ---- never in the way ------------------------------------------------------------------------------------------------


def test_calls_return_though_the_server_never_answers(warnings_told: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and says nothing
        port = server.getsockname()[1]
        tracking = Tracking(
            f"http://127.0.0.1:{port}", on_warning=warnings_told.append, max_waiting_reports=50, flush_interval_s=0.01
        )
        tracking.search_started(info())
        for number in range(10):
            run_trial(tracking, trial(number), TrialState.COMPLETE, epochs=100)
        tracking.search_ended(summary([]))
        assert tracking._writer._waiting_reports == 50  # of 1011: the memory it takes is bounded
        assert not tracking.close(0.1)
    assert warnings_told == [
        f"MLflow at http://127.0.0.1:{port}: 1011 epoch reports were not delivered, 11 of 11 runs are incomplete there"
    ]


def test_a_server_that_is_down_is_told_once_and_without_its_password(warnings_told: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tracking = Tracking(f"http://me:hunter2@127.0.0.1:{port}", on_warning=warnings_told.append, flush_interval_s=0.01)
    run_search(tracking)
    assert not tracking.close(60.0)  # ends by itself, after the third try
    assert tracking.run_id is None
    assert len(warnings_told) == 2
    assert warnings_told[0].startswith(f"MLflow at http://***@127.0.0.1:{port} does not take the results")
    assert "11 epoch reports were not delivered" in warnings_told[1]
    assert not any("hunter2" in line or "\n" in line for line in warnings_told)


def test_a_listener_that_raises_stops_nothing(uri: str, tmp_path: Path) -> None:
    def broken(line: str) -> None:
        raise RuntimeError(line)

    tracking = Tracking(uri, on_warning=broken, flush_interval_s=0.01)
    tracking.search_started(info())
    tracking.add_artifact(tmp_path / "missing")
    assert tracking.close(30.0)


def test_the_users_own_environment_stands(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    Tracking(uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_importing_it_does_not_import_mlflow() -> None:
    code = "import sys, tune_adamsrt.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.slow
def test_two_searches_at_once_create_one_store_and_print_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = f"""
import sys
from tune_adamsrt.tracking import Tracking
sys.path.append({str(Path(__file__).parent)!r})
from test_tracking import info
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


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@contextmanager
def serving(command: list[str], folder: Path) -> Iterator[str]:
    """The URL of an mlflow server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        cwd=folder,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # takes 9 seconds to stop
        stdout=log,
        stderr=log,
    )
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.mark.slow
def test_over_http_and_in_the_ui_that_the_command_opens(
    uri: str, tracking: Tracking, warnings_told: list[str], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run_search(tracking)
    assert tracking.close(30.0)
    program = Path(sys.executable).parent / "mlflow"
    with serving([str(program), *shlex.split(ui_command(uri))[1:]], tmp_path) as url:
        # the UI shows the artifacts that the search has put beside the database
        parent = runs_of(url)["resnet20-digits/adamsrt"]
        query = f"path=search_space.json&run_uuid={parent.info.run_id}"
        with urllib.request.urlopen(f"{url}/get-artifact?{query}", timeout=30) as answer:
            assert json.loads(answer.read()) == info().space

        # and the same server takes another search over HTTP, into its own artifact root
        over_http = Tracking(url, on_warning=warnings_told.append, flush_interval_s=0.01)
        run_search(over_http, "vgg16-cifar10")
        over_http.add_artifact(REPOSITORY / "pyproject.toml")
        over_http.epoch_reported(trial(3), report(1, value=math.nan))
        assert over_http.close(60.0)
        runs = runs_of(url, "vgg16-cifar10")
        assert artifact_names(url, runs["vgg16-cifar10/adamsrt"]) == ["pyproject.toml", "search_space.json"]
        assert math.isnan(runs["trial-003"].data.metrics["value"])
        client = MlflowClient(tracking_uri=url)
        client.delete_run(runs["trial-003"].info.run_id)
        assert_holds_the_search(url, "vgg16-cifar10")
        assert warnings_told == []

        client.delete_experiment(runs["trial-000"].info.experiment_id)
        deleted = Tracking(url, on_warning=warnings_told.append, flush_interval_s=0.01)
        run_search(deleted, "vgg16-cifar10")
        assert not deleted.close(60.0)
        assert "mlflow experiments restore" in warnings_told[0]
