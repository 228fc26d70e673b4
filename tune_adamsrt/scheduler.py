"""Ray Tune's view of the rungs and the budgets: after every epoch, go on or stop."""

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_adamsrt.budget import Budget
from tune_adamsrt.rungs import Rungs
from tune_adamsrt.study import Study


class SuccessiveHalving(FIFOScheduler):
    """Stops trials that a rung or a budget ends; the searcher finds the reasons in `Study.stop_reasons`."""

    # A buffered report could pass a rung unseen.
    _supports_buffered_results = False

    def __init__(self, study: Study, rungs: Rungs, budget: Budget) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study = study
        self._rungs = rungs
        self._budget = budget
        for record in study.trials.values():  # after a restart
            for report in record.epochs:
                if report.is_finite:
                    rungs.record(record.number, report.epoch, report.value)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, epoch = result["trial_number"], result["epoch"]
        self._rungs.record(number, epoch, result["value"])
        self._study.pausing.pop(number, None)  # left there where the worker was lost before its checkpoint was saved
        # An epoch that is trained again after a loss was judged when it was new.
        is_judged = epoch < self._study.trials[number].epoch
        reason = self._budget.reason_to_stop(unreported_epochs=1)
        if reason is not None:
            self._study.stop_reasons[number] = reason
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE if is_judged else self._judge(number, epoch))

    def _judge(self, number: int, epoch: int) -> str:
        """Decide what becomes of a trial at a new epoch."""
        reason = self._rungs.reason_to_stop(number, epoch)
        if reason is None:
            return str(TrialScheduler.CONTINUE)
        self._study.stop_reasons[number] = reason
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tune gave a trial up: its worker was lost more often than allowed, or it could not be restored."""
        error = trial.get_error()
        last_line = str(error).strip().splitlines()[-1] if error and str(error).strip() else "worker lost"
        self._study.stop_reasons[trial.config["trial_number"]] = f"given up by Ray Tune: {last_line}"

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the study is the record; Tune's snapshots need nothing of the scheduler

    def debug_string(self) -> str:
        return f"successive halving at epochs {self._rungs.epochs}"


class Promotion(SuccessiveHalving):
    """Pauses a trial at a rung, with a checkpoint, until it is among the best there.

    For Tune a paused trial has ended: its worker is free for another, and a paused trial takes no place among the
    concurrent ones. The searcher hands it out again once it is promoted, as a new trial of Tune's that goes on from the
    checkpoint (Tune's own PAUSE has no such rule: ray issues 32634 and 44256).
    """

    def _judge(self, number: int, epoch: int) -> str:
        if epoch not in self._rungs.values or self._rungs.is_promoted(number, epoch):
            return str(TrialScheduler.CONTINUE)
        # Tune saves a checkpoint first. Only then has the trial ended for it, and only then may it be handed out again.
        self._study.pausing[number] = epoch
        return str(TrialScheduler.STOP)
