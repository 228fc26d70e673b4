"""A search whose driver or worker is killed: what was recorded stays, and it goes on."""

import contextlib
import os
import re
import signal
from pathlib import Path

import optuna
import pytest
from search_process import search, start_search, wait_for

from tune_adamsrt.storage import open_storage


@pytest.mark.slow(seconds=150)
def test_a_killed_driver_is_resumed(tmp_path):
    """Kill -9 in the middle; the same command with --resume finishes what was asked for, and nothing twice."""
    from mlflow import MlflowClient

    options = ["--setting", "resnet20-digits", "--trials", "3", "--epochs", "4", "--scheduler", "fifo"]
    options += ["--limit-train-examples", "400"]
    process = start_search(tmp_path, *options)
    journal = tmp_path / "runs" / "optuna.journal"
    wait_for(journal, '"end"', process)  # the first trial has ended, others run
    process.kill()
    process.communicate()
    before = journal.read_text()

    resumed = search(tmp_path, *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert journal.read_text().startswith(before)
    storage = open_storage(str(journal))
    [summary] = storage.get_all_studies()
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 3
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "WAITING"}  # published points beyond the three wait
    assert all(sorted(trial.intermediate_values) == [1, 2, 3, 4] for trial in complete)

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("resnet20-digits").experiment_id])
    assert len(runs) == 4, "one parent, one child per trial"
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if "mlflow.parentRunId" in run.data.tags:
            history = client.get_metric_history(run.info.run_id, "valid_accuracy")
            assert sorted(point.step for point in history) == [1, 2, 3, 4]


def trial_workers(folder):
    """The processes that train trials of a search in this folder; Ray hands the driver's environment on to them."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_ours = f"ADAMSRT_CACHE_DIR={folder}/" in (process / "environ").read_text(errors="replace")
            if is_ours and re.match(r"ray::\w*Trainable", (process / "cmdline").read_text()):
                yield int(process.name)


@pytest.mark.slow(seconds=40)
def test_a_killed_worker_costs_epochs_and_no_trial(tmp_path):
    options = ["--setting", "resnet20-digits", "--trials", "2", "--epochs", "5", "--scheduler", "fifo"]
    process = start_search(tmp_path, *options, "--max-concurrent", "1")
    journal = tmp_path / "runs" / "optuna.journal"
    wait_for(journal, "epoch:2", process)
    workers = list(trial_workers(tmp_path))
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "2 of 2: 2 complete, 0 stopped, 0 failed" in output
    storage = open_storage(str(journal))
    [summary] = storage.get_all_studies()
    first = optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()[0]
    assert sorted(first.intermediate_values) == [1, 2, 3, 4, 5]
    repeated = first.user_attrs["epochs_repeated"]
    assert 1 <= repeated <= 5
    assert f"{10 + repeated} of at most 10" in output, "epochs trained twice are counted"
