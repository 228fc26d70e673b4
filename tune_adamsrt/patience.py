"""Waits for a file whose folder is away for a while: a share that was unmounted, or whose server is restarted."""

import errno
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tune_adamsrt.paths import short_path

# What no waiting mends: a disk or quota that is full, a file that is too large, may not be written, or is a folder.
REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR})
SLICE_S = 0.2  # what a signal may have to wait


class OtherFileError(OSError):
    """A file that stands where another one stood."""


class Patience:
    """How often, and for how long, a failed access to one file is tried again.

    Args:
        path: the file.
        wait_s: the longest that its folder may be away.
    Attributes:
        note: tells the user one line.
    """

    FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0

    def __init__(self, path: Path, *, wait_s: float = 120.0) -> None:
        self.wait_s = wait_s
        self.note: Callable[[str], None] = _say_nothing
        self._path = path
        self._shown = short_path(path)  # now: the working directory may lie in the folder that goes away
        self._since: float | None = None  # when the first try failed; None while the folder is there
        self._pause_s = 0.0
        self._has_given_up = False

    def wait(self, error: OSError) -> None:
        """Pause before the next try.

        Raises:
            OSError: there is no use in another try, it took too long, or somebody wants the process to end. From then
                on nothing is waited for until a try succeeds.
        """
        if self._has_given_up or not is_away(error, self._path):
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since, self._pause_s = now, self.FIRST_PAUSE_S
            self.note(f"{self._shown} is away ({error.strerror}); waiting up to {self.wait_s:g} s for it")
        if now - self._since >= self.wait_s or not pause(self._pause_s):
            self._has_given_up = True
            raise OSError(error.errno, f"{error.strerror}, for {now - self._since:.0f} s", str(self._path)) from error
        self._pause_s = min(2 * self._pause_s, self.LONGEST_PAUSE_S)

    def end(self) -> None:
        """Say that a try succeeded."""
        if self._since is not None:
            self.note(f"{self._shown} is back after {time.monotonic() - self._since:.0f} s")
        self._since, self._has_given_up = None, False


def _say_nothing(line: str) -> None:
    pass


def is_away(error: OSError, path: Path) -> bool:
    """Tell whether an error comes from a folder that may come back, and not from one that refuses.

    Where a share is unmounted, the empty folder that it was mounted on often refuses everything: a refusal is one only
    where the file itself is there.
    """
    if isinstance(error, OtherFileError):
        return False
    if error.errno not in REFUSALS:
        return True
    try:
        path.stat()
    except OSError as now:
        return now.errno not in REFUSALS
    return False


def pause(seconds: float) -> bool:
    """Sleep. Returns False, and soon, where a signal to end comes meanwhile, which its own handler hears as well."""
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(signum)):
                handlers[signum] = handler

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        handlers[signal.Signals(signum)](signum, frame)

    for signum in handlers:
        signal.signal(signum, handle)
    try:
        until = time.monotonic() + seconds
        while not received and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_S))
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return not received
