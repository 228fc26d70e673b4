"""How a search ends when it is told to, and what becomes of checkpoints."""

import os
import signal
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem

from tune_adamsrt.records import TrialRecord, TrialState
from tune_adamsrt.running import Checkpoints, stopped_by_signals


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
    storage = SimpleNamespace(experiment_fs_path=str(folder), storage_filesystem=LocalFileSystem())
    return SimpleNamespace(config={"trial_number": 3}, storage=storage)


@pytest.mark.parametrize(
    ("output", "uri"), [("/shared/runs", "/bucket/x"), ("s3://bucket", "s3://bucket/x"), ("gs://b", "gs://bucket/x")]
)
def test_a_checkpoint_is_noted_where_another_node_finds_it(output, uri):
    study = Study(TrialState.RUNNING)
    path = uri.partition("://")[2] or uri  # Tune gives the path within its file system
    Checkpoints(study, output).on_checkpoint(0, [], tune_trial("/"), SimpleNamespace(path=path))
    assert study.checkpoints == [(3, uri)]


@pytest.mark.parametrize(("state", "stays"), [(TrialState.COMPLETE, False), (TrialState.PAUSED, True)])
def test_checkpoints_of_ended_trials_are_removed_and_of_paused_ones_kept(state, stays, tmp_path):
    for name in ("trial-00003-aa", "trial-00003-bb", "trial-00033-cc"):
        (tmp_path / name).mkdir()
    Checkpoints(Study(state), str(tmp_path)).on_trial_complete(0, [], tune_trial(tmp_path))
    left = {folder.name for folder in tmp_path.iterdir()}
    assert ("trial-00003-aa" in left, "trial-00003-bb" in left) == (stays, stays)
    assert "trial-00033-cc" in left
