"""A section of `benchmarks.gpu`: parts that are run one after the other, and what they say while they run.

What a part says goes to standard output at once, one line of JSON each, so that whoever reads it loses nothing that was
measured when the process is killed or dies.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MARK = "@@ "  # begins a line of ours: libraries print as well
DIED = 70  # exit status of a process whose GPU takes nothing any more
LATE = 0.8  # of its limit, when a part should begin nothing new

Record = dict[str, Any]


def print_record(record: Record) -> None:
    print(MARK + json.dumps(record), flush=True)


@dataclass
class Bench:
    """What a part is run with.

    Args:
        device: "cuda", or "cpu" for tests.
        small: whether little is computed, only to see that everything runs.
        data_root: where CIFAR-10 is; None for images of our own.
        say: takes the records.
    """

    device: str
    small: bool = False
    data_root: str | None = None
    say: Callable[[Record], None] = print_record
    late_at: float = field(default=float("inf"), init=False)

    @property
    def is_late(self) -> bool:
        """Whether nothing new should begin."""
        return time.monotonic() > self.late_at

    def table(self, title: str, *columns: str) -> None:
        """Begin a table, or go on with the one of this title; `row` adds to it."""
        self.say({"kind": "table", "title": title, "columns": columns})

    def row(self, *cells: str, **raw: Any) -> None:
        """Give a row of the table, and the numbers behind it."""
        self.say({"kind": "row", "cells": cells, "raw": raw})

    def note(self, text: str, **raw: Any) -> None:
        self.say({"kind": "note", "text": text, "raw": raw})

    def figure(self, aim: str, values: Sequence[float]) -> None:
        """Give the values that an aim is about."""
        self.say({"kind": "figure", "key": aim, "values": list(values)})

    def check(self, key: str, holds: bool, seen: str) -> None:
        """Say whether what must hold does."""
        self.say({"kind": "check", "key": key, "holds": bool(holds), "seen": seen})


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Args:
        limit_s: after which it is killed.
    """

    name: str
    run: Callable[[Bench], None]
    limit_s: float = 60.0


def run_parts(parts: Sequence[Part], bench: Bench, *, first: int = 0, clean_up: Callable[[], None]) -> int:
    """Run the parts from the first on; one that raises costs what it had not said yet.

    Args:
        clean_up: is called after each part. Where it raises the process is of no use any more.
    Returns:
        The exit status: 0, or DIED where the parts after the last one named are left to another process.
    """
    for index, part in enumerate(parts[first:], start=first):
        bench.late_at = time.monotonic() + LATE * part.limit_s
        bench.say({"kind": "part", "index": index, "name": part.name, "limit_s": part.limit_s})
        start_s = time.monotonic()
        try:
            part.run(bench)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            lines = str(error).strip().splitlines() or [""]
            bench.say({"kind": "error", "part": part.name, "text": f"{type(error).__name__}: {lines[0]}"[:300]})
        bench.say({"kind": "done", "part": part.name, "seconds": time.monotonic() - start_s})
        try:
            clean_up()
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return DIED
    bench.say({"kind": "end"})
    return 0
