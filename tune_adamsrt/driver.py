"""How the process that runs a search stands, told from outside: it runs, the search has ended, or it was lost."""

import contextlib
import fcntl
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from tune_adamsrt.formats import format_duration, one_line
from tune_adamsrt.paths import this_python
from tune_adamsrt.studies import StoredSearch

MASKED = "***"  # stands for a secret in the command; whoever asks for the status has typed it again
SILENT_S = 300.0  # a driver on another machine counts as silent after this, or after three of its slowest epochs


class Driver(StrEnum):
    """Ended: it said so. Lost: it was killed, or its machine went down. Silent: elsewhere, and overdue."""

    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"
    SILENT = "silent"


def find_driver(search: StoredSearch, *, is_locked: bool | None, host: str, now: float) -> Driver:
    """Tell whether a search still has the process that runs it.

    Args:
        is_locked: whether a process of this machine holds the study's lock; None where there is no lock file.
        host: this machine. The lock says nothing of a driver on another one; its last report must do.
        now: seconds since the Unix epoch.
    """
    if is_locked:
        return Driver.RUNNING
    if search.ended_by is not None:
        return Driver.ENDED
    if is_locked is False and search.info.tags.get("host", host) == host:
        return Driver.LOST
    slowest = max((report.seconds for trial in search.trials for report in trial.epochs), default=0.0)
    return Driver.SILENT if now - last_word_at(search) > max(SILENT_S, 3 * slowest) else Driver.RUNNING


def last_word_at(search: StoredSearch) -> float:
    """When the driver last wrote anything, in seconds since the Unix epoch; 0 where that was not recorded."""
    times = [search.started_at, search.ended_at]
    for trial in search.trials:
        times += [trial.started_at, trial.ended_at, *(report.reported_at for report in trial.epochs[-1:])]
    return max((time for time in times if time is not None), default=0.0)


def lock_is_held(lock_file: Path) -> bool | None:
    """Tell whether a process holds a `study.locked` lock; None where there is no such file to ask.

    A shared lock is tried for an instant, which leaves the file as it is.
    """
    with contextlib.suppress(OSError), lock_file.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    return None


def describe_driver(search: StoredSearch, driver: Driver, now: float) -> str:
    """How the driver stands, in words: "runs on a-host, last word 3 s ago"."""
    host = one_line(search.info.tags.get("host", "")) or "an unknown machine"
    ago = f"{format_duration(now - last_word_at(search))} ago"
    if driver is Driver.RUNNING:
        return f"runs on {host}, last word {ago}"
    if driver is Driver.LOST:
        return f"no process on {host} runs it any more: killed, or the machine went down; last word {ago}"
    if driver is Driver.SILENT:
        return f"perhaps lost: it ran on {host}, last word {ago}"
    return f"ended ({one_line(search.ended_by or '')}) {ago}"


def resume_command(search: StoredSearch, options: Sequence[str]) -> str:
    """The command that goes on with a search: the one that its driver has left, else one from what is known of it."""
    info = search.info
    command = info.tags.get("command", "")
    if command and MASKED not in command:
        return command
    known: dict[str, object] = {
        "--setting": info.setting,
        "--optimizer": info.optimizer,
        "--trials": info.trials,
        "--epochs": info.epochs,
        "--limit-train-examples": search.protocol.get("limit_train_examples"),
        "--precision": search.protocol.get("precision"),
        "--sampler": search.sampler,
        "--scheduler": info.tags.get("scheduler"),
        "--seed": search.seed,
        "--data-root": info.tags.get("data_root"),
        "--time-budget": None if info.time_budget_s is None else f"{info.time_budget_s:g}",
        "--study": info.study_name,
    }
    typed = [part for name, value in known.items() if value is not None for part in (name, str(value))]
    return shlex.join([this_python(), "-m", "tune_adamsrt.search", *typed, *options])
