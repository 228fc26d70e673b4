"""Ray Tune's view of the study: which configuration comes next, and what became of the last ones.

Ray's own OptunaSearch tells stopped trials as complete with their low-epoch value, and a NaN leaves a trial running for
ever. Here every epoch is reported, also the one that ends a trial; stopped trials are PRUNED, diverged ones FAIL.
"""

import dataclasses
from typing import Any

from ray.tune.search import Searcher

from tune_adamsrt.budget import Budget
from tune_adamsrt.records import TrialRecord, TrialState
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.study import Study
from tune_adamsrt.trainable import epoch_report, failure_of

GIVE_UP_AFTER = 5


def hopeless_reason(study: Study, trials: int) -> str | None:
    """Say so where all of the first trials failed, with the first one's reason: no configuration will mend that."""
    if any(report.is_finite for record in study.trials.values() for report in record.epochs):
        return None  # seen at the first healthy epoch, however many trials there are
    failed = study.in_state(TrialState.FAILED)
    if len(failed) < min(GIVE_UP_AFTER, trials):
        return None
    return f"all of the first {len(failed)} trials failed; trial {failed[0].number}: {failed[0].reason}"


class StudySearcher(Searcher):
    """Asks the study for configurations and tells it how they went.

    Args:
        rungs: decide which paused trial goes on; without paused trials they are not asked.
    """

    def __init__(self, study: Study, budget: Budget, rungs: Rungs) -> None:
        super().__init__(metric="value", mode="max")
        self._study = study
        self._budget = budget
        self._rungs = rungs
        self._numbers: dict[str, int] = {}
        self._active: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # the study knows its space; `config` holds what all trials share

    def suggest(self, trial_id: str) -> Any:
        """Give the next trial's own part of the configuration, None for later, or Searcher.FINISHED."""
        record = self._next_record()
        if record is None:
            if self._active and (self._study.paused or self._waits_for_epochs()):
                return None  # what runs now may yet promote one of those that wait, or leave epochs to a new one
            record = self._last_resort()
        if record is None:
            self._leave_behind()
            return Searcher.FINISHED
        record.ray_trial_id = trial_id
        self._numbers[trial_id] = record.number
        self._active.add(trial_id)
        return {
            "trial_number": record.number,
            "hyper_parameters": record.hyper_parameters,
            "seed": record.seed,
            "checkpoint": record.checkpoint,
        }

    def _next_record(self) -> TrialRecord | None:
        if hopeless_reason(self._study, self._budget.trials):
            return None
        if self._study.interrupted and self._budget.reason_to_stop() is None:
            return self._study.ask()
        if self._budget.what_is_spent() is None:
            promoted = self._rungs.next_promotion(self._study.paused)
            if promoted is not None and self._budget.has_room_for(self._study.epochs - self._study.paused[promoted]):
                return self._study.promote(promoted)
        if self._budget.reason_not_to_start() or not self._budget.has_room_for(self._study.epochs):
            return None
        return self._study.ask()

    def _waits_for_epochs(self) -> bool:
        """Tell whether all that keeps the next trial from starting is what those that run may still need."""
        has_failed = hopeless_reason(self._study, self._budget.trials)
        return not (has_failed or self._budget.reason_not_to_start() or self._budget.has_room_for(self._study.epochs))

    def _last_resort(self) -> TrialRecord | None:
        """Go on with the best that waits where the search would else end without any trial at the full budget."""
        study = self._study
        is_over = study.in_state(TrialState.COMPLETE) or self._budget.what_is_spent() or not study.paused
        if is_over or hopeless_reason(study, self._budget.trials):
            return None
        best = max(study.paused, key=lambda n: (study.paused[n], study.trials[n].value or 0.0, -n))
        if not self._budget.has_room_for(study.epochs - study.paused[best]):
            return None
        self._rungs.let_on(best, study.paused[best])
        return study.promote(best)

    def _leave_behind(self) -> None:
        """End the trials that wait, at a rung or since a driver was lost, when nothing can go on with them any more."""
        while self._study.interrupted:
            record = self._study.interrupted.popleft()
            self._study.tell_stopped(record.number, self._budget.reason_not_to_start() or "the search ended before it")
        for number, epoch in sorted(self._study.paused.items()):
            reason = self._budget.what_is_spent() or self._rungs.reason_left_behind(number, epoch)
            self._study.tell_stopped(number, reason)
        self._study.give_back_not_sampled()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._report(self._numbers[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the last epoch, which Tune keeps from on_trial_result, then the end."""
        number = self._numbers[trial_id]
        self._active.discard(trial_id)
        stop_reason = self._study.stop_reasons.pop(number, None)
        rung = self._study.pausing.pop(number, None)
        if error or result is None:
            self._study.tell_failed(number, stop_reason or "given up by Ray Tune")
            return
        self._report(number, result)
        if (failure := failure_of(result)) is not None:
            self._study.tell_failed(number, failure)
        elif self._study.trials[number].epoch == self._study.epochs:
            self._study.tell_complete(number)
        elif rung is not None:
            self._study.pause(number, rung)
        else:
            self._study.tell_stopped(number, stop_reason or "stopped by Ray Tune")

    def _report(self, number: int, result: dict[str, Any]) -> None:
        report = epoch_report(result)
        known = [dataclasses.replace(last, reported_at=0.0) for last in self._study.trials[number].epochs[-1:]]
        if report is not None and known != [report]:  # at a trial's end Tune may repeat a result
            self._study.report(number, report, host=str(result.get("hostname", "")))

    # The study is the record; Tune's snapshots need nothing of the searcher.

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        return None

    def restore(self, checkpoint_path: str) -> None:
        return None

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        return None
