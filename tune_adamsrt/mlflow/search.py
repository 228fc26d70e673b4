"""A search in MLflow's terms: its parent run, and what that is told. Nothing here sends anything."""

import json
import math
import time
import uuid
from collections.abc import Iterator
from typing import Any

from tune_adamsrt.mlflow.metrics import as_tags, params
from tune_adamsrt.mlflow.run import Point, Run
from tune_adamsrt.mlflow.trials import PASSING_TAGS, TrialRuns
from tune_adamsrt.records import Confirmation, SearchInfo, SearchSummary, TrialRecord, TrialState

SPACE_FILE = "search_space.json"


class SearchRuns:
    """The parent run of a search, and the child runs of its trials and of the runs that confirm it.

    Args:
        info: with its restored trials.
        is_live: False where the search is only read from its study: then a run that exists keeps what it says of where
            the search ran.
    """

    def __init__(self, info: SearchInfo, *, is_live: bool) -> None:
        self._totals: list[Point] = []  # one for each trial that has ended, and the final one
        self._ended = dict.fromkeys((TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED), 0)
        self._best_value = -math.inf
        self._epochs_spent = 0
        tags = as_tags(
            {
                **info.tags,
                "setting": info.setting,
                "optimizer": info.optimizer,
                "study_name": info.study_name,
                "trials": info.trials,
                "epochs": info.epochs,
                "max_epochs_spent": info.max_epochs_spent,
                "max_concurrent": info.max_concurrent,
                "time_budget_s": "none" if info.time_budget_s is None else info.time_budget_s,
            }
        )
        started = [] if is_live else [trial.started_at for trial in info.restored if trial.started_at]
        self.search = Run(
            info.name,
            key=info.key or uuid.uuid4().hex,
            started_ms=_ms(min(started, default=time.time())),
            points=self._totals,
            first_tags=tags,
            passing_tags=PASSING_TAGS,
        )
        if is_live:
            self.search.tell(tags=tags)
        self.search.artifacts.append((SPACE_FILE, json.dumps(dict(info.space), indent=2, default=str)))
        self.trials = TrialRuns(info, self.search, key=info.key)
        self._confirmations: list[TrialRuns] = []
        ended = [trial for trial in info.restored if trial.has_ended and info.key]
        for trial in sorted(ended, key=lambda trial: trial.ended_at or trial.started_at):
            self.count(trial)

    def __iter__(self) -> Iterator[Run]:
        yield self.search
        for trials in (self.trials, *self._confirmations):
            yield from trials

    def confirm(self, info: SearchInfo) -> TrialRuns:
        """Have the runs that confirm the search beside its trials. Their key begins with the search's."""
        self._confirmations.append(TrialRuns(info, self.search, key=info.key))
        return self._confirmations[-1]

    def count(self, trial: TrialRecord) -> None:
        """Add an ended trial to the search's totals."""
        state = trial.state if trial.has_ended else TrialState.STOPPED
        self._ended[state] += 1
        self._epochs_spent += trial.epochs_spent
        if state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
            self._best_value = max(self._best_value, trial.value)
        totals = {"epochs_spent": float(self._epochs_spent)}
        totals |= {f"trials_{state}": float(count) for state, count in self._ended.items()}
        if math.isfinite(self._best_value):
            totals["best_value"] = self._best_value  # over finished trials: values at fewer epochs do not compare
        self._totals.append((_ms(trial.ended_at or time.time()), sum(self._ended.values()), totals))

    def end(self, summary: SearchSummary, *, ended_at: float) -> None:
        self._end_running(summary.ended_by, ended_at)
        metrics = {"candidates": float(summary.candidates), "seconds": summary.seconds}
        tags: dict[str, Any] = {"ended_by": summary.ended_by, "epochs_spent": summary.epochs_spent}
        if summary.best is not None and summary.best.value is not None:
            metrics["best_valid_accuracy"] = summary.best.value
            tags["best_trial"] = summary.best.number
            # not as params, which cannot change when a resumed search finds something better
            tags |= {f"best_{name}": value for name, value in params(summary.best.hyper_parameters).items()}
        self._totals.append((_ms(ended_at), sum(self._ended.values()), metrics))
        if summary.confirmation is not None and summary.confirmation.test_accuracies:
            tags |= self._note_confirmation(summary.confirmation, ended_at)
        self.search.tell(tags=as_tags(tags))
        self.search.tell_end(_status(summary.ended_by), _ms(ended_at))

    def _note_confirmation(self, confirmation: Confirmation, ended_at: float) -> dict[str, Any]:
        candidate, valid, test = confirmation.candidate, confirmation.valid_accuracy, confirmation.test_accuracy
        assert candidate is not None
        metrics = {
            "confirmed_valid_accuracy_mean": valid.mean,
            "confirmed_valid_accuracy_std": valid.std,
            "test_accuracy_mean": test.mean,
            "test_accuracy_std": test.std,
        }
        # by epochs, of which each further confirmation takes some: the same search can be confirmed on more seeds
        self._totals.append((_ms(ended_at), self._epochs_spent + confirmation.epochs_spent, metrics))
        return {
            "confirmed_trial": candidate.number,
            "confirmed_seeds": valid.n,
            "confirmation_epochs_spent": confirmation.epochs_spent,
            **{f"confirmed_{name}": value for name, value in params(candidate.hyper_parameters).items()},
        }

    def end_as_failed(self) -> None:
        """The driver raised before the search ended."""
        reason = "the search failed"
        self._end_running(reason, time.time())
        self.search.tell(tags={"ended_by": reason})
        self.search.tell_end("FAILED", _ms(time.time()))

    def _end_running(self, reason: str, ended_at: float) -> None:
        for trials in (self.trials, *self._confirmations):
            trials.end_running(reason, ended_at)


def _status(ended_by: str) -> str:
    if ended_by == "interrupted":
        return "KILLED"
    is_broken = ended_by.startswith(("broken off", "all of the first", "the test set could not"))
    return "FAILED" if is_broken else "FINISHED"


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
