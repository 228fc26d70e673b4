"""A search seen from another terminal: how its driver stands, and what is shown of it."""

import dataclasses
import os
import platform
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from search_records import make_info, make_report

from tune_adamsrt.driver import SILENT_S, Driver, find_driver, lock_is_held, resume_command
from tune_adamsrt.records import TrialState
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.standing import build_progress
from tune_adamsrt.status import main
from tune_adamsrt.storage import open_storage
from tune_adamsrt.studies import StoredSearch, load_search
from tune_adamsrt.study import ListedRun, Study

NAME = "resnet20-digits-adamsrt-20260101-000000"
ROOT = Path(__file__).parents[2]
PROTOCOL = {"epochs": 3, "limit_train_examples": None}


def open_study(storage, name=NAME):
    space = build_search_space(load_setting("resnet20-digits"), "adamsrt")
    return Study(name, storage=storage, space=space, sampler="random", seed=7, protocol=PROTOCOL)


def info_of(study, **changes):
    tags = {"sampler": "random", "scheduler": "asha", "host": "here"}
    values = {"study_name": study.name, "trials": 4, "epochs": 3, "max_epochs_spent": 12, "tags": tags}
    return make_info(**(values | changes))


def train(study, *values, complete=True):
    trial = study.ask()
    for epoch, value in enumerate(values, start=1):
        study.report(trial.number, make_report(epoch, value))
    if len(values) == study.epochs:
        study.tell_complete(trial.number)
    elif complete:
        study.tell_stopped(trial.number, "rung 1")
    return trial


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "optuna.journal"))


@pytest.fixture
def study(storage):
    """A search with a candidate, a stopped trial and one at its first epoch; its driver has said that it runs."""
    study = open_study(storage)
    study.note_start(info_of(study))
    train(study, 0.5, 0.6, 0.8)
    train(study, 0.4)
    train(study, 0.7, complete=False)
    return study


def status(tmp_path, *options):
    return main(["--output", str(tmp_path), *options])


class TestDriver:
    def search(self, study, storage) -> StoredSearch:
        return load_search(storage, study.name)

    def test_runs_while_its_lock_is_held_and_is_lost_when_it_is_free(self, study, storage):
        search = self.search(study, storage)
        assert find_driver(search, is_locked=True, host="here", now=1e12) is Driver.RUNNING
        assert find_driver(search, is_locked=False, host="here", now=time.time()) is Driver.LOST

    @pytest.mark.parametrize("is_locked", [False, None])
    def test_on_another_machine_is_silent_when_its_report_is_overdue(self, study, storage, is_locked):
        search, now = self.search(study, storage), time.time()
        assert find_driver(search, is_locked=is_locked, host="there", now=now + SILENT_S - 5) is Driver.RUNNING
        assert find_driver(search, is_locked=is_locked, host="there", now=now + SILENT_S + 5) is Driver.SILENT

    def test_on_another_machine_may_take_long_over_an_epoch(self, study, storage):
        study.report(2, make_report(2, 0.8, seconds=1000.0))
        search = self.search(study, storage)
        assert find_driver(search, is_locked=None, host="there", now=time.time() + 2900) is Driver.RUNNING
        assert find_driver(search, is_locked=None, host="there", now=time.time() + 3100) is Driver.SILENT

    def test_has_ended_once_it_said_so(self, study, storage):
        study.note_end(info_of(study), "time budget")
        assert find_driver(self.search(study, storage), is_locked=False, host="here", now=1e12) is Driver.ENDED

    def test_the_lock_is_asked_without_taking_it(self, tmp_path):
        path = tmp_path / ".study.lock"
        assert lock_is_held(path) is None and not path.exists()
        with FileLock(path, timeout=0):
            assert lock_is_held(path) is True
        assert lock_is_held(path) is False
        with FileLock(path, timeout=0):  # free for the next driver
            pass


