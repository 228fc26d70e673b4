"""A Journal file that stays whole where a disk is full, its folder is away, or a process is killed while it writes."""

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from tune_adamsrt.patience import OtherFileError, Patience

ENTRY = b'{"op_code":'  # how each of Optuna's entries begins
TAIL_BYTES = 200  # enough to tell one journal's last entry from any other's


class OwnLock(JournalFileSymlinkLock):
    """Optuna's lock, which is still known as ours where it was left behind because its folder went away."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._mine: tuple[int, int] | None = None

    def acquire(self) -> bool:
        """Wait for the lock; one that nobody releases is broken after 30 s. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if self._mine is not None and self._look() == self._mine:
                return True
        super().acquire()
        self._mine = self._look()
        return True

    def release(self) -> None:
        """Release the lock, or leave it behind where its folder is away."""
        with contextlib.suppress(OSError):
            if self._mine is not None and self._look() != self._mine:  # another process has broken it meanwhile
                self._mine = None
                return
        with contextlib.suppress(RuntimeError):
            super().release()
            self._mine = None

    def _look(self) -> tuple[int, int]:
        found = os.lstat(self._lock_file)
        return found.st_ino, found.st_mtime_ns


class WholeLines(JournalFileBackend):
    """Optuna's Journal file, which holds each entry once and whole, whatever happens to its folder meanwhile.

    Optuna would write the next entry behind what a failed write left of its last line, and could never read the file
    again; it would begin a new file where the old one is gone. Here a folder that is away is waited for.

    Args:
        path: the file; made where it is missing, but only now.
        wait_s: the longest that its folder may be away.
    Raises:
        OSError: it cannot be written, or (OtherFileError) is not the one that was written before.
    """

    def __init__(self, path: str, *, wait_s: float = 120.0) -> None:
        self._path = Path(path).absolute()  # Optuna waits for ever where a lock of a relative path is left behind
        super().__init__(str(self._path), OwnLock(str(self._path)))
        self.patience = Patience(self._path, wait_s=wait_s)
        self._held: list[dict[str, Any]] | None = None
        self._tried_at: int | None = None  # where a write that failed began
        self._end, self._tail = 0, b""  # up to where the file is known, and what stands before
        self._drop_partial_line()
        with self._path.open("rb") as file:
            self._remember(file, _whole_bytes(file))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write the entries of this block at once at its end: a disk takes its time for each write.

        What is told in the block can be read after it only. One thread at a time; blocks do not nest.
        """
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self.append_logs(held)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Give the entries from this one on. Raises OSError."""
        number = log_number_from
        while True:
            try:
                for entry in super().read_logs(number):
                    yield entry
                    number += 1
                self.patience.end()
                return
            except OSError as error:
                self.patience.wait(error)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries; all of them, or none."""
        if self._held is not None:
            logs = [*self._held, *logs]
            self._held = []
            if not any(_is_answered(entry) for entry in logs):
                self._held = logs
                return
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        while True:
            try:
                with get_lock_file(self._lock):
                    self._put(lines)
                self.patience.end()
                return
            except OSError as error:
                try:
                    self.patience.wait(error)
                except BaseException:
                    self._take_back(lines)
                    raise

    def _put(self, lines: bytes) -> None:
        """Write lines behind what is there, unless they have arrived in an earlier try."""
        with self._path.open("r+b", buffering=0) as file:
            if _before(file, self._end, len(self._tail)) != self._tail:
                size, path = file.seek(0, os.SEEK_END), self._path
                raise OtherFileError(
                    f"{path} must be the journal that was written before, got another one of {size} bytes where "
                    f"{self._end} were known; bring that one back, and go on with --resume"
                )
            if self._tried_at is not None and self._has_arrived(file, lines):
                self._tried_at = None
                return
            _cut(file)
        with open(self._path, "r+b", buffering=0, opener=_appending) as file:
            self._tried_at = file.seek(0, os.SEEK_END)
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
            self._remember(file, self._tried_at + len(lines))
        self._tried_at = None

    def _has_arrived(self, file: FileIO, lines: bytes) -> bool:
        """Tell whether an earlier try wrote these lines; what it wrote of them otherwise is taken away."""
        assert self._tried_at is not None
        file.seek(self._tried_at)
        found = file.read(len(lines) + 1)
        if lines.startswith(found):
            # Written anew even where all is there: what a disk refused to keep may still seem to be.
            file.truncate(self._tried_at)
            return False
        return found.startswith(lines)  # and others have written behind them

    def _take_back(self, lines: bytes) -> None:
        """Leave nothing of a write that failed, where its folder is there."""
        if self._tried_at is not None:
            with contextlib.suppress(OSError), get_lock_file(self._lock), self._path.open("r+b", buffering=0) as file:
                self._has_arrived(file, lines)
            self._tried_at = None

    def _remember(self, file: IO[bytes], end: int) -> None:
        self._tail = _before(file, end, min(end, TAIL_BYTES))
        self._end = end

    def _drop_partial_line(self) -> None:
        with self._path.open("rb") as file:
            if _whole_bytes(file) == file.seek(0, os.SEEK_END):
                return
        # what looks cut off may be in the making by another process
        with get_lock_file(self._lock), self._path.open("r+b", buffering=0) as file:
            _cut(file)


class Journal(JournalStorage):
    """Optuna's storage in a Journal file of whole lines, written to by one driver. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._file = WholeLines(path)
        super().__init__(self._file)

    def report_waits(self, note: Callable[[str], None]) -> None:
        """Have the user told, a line at a time, that the file's folder is away, and that it is back."""
        self._file.patience.note = note

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Write what is told in this block at once; see `WholeLines.together`."""
        return self._file.together()


def _is_answered(entry: dict[str, Any]) -> bool:
    """Tell whether Optuna reads right after writing this entry what became of it, such as a new trial's number."""
    code = entry["op_code"]
    if code == JournalOperation.SET_TRIAL_STATE_VALUES:
        return bool(entry["state"] == TrialState.RUNNING)
    return code in (JournalOperation.CREATE_STUDY, JournalOperation.CREATE_TRIAL)


def _cut(file: FileIO) -> None:
    """Drop the part of a line that a journal ends with; any other file stays as it is."""
    whole = _whole_bytes(file)
    if whole < file.seek(0, os.SEEK_END):
        file.seek(0)
        if ENTRY.startswith(file.read(len(ENTRY))):
            file.truncate(whole)


def _whole_bytes(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        newline = _before(file, end, end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _before(file: IO[bytes], end: int, count: int) -> bytes:
    """The bytes that stand before a place; fewer where the file ends sooner."""
    file.seek(end - count)
    return file.read(count)


def _appending(path: str, flags: int) -> int:
    """Open for writing at the end; unlike Python's own mode it makes no new file."""
    return os.open(path, flags | os.O_APPEND)
