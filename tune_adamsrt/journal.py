"""A Journal file whose lines stay whole where a disk is full or a process is killed while it writes one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

ENTRY = b'{"op_code":'  # how each of Optuna's entries begins


class WholeLines(JournalFileBackend):
    """Optuna's Journal file, without what a failed write left of its last line.

    Optuna would write the next entry behind it, and could never read the file again.

    Args:
        path: the file; made where it is missing.
    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = Path(path)
        self._held: list[dict[str, Any]] | None = None
        self._drop_partial_line()

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

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries; all of their lines, or none that is cut off."""
        if self._held is not None:
            logs = [*self._held, *logs]
            self._held = []
            if not any(_is_answered(entry) for entry in logs):
                self._held = logs
                return
        try:
            super().append_logs(logs)
        except OSError:
            self._drop_partial_line()
            raise

    def _drop_partial_line(self) -> None:
        if _whole_bytes(self._path) == self._path.stat().st_size:
            return
        lock = JournalFileSymlinkLock(str(self._path))  # what looks cut off may be in the making by another process
        lock.acquire()
        try:
            whole = _whole_bytes(self._path)
            with self._path.open("rb") as file:
                is_journal = ENTRY.startswith(file.read(len(ENTRY)))
            if is_journal and whole < self._path.stat().st_size:  # any other file stays as it is
                os.truncate(self._path, whole)
        finally:
            lock.release()


class Journal(JournalStorage):
    """Optuna's storage in a Journal file of whole lines, written to by one driver. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._file = WholeLines(path)
        super().__init__(self._file)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Write what is told in this block at once; see `WholeLines.together`."""
        return self._file.together()


def _is_answered(entry: dict[str, Any]) -> bool:
    """Tell whether Optuna reads right after writing this entry what became of it, such as a new trial's number."""
    code = entry["op_code"]
    if code == JournalOperation.SET_TRIAL_STATE_VALUES:
        return bool(entry["state"] == TrialState.RUNNING)
    return code in (JournalOperation.CREATE_STUDY, JournalOperation.CREATE_TRIAL)


def _whole_bytes(path: Path) -> int:
    """Where the last whole line ends."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
