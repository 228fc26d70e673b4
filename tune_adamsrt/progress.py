"""What is known of a search while it runs: its trials, its speed, and estimates of the time that is left."""

import bisect
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from tune_adamsrt.records import SearchInfo, Spread, TrialRecord, TrialState, spread_of


@dataclass
class Progress:
    """A search as far as it got; times are readings of one clock, in seconds.

    Attributes:
        trials: every trial heard of, by number, restored ones included.
        ended_before, epochs_before: how many of the restored trials had ended, and the epoch that each was at.
        report_times: when the last reports came; the window over which speed is measured.
        counted_from: when the first epoch of that window began.
    """

    info: SearchInfo
    started: float
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    report_times: deque[float] = field(default_factory=deque)
    counted_from: float = math.inf
    ended_before: int = field(init=False)
    epochs_before: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        restored = self.info.restored
        self.trials = {trial.number: trial for trial in restored} | self.trials
        self.ended_before = sum(trial.has_ended for trial in restored)
        self.epochs_before = {trial.number: trial.epoch for trial in restored}

    def add_report(self, now: float, seconds: float) -> None:
        """Note that an epoch that took `seconds` has just ended."""
        if len(self.report_times) < max(20, 8 * self.info.max_concurrent):
            self.counted_from = min(self.counted_from, now - seconds)  # starting up is not counted: it happens once
        else:
            self.counted_from = self.report_times.popleft()
        self.report_times.append(now)

    def in_state(self, *states: TrialState) -> list[TrialRecord]:
        return [trial for trial in self.trials.values() if trial.state in states]

    @property
    def ended(self) -> list[TrialRecord]:
        return self.in_state(TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED)

    @property
    def epochs_spent(self) -> int:
        return sum(trial.epochs_spent for trial in self.trials.values())

    @property
    def best(self) -> TrialRecord | None:
        """The best candidate; None until a trial has reached the full budget."""
        return _highest(trial for trial in self.in_state(TrialState.COMPLETE) if trial.epoch >= self.info.epochs)

    @property
    def standings(self) -> list[tuple[int, Spread]]:
        """Of a confirmation: the values of the complete runs by the search's trial, the highest mean first."""
        values: dict[int, list[float]] = {}
        for trial in self.in_state(TrialState.COMPLETE):
            if trial.confirms is not None and trial.value is not None:
                values.setdefault(trial.confirms, []).append(trial.value)
        spreads = [(number, spread_of(of_one)) for number, of_one in values.items()]
        return sorted(spreads, key=lambda standing: (-standing[1].mean, standing[0]))

    @property
    def leader(self) -> TrialRecord | None:
        """The best of the running trials, whatever epoch each is at."""
        return _highest(self.in_state(TrialState.RUNNING))

    def elapsed(self, now: float) -> float:
        return now - self.started

    def epochs_per_second(self, now: float) -> float | None:
        """Speed over the recent past; it falls when the next report is overdue. None before the first report."""
        if not self.report_times:
            return None
        count, last = len(self.report_times), self.report_times[-1]
        due = (last - self.counted_from) * (count + 1) / count
        seconds = max(last - self.counted_from, (now - self.counted_from) * count / (count + 1) if now > due else 0.0)
        return count / seconds if seconds > 0 else None

    def seconds_left(self, now: float) -> float | None:
        """An estimate within the time budget; None until a trial that spent epochs has ended.

        A trial to come is expected to spend what ended trials spent on average; a running one what those spent that
        went further than it has (else the full budget). Epochs of one trial follow each other, so the slowest running
        trial is a lower bound.
        """
        spent = sorted(trial.epochs_spent for trial in self.ended)
        sums = [0, *itertools.accumulate(spent)]
        speed = self.epochs_per_second(now)
        if not sum(spent) or speed is None:
            return None
        epochs = max(0, self.info.trials - len(self.trials)) * fmean(spent)
        if self.info.is_bound_by_epochs:
            epochs = min(epochs, max(0, self.info.max_epochs_spent - self.epochs_spent))
        slowest = 0.0
        for trial in self.in_state(TrialState.RUNNING):  # a paused one may never go on
            shorter = bisect.bisect_right(spent, trial.epoch)
            further = len(spent) - shorter
            expected = (sums[-1] - sums[shorter]) / further if further else self.info.epochs
            to_do = max(0.0, expected - trial.epoch)
            epochs += to_do
            if trial.epoch > self.epochs_before.get(trial.number, 0):  # else not measured on this machine today
                slowest = max(slowest, to_do * trial.epochs[-1].seconds)
        seconds = max(epochs / speed, slowest)
        budget_left = self.budget_left(now)
        return seconds if budget_left is None else min(seconds, budget_left)

    def campaign_seconds_left(self, now: float) -> float | None:
        """An estimate for all that the campaign has still to do, if it goes on at this speed; None where unknown."""
        own, speed = self.seconds_left(now), self.epochs_per_second(now)
        return None if own is None or speed is None else own + self.info.epochs_after / speed

    def budget_left(self, now: float) -> float | None:
        """Seconds until the time budget ends; None without one."""
        if self.info.time_budget_s is None:
            return None
        return max(0.0, self.info.time_budget_s - self.elapsed(now))


def _highest(trials: Any) -> TrialRecord | None:
    finite = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    return max(finite, key=lambda trial: (trial.value, -trial.number), default=None)
