"""What of a search is in MLflow: an experiment per setting, a parent run per search, a child run per trial.

The Observer methods only note what has changed, and a background thread sends it: a search neither waits for MLflow nor
ends because of it. The study is the spool: what did not get through is read from its records again, by the same search
once the store answers, by a resumed search, or by `python -m tune_adamsrt.sync`. Runs carry the study's key, so that
each finds what those before it have sent.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tune_adamsrt.mlflow.run import Run
from tune_adamsrt.mlflow.search import SearchRuns
from tune_adamsrt.mlflow.sender import Sent
from tune_adamsrt.mlflow.trials import TrialRuns
from tune_adamsrt.mlflow.undelivered import Undelivered, load_undelivered
from tune_adamsrt.mlflow.writer import Writer
from tune_adamsrt.records import EpochReport, SearchInfo, SearchSummary, TrialRecord


class TrialTracking:
    """Has a writer send the runs of trials; an Observer of the runs that confirm a search."""

    def __init__(self, runs: TrialRuns, writer: Writer) -> None:
        self._runs = runs
        self._writer = writer

    def search_started(self, info: SearchInfo) -> None:
        return None

    def trial_started(self, trial: TrialRecord) -> None:
        if self._runs.of(trial) is None:
            self._writer.add(self._runs.add(trial))
            self._writer.wake()

    def epoch_reported(self, trial: TrialRecord, report: EpochReport) -> None:
        """Have what is new in `trial.epochs` sent."""
        self.trial_started(trial)
        self._writer.wake()

    def trial_ended(self, trial: TrialRecord) -> None:
        self.trial_started(trial)
        self._runs.end(trial)
        self._writer.wake()

    def search_ended(self, summary: SearchSummary) -> None:
        return None


class Tracking:
    """Writes one search to MLflow; an Observer.

    Args:
        uri: from resolve_tracking_uri, checked by check_tracking_uri.
        on_warning: told of each kind of trouble once, in one line without secrets. Called from the background thread.
        undelivered: the file that says what is missing, while something is; None where nobody asks later.
        flush_interval_s: how long reports are gathered before they are sent together, at least.
    """

    def __init__(
        self,
        uri: str,
        *,
        on_warning: Callable[[str], None] | None = None,
        undelivered: Undelivered | None = None,
        flush_interval_s: float = 1.0,
    ) -> None:
        self.uri = uri
        self._writer = Writer(uri, on_warning, flush_interval_s)
        self._undelivered = undelivered
        self._runs: SearchRuns | None = None
        self._trials: TrialTracking | None = None
        self._is_closed = False

    @property
    def run_id(self) -> str | None:
        """The parent run's id, also after close. Waits up to 5 seconds for it; None where the store does not answer."""
        if self._runs is None:
            return None
        if self._writer.is_answering:
            self._runs.search.is_created.wait(timeout=5.0)
        return self._runs.search.run_id

    @property
    def sent(self) -> Sent:
        """What went to MLflow so far."""
        return self._writer.sent

    def search_started(self, info: SearchInfo) -> None:
        """Start the thread and the runs. Import Ray and Optuna before: the thread imports MLflow meanwhile."""
        self._start(info, SearchRuns(info, is_live=True))

    def search_told(
        self,
        info: SearchInfo,
        summary: SearchSummary | None,
        *,
        ended_at: float | None,
        confirmations: Sequence[SearchInfo] = (),
    ) -> None:
        """Send what MLflow lacks of a search that nobody runs now, from its study.

        Args:
            info: with all trials as `restored`, and with a key.
            summary, ended_at: how it ended; None where it did not, since its driver was lost.
            confirmations: the searches that confirm it, told in the same way.
        """
        runs = SearchRuns(info, is_live=False)
        for about in confirmations:
            runs.confirm(about)
        if summary is not None:
            runs.end(summary, ended_at=ended_at or time.time())
        self._start(info, runs)

    def for_confirmation(self, info: SearchInfo) -> TrialTracking:
        """Give the observer of the runs that confirm this search; those that `info` restores are told at once."""
        assert self._runs is not None, "the search is told before its confirmation"
        runs = self._runs.confirm(info)
        for run in runs:
            self._writer.add(run)
        self._writer.wake()
        return TrialTracking(runs, self._writer)

    def trial_started(self, trial: TrialRecord) -> None:
        if self._trials is not None:
            self._trials.trial_started(trial)

    def epoch_reported(self, trial: TrialRecord, report: EpochReport) -> None:
        if self._trials is not None:
            self._trials.epoch_reported(trial, report)

    def trial_ended(self, trial: TrialRecord) -> None:
        if self._trials is not None and self._runs is not None:
            self._trials.trial_ended(trial)
            self._runs.count(trial)

    def search_ended(self, summary: SearchSummary) -> None:
        if self._runs is not None:
            self._runs.end(summary, ended_at=time.time())
            self._writer.wake()

    def add_artifact(self, path: Path) -> None:
        """Keep a file with the parent run, as it is when it is sent (seconds later). Call before close."""
        if self._runs is None:
            return
        path = Path(path).absolute()
        self._runs.search.artifacts.append(path)
        if self._undelivered is not None:
            with contextlib.suppress(OSError):
                self._undelivered.add({"kind": "artifact", "path": str(path)})
        self._writer.wake()

    def close(self, timeout_s: float | None = 30.0) -> bool:
        """Send what is left and end the thread; True if all is delivered, else on_warning has been told what is not.

        A store that is known not to answer gets one more try, so that the end of a search does not wait for it.
        """
        if self._runs is None:
            return True
        if not self._runs.search.is_ending:  # the driver raised between search_started and search_ended
            self._runs.end_as_failed()
        missing = self.deliver(0.0 if self._is_closed else timeout_s)  # who waited once does not wait again
        self._is_closed = True
        if missing:
            later = "" if self._undelivered is None else f"; to send it later: {self._undelivered.command}"
            self._writer.warn("missing", f"MLflow at {self.uri}: {missing}{later}")
        return not missing

    def deliver(self, timeout_s: float | None) -> str:
        """Send what is left and end the thread, as close does, but end no run. Returns what is missing, in words."""
        self._writer.close(timeout_s)
        runs = list(self._runs or ())
        unsettled = [run for run in runs if not run.is_settled]
        missing = ""
        if unsettled:
            epochs = sum(run.missing_points for run in unsettled if run.parent is not None)
            missing = f"{epochs} epochs were not delivered, {len(unsettled)} of {len(runs)} runs are incomplete there"
        self._note_undelivered(missing)
        if refused := sum(run.refused for run in runs):
            missing = ", ".join(filter(None, [missing, f"{refused} reports were refused"]))
        return missing

    def _start(self, info: SearchInfo, runs: SearchRuns) -> None:
        self._runs, self._trials = runs, TrialTracking(runs.trials, self._writer)
        self._take_up_undelivered(runs.search)
        for run in runs:
            self._writer.add(run)
        self._writer.start(experiment=info.setting, key=info.key)

    def _take_up_undelivered(self, search: Run) -> None:
        """Send the files that an earlier driver could not send, and say on disk that this search is under way."""
        if self._undelivered is None:
            return
        with contextlib.suppress(OSError, ValueError):  # the file only helps to find the study
            earlier = load_undelivered(self._undelivered.output, self._undelivered.study_name)
            if earlier is not None:
                self._undelivered.items += [item for item in earlier.items if item not in self._undelivered.items]
            search.artifacts.extend(self._undelivered.artifacts)
            self._undelivered.missing = "its driver was lost, or it still runs"
            self._undelivered.write()

    def _note_undelivered(self, missing: str) -> None:
        if self._undelivered is None or self._runs is None:
            return
        waiting = {str(artifact) for artifact in self._runs.search.artifacts}
        items = [item for item in self._undelivered.items if item["kind"] != "artifact" or item["path"] in waiting]
        self._undelivered.items, self._undelivered.missing = items, missing
        with contextlib.suppress(OSError):
            if missing or items:
                self._undelivered.write()
            else:
                self._undelivered.remove()
