"""How a search ends when it is told to, and what becomes of checkpoints."""

import os
import pickle
import signal
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune import Trainable
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from tune_adamsrt.checkpoints import CHECKPOINT_FAILURE, CheckpointedTrainable, Checkpoints
from tune_adamsrt.cluster.draining import NodeLeavingError
from tune_adamsrt.cluster.lost_workers import MAX_LOST_WORKERS, LostWorkers
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
    counts = SimpleNamespace(num_failures=2)
    return SimpleNamespace(
        config={"trial_number": 3}, storage=storage, run_metadata=counts, latest_checkpoint_result=None
    )


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
    monkeypatch.setattr(CheckpointedTrainable, "FETCH_FOR_S", 0.0)
    monkeypatch.setattr(TrainingTrainable, "step", lambda self: {"epoch": 1})
    monkeypatch.setattr(TrainingTrainable, "_begin", lambda self, config: begun.append(config))
    worker = CheckpointedTrainable.__new__(CheckpointedTrainable)
    worker._last_result, worker.config, worker._training = {"epoch": 1}, {"seed": 1}, None
    assert worker.save().checkpoint is None
    assert [worker.step(), worker.step()] == [{"epoch": 1, CHECKPOINT_FAILURE: "no space"}, {"epoch": 1}]
    worker.restore("gone")
    assert begun == [{"seed": 1}]


def test_a_checkpoint_is_waited_for_while_its_storage_is_away(monkeypatch):
    answers = [OSError("away"), FileNotFoundError("away"), None]
    fetched, waited = [], []

    def restore(self, checkpoint):
        if (answer := answers.pop(0)) is not None:
            raise answer
        fetched.append(checkpoint)

    monkeypatch.setattr(Trainable, "restore", restore)
    monkeypatch.setattr("tune_adamsrt.checkpoints.time.sleep", waited.append)
    worker = CheckpointedTrainable.__new__(CheckpointedTrainable)
    worker._training = None
    worker.restore("there")
    assert (fetched, waited) == (["there"], [0.5, 1.0])


def test_a_trial_leaves_a_node_that_is_taken_away_once_its_epoch_is_kept(monkeypatch):
    leaving = [False]
    monkeypatch.setattr("tune_adamsrt.checkpoints.node_is_leaving", lambda: leaving[0])
    monkeypatch.setattr(TrainingTrainable, "_begin", lambda self, config: None)
    monkeypatch.setattr(Trainable, "save", lambda self, folder: None)

    def step(self):
        self._training.epoch += 1
        return {"epoch": self._training.epoch, DONE: self._training.epoch == 4}

    monkeypatch.setattr(TrainingTrainable, "step", step)
    worker = CheckpointedTrainable.__new__(CheckpointedTrainable)
    worker._training = SimpleNamespace(epoch=0)
    worker._begin({})
    assert SHOULD_CHECKPOINT not in worker.step()
    leaving[0] = True
    assert worker.step()[SHOULD_CHECKPOINT]
    assert worker.step()[SHOULD_CHECKPOINT], "it stays, since nothing was kept"
    worker.save()
    with pytest.raises(NodeLeavingError) as error:
        worker.step()
    assert error.value.preempted, "Tune counts no failure"
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    fresh = CheckpointedTrainable.__new__(CheckpointedTrainable)
    fresh._training = SimpleNamespace(epoch=0)
    fresh._begin({})
    with pytest.raises(NodeLeavingError):
        fresh.step()


@pytest.mark.parametrize("cost_s", [0.05, 0.6, 4.0, 60.0])
@pytest.mark.parametrize("epoch_s", [0.2, 7.0, 100.0])
@pytest.mark.parametrize("is_kept", [True, False])
def test_checkpoints_take_two_percent_of_the_training_time(epoch_s, cost_s, is_kept, monkeypatch):
    """And one checkpoint, whose cost nobody knows before; what is trained twice after a loss is bounded by the same."""
    now, checkpoints, since, longest = 0.0, 0, 0.0, 0.0

    def keep(self, folder):
        nonlocal now
        now += cost_s
        if not is_kept:
            raise OSError("the storage is away, and says so late")

    monkeypatch.setattr(Trainable, "save", keep)
    monkeypatch.setattr("tune_adamsrt.checkpoints.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("tune_adamsrt.trainable.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("tune_adamsrt.trainable.Training", lambda spec, predecessor: SimpleNamespace(epoch=0))
    monkeypatch.setattr("tune_adamsrt.trainable.training_spec", lambda config: None)
    worker = CheckpointedTrainable.__new__(CheckpointedTrainable)
    worker._last_result = {}
    protocol, place = {"selection": "best"}, {"checkpoint_epochs": ()}
    worker._begin({"trial_number": 0, "protocol": protocol, "place": place})
    assert worker._failure is None
    for epoch in range(1, 5001):
        now += epoch_s
        since += epoch_s
        if worker._is_checkpoint_due(epoch):
            worker.save()
            checkpoints, longest, since = checkpoints + 1, max(longest, since), 0.0
    assert checkpoints >= 1
    assert (checkpoints - 1) * cost_s <= 0.02 * 5000 * epoch_s
    assert longest <= max(30.0, 50 * max(cost_s, 0.1)) + epoch_s


def test_a_trial_that_gets_further_may_lose_workers_again():
    lost, notes = LostWorkers(), []
    study = Study(TrialState.RUNNING)
    checkpoints = Checkpoints(study, "/runs", notes.append, lost)
    trial = tune_trial("/runs")
    for _ in range(3):
        for _ in range(MAX_LOST_WORKERS):
            checkpoints.on_trial_recover(0, [], trial)
        assert lost.may_go_on(3)
        checkpoints.on_checkpoint(0, [], trial, SimpleNamespace(path="/runs/study/x"))
        assert trial.run_metadata.num_failures == 0
    for _ in range(MAX_LOST_WORKERS + 1):
        checkpoints.on_trial_recover(0, [], trial)
    assert not lost.may_go_on(3) and lost.may_go_on(4)
    assert set(notes) == {"trial 3 lost its worker after epoch 0, and goes on from the start"}


@pytest.mark.parametrize(("state", "stays"), [(TrialState.COMPLETE, False), (TrialState.PAUSED, True)])
def test_checkpoints_of_ended_trials_are_removed_and_of_paused_ones_kept(state, stays, tmp_path):
    for name in ("trial-00003-aa", "trial-00003-bb", "trial-00033-cc"):
        (tmp_path / name).mkdir()
    Checkpoints(Study(state), str(tmp_path), print).on_trial_complete(0, [], tune_trial(tmp_path))
    left = {folder.name for folder in tmp_path.iterdir()}
    assert ("trial-00003-aa" in left, "trial-00003-bb" in left) == (stays, stays)
    assert "trial-00033-cc" in left
