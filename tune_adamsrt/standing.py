"""How a stored search stands: its driver, its progress and what it came to, rebuilt from its study."""

import dataclasses
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage

from tune_adamsrt.candidates import is_confirmation
from tune_adamsrt.driver import Driver, find_driver, lock_is_held
from tune_adamsrt.progress import Progress
from tune_adamsrt.records import Confirmation, SearchSummary, TrialRecord, TrialState, best_of
from tune_adamsrt.storage import StudyError
from tune_adamsrt.studies import StoredSearch, confirmations_of, load_confirmation, load_search


@dataclass(frozen=True)
class Stand:
    """A search at one moment.

    Attributes:
        stage: what runs or ran last: the search itself, or the confirmation of its best.
        confirmation: what a confirmation came to; None without one, or before the search has ended.
    """

    search: StoredSearch
    stage: StoredSearch
    driver: Driver
    confirmation: Confirmation | None

    @property
    def is_unfinished(self) -> bool:
        """Whether --resume would have something to do."""
        ended = sum(trial.has_ended for trial in self.search.trials)
        is_searched = ended >= max(self.search.info.trials, len(self.search.trials))
        is_searched = is_searched or self.search.ended_by == "epoch budget"
        return not is_searched or (self.stage is not self.search and not self.stage.test_accuracies)


def load_stand(storage: BaseStorage, study_name: str, *, folder: Path) -> Stand:
    """Read how a search stands. Raises StudyError.

    Args:
        folder: where its driver keeps its lock.
    """
    is_locked = lock_is_held(folder / f".{study_name}.lock")  # first: the study says that it ended before it is freed
    search = load_search(storage, study_name)
    stage = search
    for confirmation in confirmations_of(storage, study_name):
        if (confirmation.started_at or 0.0) >= (search.started_at or 0.0):
            stage = confirmation
    driver = find_driver(stage, is_locked=is_locked, host=platform.node(), now=time.time())
    tested = load_confirmation(storage, study_name) if driver is Driver.ENDED else None
    return Stand(search, stage, driver, tested)


def newest_search(storage: BaseStorage) -> str:
    """Give the study of the search that started last. Raises StudyError where there is none."""
    studies = [
        study
        for study in storage.get_all_studies()
        if "search" in study.user_attrs and not is_confirmation(study.study_name)
    ]
    if not studies:
        raise StudyError("the study storage must hold a search, got none; name another with --output")
    return max(studies, key=lambda study: (study.user_attrs["search"]["started_at"] or 0, study.study_name)).study_name


def build_progress(search: StoredSearch, driver: Driver) -> Progress:
    """Rebuild what the search's driver knows of its progress; times are seconds since the Unix epoch."""
    started = search.started_at or 0.0
    before = [trial for trial in search.trials if trial.started_at < started]
    progress = Progress(
        dataclasses.replace(search.info, restored=before),
        started=started,
        trials={trial.number: trial for trial in search.trials},
    )
    # Trials of an earlier run have gone on since: what counts is how far they were when this run began.
    progress.ended_before = sum(trial.ended_at is not None and trial.ended_at < started for trial in before)
    progress.epochs_before = {
        trial.number: max((report.epoch for report in trial.epochs if report.reported_at < started), default=0)
        for trial in before
    }
    reports = [report for trial in search.trials for report in trial.epochs if report.reported_at >= started]
    for report in sorted(reports, key=lambda report: report.reported_at):
        progress.add_report(report.reported_at, report.seconds)
    for trial in waiting_trials(search, driver):
        trial.state = TrialState.PAUSED
    return progress


def waiting_trials(search: StoredSearch, driver: Driver) -> list[TrialRecord]:
    """Of the trials that have not ended, list those that nobody trains now. The storage does not tell them apart.

    Without a driver that is all of them. With promotion, it is those at a rung, but for as many as there is room for:
    the ones heard of last.
    """
    unended = [trial for trial in search.trials if trial.state is TrialState.RUNNING]
    if driver in (Driver.ENDED, Driver.LOST):
        return unended
    if search.info.tags.get("scheduler") != "promotion":
        return []
    rungs = {int(epoch) for epoch in search.info.tags.get("rungs", "").split(",") if epoch.strip()}
    at_rung = sorted(
        (trial for trial in unended if trial.epoch in rungs),
        key=lambda trial: trial.epochs[-1].reported_at,
        reverse=True,
    )
    return at_rung[max(0, search.info.max_concurrent - (len(unended) - len(at_rung))) :]


def summarize(stand: Stand) -> SearchSummary:
    """Sum up a search that has ended, as its driver has done."""
    search, stage = stand.search, stand.stage
    progress = build_progress(search, Driver.ENDED)
    candidates = progress.in_state(TrialState.COMPLETE)
    is_cut_short = stage is not search and not stage.test_accuracies
    return SearchSummary(
        best=best_of(candidates),
        candidates=len(candidates),
        trials=search.trials,
        epochs_spent=progress.epochs_spent,
        seconds=(stage.ended_at or 0.0) - (search.started_at or 0.0),
        ended_by=(stage.ended_by if is_cut_short else search.ended_by) or "",
        confirmation=stand.confirmation,
    )
