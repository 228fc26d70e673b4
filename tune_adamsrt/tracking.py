"""What of a search is in MLflow: an experiment per setting, a parent run per search, a child run per trial.

The Observer methods only hand plain values to the background writer: a search neither waits for MLflow nor ends because
of it. A resumed search goes on with its runs, which carry the study's key; what the driver before it did not get to
send, because it was killed, is sent then.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_adamsrt.mlflow_run import Report, Run
from tune_adamsrt.mlflow_writer import Writer
from tune_adamsrt.records import EpochReport, SearchInfo, SearchSummary, TrialRecord, TrialState

SPACE_FILE = "search_space.json"

END_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.STOPPED: "KILLED", TrialState.FAILED: "FAILED"}

# Tags of a run that a search was stopped in; they go when it runs again.
PASSING_TAGS = ("ended_by", "reason", "stopped_at_epoch")


class Tracking:
    """Writes one search to MLflow; an Observer.

    Args:
        uri: from resolve_tracking_uri, checked by check_tracking_uri.
        on_warning: told of each kind of trouble once, in one line without secrets. Called from the background thread.
        max_waiting_reports: epoch reports kept while the store does not answer; beyond it the oldest are dropped.
        flush_interval_s: how long reports are gathered before they are sent together.
    """

    def __init__(
        self,
        uri: str,
        *,
        on_warning: Callable[[str], None] | None = None,
        max_waiting_reports: int = 20_000,
        flush_interval_s: float = 1.0,
    ) -> None:
        self.uri = uri
        self._writer = Writer(uri, on_warning, max_waiting_reports, flush_interval_s)
        self._info: SearchInfo | None = None
        self._search: Run | None = None
        self._trials: dict[int, Run] = {}
        self._ended: dict[TrialState, int] = dict.fromkeys(END_STATUS, 0)
        self._best_value = -math.inf
        self._epochs_spent = 0

    @property
    def run_id(self) -> str | None:
        """The parent run's id. Waits up to 5 seconds for it; None where the store does not answer."""
        if self._search is None or not self._writer.is_answering:
            return None
        self._search.is_created.wait(timeout=5.0)
        return self._search.run_id

    def search_started(self, info: SearchInfo) -> None:
        """Start the thread and the runs. Import Ray and Optuna before: the thread imports MLflow meanwhile."""
        restored = info.restored if info.key else ()
        ended = sorted((trial for trial in restored if trial.state in END_STATUS), key=_end_time)
        self._info = info
        self._search = self._writer.add_run(
            info.name,
            started_at=time.time(),
            key=info.key,
            passing_tags=PASSING_TAGS,
            earlier=[(int(_end_time(trial) * 1000), step, self._count(trial)) for step, trial in enumerate(ended, 1)],
        )
        self._writer.tell(
            self._search,
            tags={
                **info.tags,
                "setting": info.setting,
                "optimizer": info.optimizer,
                "study_name": info.study_name,
                "trials": info.trials,
                "epochs": info.epochs,
                "max_epochs_spent": info.max_epochs_spent,
                "max_concurrent": info.max_concurrent,
                "time_budget_s": "none" if info.time_budget_s is None else info.time_budget_s,
            },
            artifact=(SPACE_FILE, json.dumps(dict(info.space), indent=2, default=str)),
        )
        for trial in restored:
            run = self._add_run(trial, self._search, info, earlier=_reports(trial))
            if trial.state in END_STATUS:
                self._tell_end(run, trial, trial.state)
        self._writer.start(experiment=info.setting, key=info.key)

    def trial_started(self, trial: TrialRecord) -> None:
        self._run_of(trial)

    def epoch_reported(self, trial: TrialRecord, report: EpochReport) -> None:
        run = self._run_of(trial)
        if run is None or report.epoch <= run.last_step:
            return  # trained again after its worker was lost: the first report stands
        self._writer.tell(run, step=report.epoch, metrics=_metrics(report))

    def trial_ended(self, trial: TrialRecord) -> None:
        run = self._run_of(trial)
        if run is None or self._search is None:
            return
        self._tell_end(run, trial, trial.state if trial.state in END_STATUS else TrialState.STOPPED)
        metrics = self._count(trial)
        self._writer.tell(self._search, step=sum(self._ended.values()), metrics=metrics)

    def search_ended(self, summary: SearchSummary) -> None:
        if self._search is None:
            return
        self._end_running(summary.ended_by)
        metrics: dict[str, float] = {"candidates": summary.candidates, "seconds": summary.seconds}
        tags: dict[str, Any] = {"ended_by": summary.ended_by, "epochs_spent": summary.epochs_spent}
        if summary.best is not None and summary.best.value is not None:
            metrics["best_valid_accuracy"] = summary.best.value
            tags["best_trial"] = summary.best.number
            # not as params, which cannot change when a resumed search finds something better
            tags |= {f"best_{name}": value for name, value in _params(summary.best.hyper_parameters).items()}
        end = "KILLED" if summary.ended_by == "interrupted" else "FINISHED"
        self._writer.tell(self._search, tags=tags, step=sum(self._ended.values()), metrics=metrics, end=end)

    def add_artifact(self, path: Path) -> None:
        """Keep a file with the parent run, as it is when it is sent (seconds later). Call before close."""
        if self._search is not None:
            self._writer.tell(self._search, artifact=Path(path).absolute())

    def close(self, timeout_s: float = 30.0) -> bool:
        """Send what is left and end the thread; True if nothing was lost, else on_warning has been told what.

        A store that is known not to answer gets one more try, so that the end of a search does not wait for it.
        """
        if self._search is None:
            return True
        if not self._search.is_ending:  # the driver raised between search_started and search_ended
            self._end_running("the search failed")
            self._writer.tell(self._search, tags={"ended_by": "the search failed"}, end="FAILED")
        return self._writer.close(timeout_s)

    def _run_of(self, trial: TrialRecord) -> Run | None:
        if self._search is None or self._info is None:
            return None
        return self._trials.get(trial.number) or self._add_run(trial, self._search, self._info)

    def _add_run(self, trial: TrialRecord, search: Run, info: SearchInfo, *, earlier: Sequence[Report] = ()) -> Run:
        run = self._writer.add_run(
            f"trial-{trial.number:03d}",
            started_at=trial.started_at or time.time(),
            key=f"{info.key}/{trial.number}" if info.key else "",
            parent=search,
            first_tags={
                **info.tags,
                "setting": info.setting,
                "optimizer": info.optimizer,
                "epochs": info.epochs,
                "study_name": info.study_name,
                "trial_number": trial.number,
                "seed": trial.seed,
                "origin": trial.origin,
                "host": trial.host,
            },
            passing_tags=PASSING_TAGS,
            earlier=earlier,
        )
        self._trials[trial.number] = run
        self._writer.tell(run, params=_params(trial.hyper_parameters), tags={"state": TrialState.RUNNING})
        return run

    def _tell_end(self, run: Run, trial: TrialRecord, state: TrialState) -> None:
        tags: dict[str, Any] = {"state": state, "epochs_spent": trial.epochs_spent}
        if state != TrialState.COMPLETE:
            tags[f"{state}_at_epoch"] = trial.epoch
            tags["reason"] = trial.reason
        if trial.host:
            tags["host"] = trial.host
        self._writer.tell(run, tags=tags, end=END_STATUS[state], ended_at=trial.ended_at)

    def _count(self, trial: TrialRecord) -> dict[str, float]:
        """Add an ended trial to the search's totals. Returns these."""
        state = trial.state if trial.state in END_STATUS else TrialState.STOPPED
        self._ended[state] += 1
        self._epochs_spent += trial.epochs_spent
        if state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
            self._best_value = max(self._best_value, trial.value)
        totals = {"epochs_spent": float(self._epochs_spent)}
        totals |= {f"trials_{state}": float(count) for state, count in self._ended.items()}
        if math.isfinite(self._best_value):
            totals["best_value"] = self._best_value  # over finished trials: values at fewer epochs do not compare
        return totals

    def _end_running(self, reason: str) -> None:
        for run in self._trials.values():
            if not run.is_ending:
                tags = {"state": TrialState.STOPPED, "stopped_at_epoch": run.last_step, "reason": reason}
                self._writer.tell(run, tags=tags, end="KILLED")


def _end_time(trial: TrialRecord) -> float:
    return trial.ended_at or trial.started_at


def _reports(trial: TrialRecord) -> list[Report]:
    """The epochs of a restored trial. When each ended is not on record: about as if all had followed each other."""
    ended = itertools.accumulate((report.seconds for report in trial.epochs), initial=trial.started_at)
    next(ended)
    return [(int(end * 1000), report.epoch, _metrics(report)) for end, report in zip(ended, trial.epochs, strict=True)]


def _metrics(report: EpochReport) -> dict[str, float]:
    return {
        "value": report.value,
        "train_loss": report.train_loss,
        "train_accuracy": report.train_accuracy,
        "valid_loss": report.valid_loss,
        "valid_accuracy": report.valid_accuracy,
        "lr": report.lr,
        "seconds_per_epoch": report.seconds,
        "images_per_second": report.train_images_per_second,
    }


def _params(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters by their names, betas as beta1 and beta2.

    The axes of the compare view (parallel coordinates, scatter) need numbers; "(0.9, 0.99)" would be a category.
    """
    params = {name: value for name, value in hyper_parameters.items() if name != "betas"}
    if "betas" in hyper_parameters:
        params["beta1"], params["beta2"] = hyper_parameters["betas"]
    return params