class TestProgress:
    def test_is_what_the_driver_knows(self, study, storage):
        progress = build_progress(load_search(storage, NAME), Driver.RUNNING)
        assert (len(progress.ended), progress.epochs_spent, progress.ended_before) == (2, 5, 0)
        assert progress.best is not None and progress.best.value == 0.8
        assert progress.seconds_left(time.time()) is not None
        assert not progress.info.restored

    def test_of_a_resumed_search_leaves_out_what_was_done_before(self, study, storage):
        time.sleep(0.01)
        resumed = open_study(storage)
        resumed.note_start(info_of(resumed))
        progress = build_progress(load_search(storage, NAME), Driver.RUNNING)
        assert (progress.ended_before, progress.epochs_before) == (2, {0: 3, 1: 1, 2: 1})
        assert progress.epochs_per_second(time.time()) is None
        resumed.report(resumed.ask().number, make_report(2, 0.75))
        progress = build_progress(load_search(storage, NAME), Driver.RUNNING)
        assert (progress.ended_before, progress.epochs_before[2], progress.trials[2].epoch) == (2, 1, 2)
        assert progress.epochs_per_second(time.time()) == pytest.approx(1 / 2.0, rel=0.05)

    def test_without_a_driver_nothing_runs(self, study, storage):
        progress = build_progress(load_search(storage, NAME), Driver.LOST)
        assert [trial.number for trial in progress.in_state(TrialState.PAUSED)] == [2]
        assert not progress.in_state(TrialState.RUNNING)

    def test_with_promotion_the_trials_at_a_rung_wait_but_for_those_heard_of_last(self, storage):
        study = open_study(storage)
        tags = {"scheduler": "promotion", "rungs": "1, 2", "host": "here"}
        study.note_start(info_of(study, max_concurrent=2, tags=tags))
        for _ in range(3):
            train(study, 0.5, complete=False)  # three at the first rung, the last of them still there for a moment
        train(study, complete=False)
        progress = build_progress(load_search(storage, NAME), Driver.RUNNING)
        assert [trial.number for trial in progress.in_state(TrialState.PAUSED)] == [0, 1]
        assert [trial.number for trial in progress.in_state(TrialState.RUNNING)] == [2, 3]


class TestResumeCommand:
    def test_asks_for_the_same_search(self, study, storage):
        command = resume_command(load_search(storage, NAME), ["--output", "a folder"])
        for part in ("--seed 7", "--sampler random", "--epochs 3", f"--study {NAME}", "--output 'a folder'"):
            assert part in command
        assert "--limit-train-examples" not in command and "--time-budget" not in command

    def test_is_the_one_that_the_driver_has_left(self, study, storage):
        study.note_start(info_of(study, tags={"command": "python -m ..."}))
        assert resume_command(load_search(storage, NAME), []) == "python -m ..."

    def test_holds_what_was_typed_now_where_the_one_left_hides_a_secret(self, study, storage):
        study.note_start(info_of(study, tags={"command": "... --study-storage postgresql://***@host/db"}))
        options = ["--study-storage", "postgresql://me:pw@host/db"]
        assert resume_command(load_search(storage, NAME), options).endswith(" ".join(options))


class TestCommand:
    def test_shows_the_search_that_started_last_in_plain_lines(self, study, storage, tmp_path, capsys):
        older = open_study(storage, "z-older")
        older.note_start(info_of(older))
        study.note_start(info_of(study))
        with FileLock(tmp_path / f".{NAME}.lock"):
            assert status(tmp_path) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out and out.isascii()
        assert "trials  2 of 4: 1 complete, 1 running, 1 stopped, 0 failed" in out
        assert "epochs  5 of at most 12" in out
        assert "best    80.00 %  trial 0  lr=" in out
        assert "    2    1/3   70.00 %" in out
        assert f"study   {NAME}\ndriver  runs on here, last word" in out
        assert "to go on" not in out

    def test_shows_what_an_ended_search_came_to_and_how_to_go_on(self, study, tmp_path, capsys):
        study.note_end(info_of(study), "interrupted")
        assert status(tmp_path, "--study", NAME) == 0
        out = capsys.readouterr().out
        assert out.startswith("resnet20-digits/adamsrt: interrupted, after 0 s\n")
        assert "3 of 4: 1 complete, 1 paused, 1 stopped, 0 failed" in out
        assert "best of 1 trial at the full budget of 3 epochs" in out
        assert "to go on" in out

    def test_a_search_that_is_done_has_nothing_to_go_on_with(self, study, tmp_path, capsys):
        study.tell_failed(2, "diverged")
        train(study, 0.1)
        study.note_end(info_of(study), "all trials done")
        assert status(tmp_path) == 0
        assert "to go on" not in capsys.readouterr().out

    def test_reads_a_journal_whose_last_line_is_being_written(self, study, tmp_path, capsys):
        journal = tmp_path / "optuna.journal"
        whole = journal.read_bytes()
        journal.write_bytes(whole + whole.splitlines()[-1][:20])
        assert status(tmp_path) == 0
        assert "epochs  5 of at most 12" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--study", "resnet"], "unknown study 'resnet'"),
            (["--output", "/no/such"], "must exist, got /no/such/optuna.journal"),
            (["--study-storage", "sqlite:////no/such/study.db"], "must answer"),
        ],
    )
    def test_a_mistake_is_one_line(self, study, tmp_path, capsys, options, expected):
        assert status(tmp_path, *options) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1

    def test_a_storage_without_a_search_is_one_line(self, storage, tmp_path, capsys):
        assert status(tmp_path) == 2
        assert "must hold a search, got none" in capsys.readouterr().err


