"""Trials that Ray Tune gives up too early are handed out again.

Tune takes up a trial whose worker dies. But a worker that is kept between trials, and dies meanwhile, ends the trial
that it is handed next for good: Tune hears of the one loss twice (ray 2.60, TuneController._actor_failed and then
_trial_task_failure, for a reset).
"""

from typing import Any

from tune_adamsrt.budget import Budget
from tune_adamsrt.cluster.lost_workers import LostWorkers
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.searcher import StudySearcher
from tune_adamsrt.study import Study


class RecoveringSearcher(StudySearcher):
    """A searcher that takes back trials whose workers were lost, as long as their losses are not too many."""

    def __init__(self, study: Study, budget: Budget, rungs: Rungs, lost_workers: LostWorkers) -> None:
        super().__init__(study, budget, rungs)
        self._lost_workers = lost_workers

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers[trial_id]
        if error:
            self._lost_workers.add(number)
            if self._lost_workers.may_go_on(number):
                self._take_back(trial_id, number)
                return
        super().on_trial_complete(trial_id, result, error)

    def _take_back(self, trial_id: str, number: int) -> None:
        self._active.discard(trial_id)
        self._study.stop_reasons.pop(number, None)
        self._study.pausing.pop(number, None)
        self._study.interrupted.append(self._study.trials[number])
