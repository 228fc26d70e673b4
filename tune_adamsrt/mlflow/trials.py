"""The child runs of a search's trials, or of the runs that confirm it. Nothing here sends anything."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from tune_adamsrt.mlflow.metrics import END_STATUS, EpochPoints, as_tags, end_tags, params
from tune_adamsrt.mlflow.run import Run
from tune_adamsrt.records import SearchInfo, TrialRecord, TrialState

# Tags of a run that a search was stopped in; they go when it runs again.
PASSING_TAGS = frozenset(("ended_by", "reason", "stopped_at_epoch", "stopped_at_rung"))


class TrialRuns:
    """Child runs of one parent run.

    Args:
        info: its restored trials get their runs at once; without a key they cannot be found again and get none.
        key: each run's key is below it.
    """

    def __init__(self, info: SearchInfo, parent: Run, *, key: str) -> None:
        self._info = info
        self._parent = parent
        self._key = key
        self._runs: dict[int, tuple[Run, TrialRecord]] = {}
        for trial in info.restored if key else ():
            self.add(trial)
            if trial.has_ended:
                self.end(trial)

    def __iter__(self) -> Iterator[Run]:
        return iter([run for run, _ in self._runs.values()])

    def of(self, trial: TrialRecord) -> Run | None:
        run, _ = self._runs.get(trial.number, (None, None))
        return run

    def add(self, trial: TrialRecord) -> Run:
        """Give a trial its run; what is added to its epochs later belongs to it as well."""
        info = self._info
        is_confirming = trial.confirms is not None
        tags: dict[str, Any] = {
            **info.tags,
            "setting": info.setting,
            "optimizer": info.optimizer,
            "epochs": info.epochs,
            "study_name": info.study_name,
            "trial_number": trial.number,
            "seed": trial.seed,
            "origin": trial.origin,
            "host": trial.host,
            "role": info.role,
        }
        if is_confirming:
            tags["confirms_trial"] = trial.confirms
        run = Run(
            f"{'confirm' if is_confirming else 'trial'}-{trial.number:03d}",
            key=f"{self._key}/{trial.number}" if self._key else uuid.uuid4().hex,
            started_ms=int((trial.started_at or time.time()) * 1000),
            points=EpochPoints(trial),
            parent=self._parent,
            first_tags=as_tags(tags),
            passing_tags=PASSING_TAGS,
        )
        run.tell(params=params(trial.hyper_parameters), tags={"state": TrialState.RUNNING})
        self._runs[trial.number] = run, trial
        return run

    def end(self, trial: TrialRecord) -> None:
        run, _ = self._runs[trial.number]
        state = trial.state if trial.has_ended else TrialState.STOPPED
        run.tell(tags=as_tags(end_tags(trial, state)))
        run.tell_end(END_STATUS[state], int((trial.ended_at or time.time()) * 1000))

    def end_running(self, reason: str, ended_at: float) -> None:
        """End the runs of the trials that have not ended, since their search has."""
        for run, trial in self._runs.values():
            if not run.is_ending:
                tags = {"state": TrialState.STOPPED, "stopped_at_epoch": trial.epoch, "reason": reason}
                run.tell(tags=as_tags(tags))
                run.tell_end("KILLED", int(ended_at * 1000))
