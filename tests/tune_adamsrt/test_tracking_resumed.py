"""A search that goes on after its driver was killed or interrupted: nothing in MLflow is lost or doubled."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_driver import first_half, info, second_half, summary
from search_records import make_report, make_trial

from tune_adamsrt.records import TrialState
from tune_adamsrt.tracking import Tracking

TESTS = Path(__file__).parents[1]
NAME = "resnet20-digits/adamsrt"

pytestmark = pytest.mark.usefixtures("own_environment", "short_backoff")


class Nobody:
    """An observer that is not interested."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def killed_driver(uri: str, call: int) -> None:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, str(TESTS / "killed_driver.py"), uri, str(call)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri: str) -> dict[str, Any]:
    """Name -> MLflow run, each name once."""
    client = client_of(uri)
    runs = client.search_runs([client.get_experiment_by_name("resnet20-digits").experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def histories(uri: str, run: Any) -> dict[str, list[tuple[int, float]]]:
    client = client_of(uri)
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((point.step, point.value) for point in points[name]) for name in points}


def steps(history: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in history]


def resume(uri: str, trials: list[Any], *, revision: str = "second") -> Tracking:
    told: list[str] = []
    tracking = Tracking(uri, on_warning=told.append, flush_interval_s=0.01)
    tracking.search_started(info(list(trials), revision=revision))
    second_half(tracking, trials)
    tracking.search_ended(summary(trials))
    assert tracking.close(60.0)
    assert told == []
    return tracking


def assert_holds_the_whole_search(uri: str) -> None:
    runs = runs_of(uri)
    parent = runs.pop(NAME)
    assert set(runs) == {f"trial-00{number}" for number in range(5)}
    expected = {
        "trial-000": ("FINISHED", "complete", 4),
        "trial-001": ("KILLED", "stopped", 2),
        "trial-002": ("FINISHED", "complete", 4),
        "trial-003": ("FAILED", "failed", 1),
        "trial-004": ("KILLED", "stopped", 1),
    }
    for name, (status, state, epochs) in expected.items():
        run, tags = runs[name], runs[name].data.tags
        assert (run.info.status, tags["state"], tags["epochs_spent"]) == (status, state, str(epochs)), name
        assert tags.get("reason") == (None if state == "complete" else "because")
        assert tags.get("stopped_at_epoch") == (str(epochs) if state == "stopped" else None)
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["trial_number"] == name[-1]
        assert run.info.end_time == 1_700_000_100_000 + 1000 * int(name[-1])
        assert run.data.params == {"lr": "0.0123456789", "beta1": "0.9", "beta2": "0.99", "weight_decay": "0"}
        assert len(run.data.metrics) == 8
        for history in histories(uri, run).values():
            assert steps(history) == list(range(1, epochs + 1)), name
    assert histories(uri, runs["trial-002"])["value"] == [(1, 0.5), (2, 0.5), (3, 0.9), (4, 0.9)]

    assert parent.info.status == "FINISHED"
    assert parent.data.params == {}
    tags = parent.data.tags
    assert (tags["best_trial"], tags["ended_by"], tags["epochs_spent"]) == ("2", "all trials done", "12")
    totals = histories(uri, parent)
    assert {name: totals.pop(name) for name in ("candidates", "best_valid_accuracy")} == {
        "candidates": [(5, 2.0)],
        "best_valid_accuracy": [(5, 0.9)],
    }
    assert totals.pop("seconds") == [(5, 12.5)]
    assert {name: [value for _, value in history] for name, history in totals.items()} == {
        "epochs_spent": [4, 6, 7, 8, 12],
        "trials_complete": [1, 1, 1, 1, 2],
        "trials_stopped": [0, 1, 1, 2, 2],
        "trials_failed": [0, 0, 1, 1, 1],
        "best_value": [0.5, 0.5, 0.5, 0.5, 0.9],
    }
    assert all(steps(history) == [1, 2, 3, 4, 5] for history in totals.values())


# The writes of the first half: a new parent (1), its values (2), its file (3); trial 0 (4), its values (5), its end
# (6); trial 1 (7-9); trial 2 (10, 11); trial 3 (12-14). Negative: killed after the call.
@pytest.mark.parametrize(
    "call", [1, -5, -14, *(pytest.param(n, marks=pytest.mark.slow) for n in (-1, -2, 6, -8, -10, -11, 13))]
)
def test_what_a_killed_driver_left_is_completed_and_nothing_is_doubled(call: int, uri: str) -> None:
    killed_driver(uri, call)
    trials = first_half(Nobody())  # as the study knows them
    resume(uri, trials)
    assert_holds_the_whole_search(uri)
    revisions = {name: run.data.tags["git_revision"] for name, run in runs_of(uri).items()}
    assert revisions[NAME] == revisions["trial-004"] == "second"
    if call == -14:  # all runs were there: they keep what they were trained with
        assert [revisions[f"trial-00{number}"] for number in range(4)] == ["first"] * 4


def test_resuming_a_search_that_is_complete_changes_nothing(uri: str) -> None:
    first = Tracking(uri, flush_interval_s=0.01)
    trials = second_half(first, first_half(first))
    first.search_ended(summary(trials))
    assert first.close(60.0)
    assert_holds_the_whole_search(uri)
    again = Tracking(uri, flush_interval_s=0.01)
    again.search_started(info(trials))
    again.search_ended(summary(trials))
    assert again.close(60.0)
    assert_holds_the_whole_search(uri)
    assert again.run_id == first.run_id


def test_an_interrupted_search_runs_again_and_ends_properly(uri: str) -> None:
    first = Tracking(uri, flush_interval_s=0.01)
    trials = first_half(first)
    first.search_ended(summary([], ended_by="interrupted"))
    assert first.close(60.0)
    assert runs_of(uri)["trial-002"].data.tags["reason"] == "interrupted"

    second = Tracking(uri, flush_interval_s=0.01)
    second.search_started(info(list(trials)))
    deadline = time.monotonic() + 60
    while (runs := runs_of(uri))["trial-002"].data.tags["state"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [runs[name].info.status for name in (NAME, "trial-002")] == ["RUNNING", "RUNNING"]
    assert [runs[name].info.status for name in ("trial-000", "trial-001", "trial-003")] == [
        "FINISHED",
        "KILLED",
        "FAILED",
    ]
    assert "ended_by" not in runs[NAME].data.tags
    assert not {"reason", "stopped_at_epoch"} & runs["trial-002"].data.tags.keys()
    second_half(second, trials)
    second.search_ended(summary(trials))
    assert second.close(60.0)
    runs = runs_of(uri)
    assert runs[NAME].info.status == "FINISHED"
    # the final figures of each driver, and each step of the rest once
    assert steps(histories(uri, runs[NAME])["seconds"]) == [3, 5]
    assert steps(histories(uri, runs[NAME])["epochs_spent"]) == [1, 2, 3, 4, 5]
    assert steps(histories(uri, runs["trial-002"])["value"]) == [1, 2, 3, 4]
    assert "reason" not in runs["trial-002"].data.tags


def test_a_store_without_the_search_gets_all_of_it(uri: str) -> None:
    resume(uri, first_half(Nobody()))
    assert_holds_the_whole_search(uri)


def test_a_deleted_parent_is_made_anew_and_its_trials_are_found(uri: str) -> None:
    first = Tracking(uri, flush_interval_s=0.01)
    trials = first_half(first)
    assert first.run_id is not None
    assert first.close(60.0)
    client_of(uri).delete_run(first.run_id)
    assert resume(uri, trials).run_id != first.run_id
    assert_holds_the_whole_search(uri)


def test_epochs_of_an_older_study_are_placed_in_time_one_after_the_other(uri: str) -> None:
    long = make_trial(0, TrialState.RUNNING, 250, started_at=1_700_000_000.0)
    tracking = Tracking(uri, flush_interval_s=0.01)
    tracking.search_started(info([long]))
    long.epochs.append(dataclasses.replace(make_report(251, 0.5), reported_at=1_800_000_000.0))
    tracking.epoch_reported(long, long.epochs[-1])
    assert tracking.close(60.0)
    points = client_of(uri).get_metric_history(runs_of(uri)["trial-000"].info.run_id, "value")
    times = [point.timestamp for point in sorted(points, key=lambda point: point.step)]
    # an epoch takes 2 s; the last one says when it ended
    assert times == [1_700_000_000_000 + 2000 * epoch for epoch in range(1, 251)] + [1_800_000_000_000]


@pytest.mark.parametrize("method", ["search_runs", "get_metric_history", "log_batch", "update_run", "delete_tag"])
def test_a_lost_answer_while_resuming_neither_loses_nor_doubles_anything(
    method: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    first = Tracking(uri, flush_interval_s=0.01)
    trials = first_half(first)
    assert first.close(60.0)  # the first driver has raised
    original, calls = getattr(MlflowClient, method), []

    def does_it_but_raises_once(*args: Any, **others: Any) -> Any:
        result = original(*args, **others)
        calls.append(method)
        if len(calls) == 1:
            raise ConnectionError("connection reset by peer")
        return result

    monkeypatch.setattr(MlflowClient, method, does_it_but_raises_once)
    tracking = Tracking(uri, flush_interval_s=0.01)
    tracking.search_started(info(list(trials)))
    while len(calls) < 1 or tracking._writer._failures:  # the runs are running again before their end is told
        time.sleep(0.01)
    second_half(tracking, trials)
    tracking.search_ended(summary(trials))
    assert tracking.close(60.0)
    monkeypatch.undo()
    assert_holds_the_whole_search(uri)


def test_without_a_key_every_search_is_new(uri: str) -> None:
    for _ in range(2):
        tracking = Tracking(uri, flush_interval_s=0.01)
        tracking.search_started(info([make_trial(0, TrialState.COMPLETE, 4)], key=""))
        assert tracking.close(60.0)
    client = client_of(uri)
    runs = client.search_runs([client.get_experiment_by_name("resnet20-digits").experiment_id])
    assert [run.info.run_name for run in runs] == [NAME, NAME]
