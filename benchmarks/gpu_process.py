"""Runs a section of `benchmarks.gpu` in a process of its own, so that a GPU error or a hang costs one part of it.

After an illegal access every call in a process fails; a part that crashes, hangs or takes too long is therefore given
up together with its process, and another one goes on with the next part.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu_section import MARK, Record

REPOSITORY = Path(__file__).parents[1]
START_LIMIT_S = 90.0  # to import torch, from a disk that may be slow
CLEAN_UP_LIMIT_S = 15.0  # after a part, and to end
ENDED = None


class Child:
    """A process that prints records.

    Args:
        log: file that takes what it prints beside them.
    Attributes:
        give_up_at: when it is waited for no longer, by time.monotonic().
    """

    def __init__(self, command: Sequence[str], log: IO[str], environment: dict[str, str], give_up_at: float) -> None:
        self._log = log
        self.give_up_at = give_up_at
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            cwd=REPOSITORY,
            env=os.environ | environment,
            start_new_session=True,  # with all that it starts
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(ENDED)

    def records(self) -> Iterator[Record]:
        """Give its records until it has ended. Raises TimeoutError at the time to give it up."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, self.give_up_at - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if line is ENDED:
                return
            record = as_record(line)
            if record is None:
                self._log.write(line)
            else:
                yield record

    def status(self) -> int | None:
        """Give its exit status; None where it does not end."""
        try:
            return self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it and all that it started; one that hangs in the driver is left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.status()


def as_record(line: str) -> Record | None:
    """Read a line; None where it is not one of ours."""
    if not line.startswith(MARK):
        return None
    try:
        record: Any = json.loads(line.removeprefix(MARK))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def run_section(
    command_from: Callable[[int], Sequence[str]],
    take: Callable[[Record], None],
    *,
    log: IO[str],
    deadline: float,
    environment: dict[str, str] | None = None,
) -> None:
    """Run a section to its end, in as many processes as that takes.

    Args:
        command_from: gives the command that runs it from a part on, by number.
        take: is given all records, and one of kind "error" for every part that is given up.
        deadline: by time.monotonic().
    """
    first: int | None = 0
    while first is not None and time.monotonic() < deadline:
        first = _run_from(first, command_from, take, log, deadline, environment or {})


def _run_from(
    first: int,
    command_from: Callable[[int], Sequence[str]],
    take: Callable[[Record], None],
    log: IO[str],
    deadline: float,
    environment: dict[str, str],
) -> int | None:
    """Run parts in one process; give the part to go on with in another, None where there is none."""
    index, name, has_begun, is_at_work, has_ended = first, "start", False, True, False
    child = Child(command_from(first), log, environment, min(deadline, time.monotonic() + START_LIMIT_S))
    try:
        for record in child.records():
            if record["kind"] == "part":
                index, name, has_begun, is_at_work = int(record["index"]), str(record["name"]), True, True
                child.give_up_at = min(deadline, time.monotonic() + float(record["limit_s"]))
            elif record["kind"] == "done":
                is_at_work = False
                child.give_up_at = min(deadline, time.monotonic() + CLEAN_UP_LIMIT_S)
            elif record["kind"] == "end":
                has_ended, is_at_work = True, False
            take(record)
        if is_at_work:
            take({"kind": "error", "part": name, "text": f"its process died (status {child.status()}); see the log"})
    except TimeoutError:
        if is_at_work:
            is_over = child.give_up_at >= deadline
            why = "the time for everything was over" if is_over else "it took longer than its limit"
            take({"kind": "error", "part": name, "text": why})
    finally:
        child.kill()
        log.flush()
    return index + 1 if has_begun and not has_ended else None
