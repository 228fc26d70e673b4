"""A Journal file whose lines stay whole where a disk is full or a process is killed while it writes one."""

import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

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
        self._drop_partial_line()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries; all of their lines, or none that is cut off."""
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
