"""How a search ends when it is told to, and what becomes of checkpoints."""

import os
import signal
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune import Trainable

from tune_adamsrt.checkpoints import CHECKPOINT_FAILURE, CheckpointedTrainable, Checkpoints
from tune_adamsrt.records import TrialRecord, TrialState
from tune_adamsrt.running import stopped_by_signals
from tune_adamsrt.trainable import TrainingTrainable


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_tells_tune_and_the_second_ends_the_process(signum, monkeypatch):
    notes, told, exits = [], [], []
    monkeypatch.setattr("os._exit", exits.append)
    before = signal.getsignal(signum), signal.signal(signal.SIGUSR1, lambda *args: told.append(True))
    try:
        with stopped_by_signals(notes.append) as received:
            os.kill(os.getpid(), signum)
            assert (received, len(notes), told, exits) == ([signum], 1, [True], [])
            os.kill(os.getpid(), signum)
            assert exits == [130]
        assert signal.getsignal(signum) is before[0]
    finally:
        signal.signal(signal.SIGUSR1, before[1])


class Study:
    def __init__(self, state):
        self.trials = {3: TrialRecord(3, {}, seed=0, state=state)}
        self.checkpoints = []

    def note_checkpoint(self, number, uri):
        self.checkpoints.append((number, uri))


def tune_trial(folder):
    storage = SimpleNamespace(
        experiment_fs_path=str(folder), storage_fs_path=str(folder), storage_filesystem=LocalFileSystem()
    )
    return SimpleNamespace(config={"trial_number": 3}, storage=storage)


@pytest.mark.parametrize(
    ("folder", "path", "uri"),
    [
        ("/shared/runs", "/shared/runs", "/shared/runs/study/x"),
        ("file:///shared/runs", "/shared/runs", "file:///shared/runs/study/x"),
        ("s3://bucket", "bucket", "s3://bucket/study/x"),
        ("s3://bucket/a?scheme=http&region=b", "bucket/a", "s3://bucket/a/study/x?scheme=http&region=b"),
        ("hdfs://host:8020/runs", "/runs", "hdfs://host:8020/runs/study/x"),
        ("abfs://c@account.dfs.core.windows.net/a", "c/a", "abfs://c@account.dfs.core.windows.net/a/study/x"),
    ],
)
def test_a_checkpoint_is_noted_where_another_node_finds_it(folder, path, uri):
    study = Study(TrialState.RUNNING)
    checkpoint = SimpleNamespace(path=f"{path}/study/x")  # Tune gives the path within its file system
    Checkpoints(study, folder, print).on_checkpoint(0, [], tune_trial(path), checkpoint)
    assert study.checkpoints == [(3, uri)]


def test_a_user_is_told_once_that_checkpoints_cannot_be_kept():
    notes = []
    checkpoints = Checkpoints(Study(TrialState.RUNNING), "/runs", notes.append)
    for result in ({}, {CHECKPOINT_FAILURE: "no space"}, {CHECKPOINT_FAILURE: "no space"}):
        checkpoints.on_trial_result(0, [], tune_trial("/"), result)
    [line] = notes
    assert "no space" in line


def test_a_checkpoint_that_can_be_neither_kept_nor_fetched_costs_no_trial(monkeypatch):
    def fail(*args):
        raise OSError("no\nspace")

    begun = []
    for name in ("save", "restore"):
        monkeypatch.setattr(Trainable, name, fail)
    monkeypatch.setattr(TrainingTrainable, "step", lambda self: {"epoch": 1})
    monkeypatch.setattr(TrainingTrainable, "_begin", lambda self, config: begun.append(config))
    worker = CheckpointedTrainable.__new__(CheckpointedTrainable)
    worker._last_result, worker.config = {"epoch": 1}, {"seed": 1}
    assert worker.save().checkpoint is None
    assert [worker.step(), worker.step()] == [{"epoch": 1, CHECKPOINT_FAILURE: "no space"}, {"epoch": 1}]
    worker.restore("gone")
    assert begun == [{"seed": 1}]


@pytest.mark.parametrize(("state", "stays"), [(TrialState.COMPLETE, False), (TrialState.PAUSED, True)])
def test_checkpoints_of_ended_trials_are_removed_and_of_paused_ones_kept(state, stays, tmp_path):
    for name in ("trial-00003-aa", "trial-00003-bb", "trial-00033-cc"):
        (tmp_path / name).mkdir()
    Checkpoints(Study(state), str(tmp_path), print).on_trial_complete(0, [], tune_trial(tmp_path))
    left = {folder.name for folder in tmp_path.iterdir()}
    assert ("trial-00003-aa" in left, "trial-00003-bb" in left) == (stays, stays)
    assert "trial-00033-cc" in left
