"""The benchmarks of speed measure what they say; their figures mean nothing here."""

from datetime import datetime, timedelta

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks import fused_launch
from benchmarks.optimizer_step import MODELS, OURS
from benchmarks.trial_start import render, seconds_beyond_training

pytest.importorskip("triton")


@pytest.fixture
def threads_put_back():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_row_for_every_model_and_optimizer(threads_put_back, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fused_launch", "--rounds", "2"])
    monkeypatch.setattr(fused_launch, "STEPS_PER_TURN", 1)
    fused_launch.main()
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if "[" in line and "| " in line]
    assert rows == [[f"| {model}", name] for model in MODELS for name in ("Adam", *OURS)]


def test_a_step_without_a_gpu_is_a_fused_one_that_launches_nothing():
    with fused_launch.without_gpu():
        step = fused_launch.ours("resnet20", "adamsrt")
        before = [x.detach().clone() for group in step.__self__.param_groups for x in group["params"]]
        step()
        (plan,) = step.__self__._plans.values()
        assert plan.fused_steps and not plan.foreach and not plan.for_loop
    after = [x for group in step.__self__.param_groups for x in group["params"]]
    assert all(map(torch.equal, before, after))


def test_the_time_between_trials_without_that_of_their_epochs(tmp_path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    study = optuna.create_study(storage=storage)
    begun = datetime(2026, 1, 1)
    for start_s, epochs_s in ((0, [9.0]), (20, [1.0, 2.0]), (23.5, [4.0]), (28.25, [1.0])):
        epochs = {f"epoch:{k}": {"seconds": each} for k, each in enumerate(epochs_s, start=1)}
        trial = optuna.trial.create_trial(value=0.0, user_attrs=epochs)
        trial.datetime_start = begun + timedelta(seconds=start_s)
        study.add_trial(trial)
    assert seconds_beyond_training(tmp_path / "optuna.journal") == pytest.approx([0.5, 0.75])


def test_what_goes_with_a_trial_apart_from_what_goes_with_its_epochs():
    assert render([29.0, 30.0, 31.0], [50.0]) == (
        "20 [20, 20] ms a trial, 10 ms an epoch beside training and validation, n = 3 trials of 1 epoch and 1 of 3"
    )
