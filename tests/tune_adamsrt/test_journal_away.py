"""The journal's folder goes away while a search writes: nothing is lost, doubled or cut off; refusals end at once."""

import errno
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from tune_adamsrt import patience
from tune_adamsrt.journal import Journal, WholeLines
from tune_adamsrt.patience import OtherFileError, Patience, is_away


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def path(folder):
    return folder / "optuna.journal"


@pytest.fixture
def away(folder):
    """Takes the folder away for a while."""
    threads = []

    def take_away(seconds):
        elsewhere = folder.rename(folder.with_name("elsewhere"))
        threads.append(threading.Timer(seconds, lambda: elsewhere.rename(folder)))
        threads[-1].start()

    yield take_away
    for thread in threads:
        thread.join()


def entry(number):
    return {"op_code": 0, "number": number}


def written(path):
    return [json.loads(line)["number"] for line in path.read_text().splitlines()]


def test_a_search_goes_on_when_the_folder_is_back(path, away):
    told = []
    storage = Journal(str(path))
    storage.report_waits(told.append)
    study = optuna.create_study(study_name="s", storage=storage)
    away(0.3)
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    away(0.2)
    with storage.together():
        study.tell(trial, 0.5)
    away(0.2)
    assert study.best_value == 0.5  # a read alone
    said = [re.sub(r"\d s$", "N s", line.partition("optuna.journal ")[2]) for line in told]
    assert said == ["is away (No such file or directory); waiting up to 120 s for it", "is back after N s"] * 3
    [again] = optuna.load_study(study_name="s", storage=JournalStorage(WholeLines(str(path)))).get_trials()
    assert (again.params, again.value) == (trial.params, 0.5)
    assert [file.name for file in path.parent.iterdir()] == ["optuna.journal"], "no lock is left"


class Failing(WholeLines):
    """Whose disk fails in the midst of a write, once, after so many bytes have arrived; then others write."""

    def fail(self, arrived, then=b""):
        self._arrived, self._then = arrived, then

    def _put(self, lines):
        if (arrived := self.__dict__.pop("_arrived", None)) is not None:
            self._tried_at = self._path.stat().st_size
            with self._path.open("ab") as file:
                file.write(lines[:arrived] + self._then)
            raise OSError(errno.EIO, "Input/output error")
        super()._put(lines)


@pytest.mark.parametrize("arrived", [0, 5, 25, 30, 10_000])  # nothing, part of a line, a line, and a part, all
def test_a_write_that_failed_in_its_midst_is_there_once(path, arrived):
    journal = Failing(str(path))
    journal.append_logs([entry(0)])
    journal.fail(arrived)
    journal.append_logs([entry(1), entry(2)])
    journal.append_logs([entry(3)])
    assert written(path) == [0, 1, 2, 3]
    assert [found["number"] for found in journal.read_logs(1)] == [1, 2, 3]


@pytest.mark.parametrize("arrived", [0, 10_000])
def test_what_others_wrote_meanwhile_stays(path, arrived):
    journal = Failing(str(path))
    journal.fail(arrived, then=b'{"op_code":0,"number":9}\n')
    journal.append_logs([entry(1)])
    assert sorted(written(path)) == [1, 9]


@pytest.mark.parametrize("content", [None, "", '{"op_code":0,"number":9}\n' * 99], ids=["gone", "empty", "another"])
def test_another_folder_in_its_place_is_not_written_to(path, content):
    journal = WholeLines(str(path), wait_s=0.3)
    journal.append_logs([entry(0)])
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    with pytest.raises(OSError) as raised:
        journal.append_logs([entry(1)])
    if content is None:
        assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, str(path)) and not path.exists()
        assert "No such file or directory, for 0 s" in str(raised.value)
    else:
        assert isinstance(raised.value, OtherFileError) and path.read_text() == content
        assert f"got another one of {len(content)} bytes where 25 were known" in str(raised.value)
    assert [file.name for file in path.parent.iterdir()] == ([] if content is None else ["optuna.journal"])


def test_it_is_waited_for_once_and_again_after_it_was_back(path, away):
    journal = WholeLines(str(path), wait_s=0.3)
    elsewhere = path.parent.rename(path.parent.with_name("elsewhere"))
    for least, most in ((0.3, 5.0), (0.0, 0.2)):
        started = time.monotonic()
        with pytest.raises(FileNotFoundError):
            journal.append_logs([entry(0)])
        assert least <= time.monotonic() - started < most
    elsewhere.rename(path.parent)
    journal.append_logs([entry(1)])
    away(0.15)
    journal.append_logs([entry(2)])
    assert written(path) == [1, 2]


def test_a_lock_that_was_left_behind_is_ours_or_broken(path, monkeypatch):
    """Of this process, whose folder went while it held the lock: gone on with. Of a dead one: waited for, then broken.

    The path is relative, where Optuna's own lock would never be broken.
    """
    monkeypatch.chdir(path.parent)
    journal = WholeLines("optuna.journal")
    journal._lock.acquire()
    started = time.monotonic()
    journal.append_logs([entry(1)])
    assert time.monotonic() - started < 1 and not os.path.lexists(f"{path}.lock")
    Path(f"{path}.lock").symlink_to(path)
    journal._lock.grace_period = 0.2
    journal.append_logs([entry(2)])
    assert written(path) == [1, 2] and not os.path.lexists(f"{path}.lock")


def test_the_working_directory_may_be_away_as_well(path, monkeypatch):
    told = []
    monkeypatch.chdir(path.parent)
    waits = Patience(path)
    waits.note = told.append
    path.parent.rmdir()
    waits.wait(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    waits.end()
    assert [line.split()[:3] for line in told] == [["optuna.journal", "is", word] for word in ("away", "back")]


@pytest.mark.parametrize(
    "code", [errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT]
)
def test_what_may_come_back(path, code):
    assert is_away(OSError(code, os.strerror(code)), path)


@pytest.mark.parametrize("code", sorted(patience.REFUSALS))
def test_a_refusal_is_one_where_the_file_is_there(path, code):
    """An unmounted share leaves an empty folder, often root's own, or on a file system that is read only."""
    assert is_away(OSError(code, os.strerror(code)), path)
    path.touch()
    assert not is_away(OSError(code, os.strerror(code)), path)


def test_ctrl_c_ends_the_wait_and_reaches_its_handler(path):
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        waits = Patience(path)
        with pytest.raises(FileNotFoundError):
            while True:
                waits.wait(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1] and time.monotonic() - started < 3
