"""The benchmarks of speed measure what they say; their figures mean nothing here."""

import multiprocessing
import time
from datetime import datetime, timedelta

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks import epoch, fused_launch
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


def keep_busy(done) -> None:
    while time.process_time() < 0.5:
        pass
    done.send(True)
    done.recv()  # its clock can be read while it runs


def test_one_thread_is_timed_with_the_cpu_time_of_its_data_worker_and_several_by_the_clock(threads_put_back):
    torch.set_num_threads(1)
    processes = multiprocessing.get_context("spawn")
    done, theirs = processes.Pipe()
    process = processes.Process(target=keep_busy, args=(theirs,))
    process.start()
    try:
        assert done.recv()
        own_s, worker_s = epoch.seconds()
        assert 0.5 <= worker_s < 100 and own_s == pytest.approx(time.process_time(), abs=0.5)
        torch.set_num_threads(2)
        clock_s, none = epoch.seconds()
        assert clock_s == pytest.approx(time.perf_counter(), abs=5) and none == 0
    finally:
        done.send(True)
        process.join()


def test_a_pass_without_the_start_of_its_worker_counts_the_first_batch_that_it_made_before(monkeypatch):
    times = iter([(0.0, 0.0), (10.0, 7.0), (11.0, 7.5), (12.0, 8.0), (13.0, 8.5)])
    monkeypatch.setattr(epoch, "seconds", lambda: next(times))
    monkeypatch.setattr(epoch.multiprocessing, "active_children", lambda: ["a worker"])
    clock = epoch.Clock()
    for _ in range(3):
        clock.batch_is_there()
        clock.step_is_done()
    assert clock.seconds == pytest.approx(3.0 + 1.5 * 3 / 2)


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
