"""A search under promotion whose driver is killed: while trials wait at a rung, and while promoted ones run."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from killed_driver import epochs_to_repeat

from tune_adamsrt.storage import open_storage

REPOSITORY = Path(__file__).parents[2]
KILLED = [sys.executable, str(REPOSITORY / "tests" / "killed_driver.py"), "search"]
SETTING = (
    "{model: resnet20, dataset: digits, epochs: 6, min_epochs: 2, trials: 6, cpus_per_trial: 1, gpus_per_trial: 0}"
)
RUNGS = (2, 4)
TRIALS = 6


def run(folder, command, *options):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "TUNE_"))}
    here = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "ADAMSRT_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(
        [*command, *options], cwd=folder, env=inherited | here, capture_output=True, text=True, timeout=300
    )


def trials_of(journal):
    return optuna.load_study(study_name="p", storage=open_storage(str(journal))).get_trials()


def values_at(rung, trials):
    """Trial -> its value at a rung."""
    return {t.number: t.intermediate_values[rung] for t in trials if rung in t.intermediate_values}


@pytest.mark.slow(seconds=200)
def test_what_was_asked_for_is_done_and_no_trial_starts_anew(tmp_path):
    (tmp_path / "resnet20-digits.yaml").write_text(SETTING)
    options = ["--setting", "resnet20-digits.yaml", "--scheduler", "promotion", "--trials", str(TRIALS), "--study", "p"]
    options += ["--limit-train-examples", "64", "--max-concurrent", "2"]
    options += ["--confirm-seeds", "0", "--no-report"]
    journal = tmp_path / "runs" / "optuna.journal"
    recorded = ""
    allowed: Counter[int] = Counter()
    seen: dict[int, dict[int, float]] = {rung: {} for rung in RUNGS}
    # two trials wait; one is promoted, but not yet with Tune; a promoted one has trained an epoch more
    for moment in (("pause", "2", "0"), ("promote", "1", "0"), ("report", "1", "2")):
        killed = run(tmp_path, KILLED, *moment, *options)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stdout, killed.stderr)
        assert journal.read_text().startswith(recorded), "what was recorded stays"
        recorded = journal.read_text()
        trials = trials_of(journal)
        for rung in RUNGS:
            assert values_at(rung, trials).items() >= seen[rung].items()
            seen[rung] = values_at(rung, trials)
        allowed.update(epochs_to_repeat(journal, RUNGS))
    assert seen[2], "trials had come to the first rung"

    resumed = run(tmp_path, [sys.executable, "-m", "tune_adamsrt.search"], *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    trials = [trial for trial in trials_of(journal) if trial.state.name != "WAITING"]
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        epochs = sorted(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1))
        assert trial.user_attrs.get("epochs_repeated", 0) <= allowed[trial.number], "it goes on from its checkpoint"

    # Whoever is among the best half of a rung went on from it, judged by all trials that came there, before and after.
    for rung in RUNGS:
        values = values_at(rung, trials)
        assert values.items() >= seen[rung].items()
        best = sorted(values, key=lambda number: (-values[number], number))[: len(values) // 2]
        assert all(rung + 1 in trials[number].intermediate_values for number in best), (rung, values)
        for number in values.keys() - best:
            if max(trials[number].intermediate_values) == rung:
                assert f"of {len(values)}, the best {len(best)} went on" in trials[number].user_attrs["end"]["reason"]
    assert_mlflow_has_each_once(tmp_path, trials)


def assert_mlflow_has_each_once(folder, trials):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("resnet20-digits").experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(runs), len(children)) == (TRIALS + 1, TRIALS)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    steps = []
    for child in children:
        steps.append([point.step for point in client.get_metric_history(child.info.run_id, "valid_accuracy")])
    assert sorted(map(sorted, steps)) == sorted(sorted(trial.intermediate_values) for trial in trials)
