"""Drivers that are killed at a chosen moment.

`python killed_driver.py URI N` tracks the first half of a made-up search, and gets SIGKILL just before (N < 0: just
after) its N-th call that writes to MLflow.

`python killed_driver.py search METHOD N EPOCH OPTION...` is a real search that gets SIGKILL just after the N-th call of
a method of `Study`; calls of `report` count where they report a later epoch than EPOCH.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search_records import make_info, make_report, make_trial

from tune_adamsrt.records import Observer, SearchInfo, SearchSummary, TrialRecord, TrialState
from tune_adamsrt.tracking import Tracking

WRITING = ("create_run", "log_batch", "log_text", "set_terminated", "update_run", "delete_tag")


def info(restored: Sequence[TrialRecord] = (), *, revision: str = "first", key: str = "0123abcd") -> SearchInfo:
    return make_info(trials=5, epochs=4, key=key, restored=restored, tags={"git_revision": revision})


def begin(observer: Observer, number: int) -> TrialRecord:
    trial = make_trial(number, TrialState.RUNNING, 0, started_at=1_700_000_000.0 + number)
    observer.trial_started(trial)
    return trial


def train(observer: Observer, trial: TrialRecord, epochs: int, value: float = 0.5) -> None:
    for _ in range(epochs):
        trial.epochs.append(make_report(trial.epoch + 1, value))
        observer.epoch_reported(trial, trial.epochs[-1])


def end(observer: Observer, trial: TrialRecord, state: TrialState) -> None:
    trial.state, trial.ended_at, trial.host = state, 1_700_000_100.0 + trial.number, "node-1"
    trial.reason = "" if state is TrialState.COMPLETE else "because"
    observer.trial_ended(trial)


def first_half(observer: Observer) -> list[TrialRecord]:
    """Trial 0 completes, 1 is stopped after epoch 2, 2 gets to epoch 2, 3 fails after epoch 1."""
    observer.search_started(info())
    trials = [begin(observer, number) for number in range(4)]
    for trial, epochs in zip(trials, (4, 2, 2, 1), strict=True):
        train(observer, trial, epochs)
    end(observer, trials[0], TrialState.COMPLETE)
    end(observer, trials[1], TrialState.STOPPED)
    end(observer, trials[3], TrialState.FAILED)
    return trials


def second_half(observer: Observer, trials: list[TrialRecord]) -> list[TrialRecord]:
    """Trial 4 is stopped after epoch 1, trial 2 goes on and completes as the best."""
    trials.append(begin(observer, 4))
    train(observer, trials[4], 1)
    end(observer, trials[4], TrialState.STOPPED)
    train(observer, trials[2], 2, value=0.9)
    end(observer, trials[2], TrialState.COMPLETE)
    return trials


def summary(trials: Sequence[TrialRecord], ended_by: str = "all trials done") -> SearchSummary:
    candidates = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best = max(candidates, key=lambda trial: trial.value or 0.0, default=None)
    spent = sum(trial.epochs_spent for trial in trials)
    return SearchSummary(best, len(candidates), trials, spent, seconds=12.5, ended_by=ended_by)


def die_at(call: int) -> None:
    """Replace MLflow's calls that write by ones that count and kill."""
    from mlflow import MlflowClient

    calls: list[str] = []

    def counted(name: str, original: Any) -> Any:
        def method(*args: Any, **others: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **others)
            if len(calls) == -call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return method

    for name in WRITING:
        setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name)))


def die_after(method: str, count: int, later_than: int) -> None:
    """Replace a method of `Study` by one that counts and kills."""
    from tune_adamsrt.study import Study

    original = getattr(Study, method)
    calls: list[str] = []

    def counted(study: Study, *args: Any, **others: Any) -> Any:
        result = original(study, *args, **others)
        if method != "report" or args[1].epoch > later_than:
            calls.append(method)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(Study, method, counted)


def epochs_to_repeat(journal: Path, rungs: Sequence[int]) -> dict[int, int]:
    """Count what each running trial has trained since its checkpoint at a rung. The journal must have one study."""
    epoch: dict[int, int] = {}
    kept: dict[int, int] = {}
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        for key in entry.get("user_attr", {}) if "trial_id" in entry else ():
            trial = entry["trial_id"]
            if key.startswith("epoch:"):
                epoch[trial] = int(key.removeprefix("epoch:"))
            elif key == "checkpoint":
                kept[trial] = max((rung for rung in rungs if rung <= epoch[trial]), default=0)
            elif key == "end":
                epoch.pop(trial, None)
    return {trial: last - kept.get(trial, 0) for trial, last in epoch.items()}


def search(arguments: Sequence[str]) -> int:
    method, count, later_than, *options = arguments
    die_after(method, int(count), int(later_than))
    from tune_adamsrt.search import main

    return main(options)


if __name__ == "__main__":
    if sys.argv[1] == "search":
        sys.exit(search(sys.argv[2:]))
    die_at(int(sys.argv[2]))
    tracking = Tracking(sys.argv[1], flush_interval_s=60.0)  # all is said before anything is sent
    first_half(tracking)
    tracking._writer.close(60.0)  # sends, without the ends that Tracking.close would tell