class TestConfirmation:
    """The best of a search are trained again in a study of their own, under the search's lock."""

    @pytest.fixture
    def confirmation(self, study, storage):
        study.tell_failed(2, "diverged")
        train(study, 0.1)
        info = info_of(study)
        study.note_end(info, "all trials done")
        runs = [ListedRun(study.trials[0].hyper_parameters, seed=seed, origin="again", confirms=0) for seed in (5, 6)]
        space = build_search_space(load_setting("resnet20-digits"), "adamsrt")
        confirmation = Study(
            f"{NAME}.2-seeds.confirm", storage=storage, space=space, sampler="random", seed=7, protocol=PROTOCOL,
            listed=runs, confirms=study,
        )  # fmt: skip
        about = dataclasses.replace(
            info, study_name=confirmation.name, trials=2, max_epochs_spent=6, role="confirmation"
        )
        confirmation.note_start(about)
        train(confirmation, 0.7, 0.7, 0.75)
        return confirmation, about

    def test_is_shown_while_it_runs(self, confirmation, tmp_path, capsys):
        with FileLock(tmp_path / f".{NAME}.lock"):
            assert status(tmp_path) == 0
        out = capsys.readouterr().out
        assert "confirming on fresh seeds" in out
        assert "runs    1 of 2: 1 complete" in out and "means   trial 0 75.00 %" in out
        assert f"study   {NAME}\ndriver  runs on here" in out

    def test_that_was_interrupted_can_be_gone_on_with(self, confirmation, tmp_path, capsys):
        confirmation[0].note_end(confirmation[1], "interrupted")
        assert status(tmp_path, "--study", confirmation[0].name) == 0
        out = capsys.readouterr().out
        assert out.startswith("resnet20-digits/adamsrt: interrupted") and f"--study {NAME} --output" in out

    def test_is_part_of_what_a_search_came_to(self, confirmation, tmp_path, capsys):
        confirmation, about = confirmation
        train(confirmation, 0.7, 0.7, 0.77)
        confirmation.note_test(0, [0.71, 0.73])
        confirmation.note_end(about, "all trials done")
        assert status(tmp_path) == 0
        out = capsys.readouterr().out
        assert out.startswith("resnet20-digits/adamsrt: all trials done")
        assert "76.00 % +- 1.41" in out and "72.00 % +- 1.41" in out and "to go on" not in out


DRIVER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_watch_on_a_terminal_ends_when_the_driver_is_killed(study, tmp_path):
    """A real process that holds the study, a real terminal, kill -9."""
    study.note_start(info_of(study, tags={"host": platform.node()}))
    lock_file = tmp_path / f".{NAME}.lock"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(lock_file)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
    ours, theirs = pty.openpty()
    watch = subprocess.Popen(
        [sys.executable, "-m", "tune_adamsrt.status", "--watch", "--output", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "60", "LINES": "20", "NO_COLOR": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        shown = read_until(ours, "Ctrl-C leaves")
        assert "5 of at most 12" in shown
        driver.kill()
        driver.wait()
        shown = read_until(ours, "to go on")
        assert "no process on" in shown and "killed" in shown
        assert watch.wait(timeout=30) == 0
    finally:
        driver.kill()
        driver.communicate()
        watch.kill()
        watch.wait()
        os.close(ours)


def read_until(terminal, text, timeout_s=60.0):
    shown, deadline = "", time.monotonic() + timeout_s
    while text not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536).decode()
    return shown
