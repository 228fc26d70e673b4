"""An MLflow run as the writer sees it: what it has still to be told, also where another driver has begun it."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Point = tuple[int, int, dict[str, float]]  # milliseconds since the Unix epoch, step, metrics
Artifact = Path | tuple[str, str]  # a file, or a name and its text


class Points(Protocol):
    """The points of a run's curves in order, each step once; it may grow while the writer reads it."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Sequence[Point]: ...


class Batch(NamedTuple):
    """What one call sends."""

    points: Sequence[Point]
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(eq=False)
class Run:
    """An MLflow run and what it has still to be told. The driver tells, the writer's thread sends.

    Attributes:
        key: finds the run again: after a lost answer to its creation and, where it is not random, after a restart.
        points: stay where they are on record; only how many of them were sent is counted here.
        first_tags: told once; a run that another driver has begun keeps its own.
        passing_tags: names of tags that hold only while a run is not taken up again ("reason").
        known_steps: steps that a continued run had when it was found, by metric.
        failures: to send it, in a row.
    """

    name: str
    key: str
    started_ms: int
    points: Points
    parent: "Run | None" = None
    first_tags: dict[str, str] = field(default_factory=dict)
    passing_tags: frozenset[str] = frozenset()
    run_id: str | None = None
    is_created: threading.Event = field(default_factory=threading.Event)
    is_creation_tried: bool = False
    is_continued: bool = False
    is_ending: bool = False
    failures: int = 0
    sent: int = 0
    refused: int = 0
    known_steps: dict[str, set[int]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: deque[Artifact] = field(default_factory=deque)
    artifact_tries: int = 0
    end: tuple[str, int] | None = None  # status, milliseconds
    _lock: threading.Lock = field(default_factory=threading.Lock)  # guards params and tags

    def tell(self, *, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None) -> None:
        with self._lock:
            self.params.update(params or {})
            self.tags.update(tags or {})

    def tell_end(self, status: str, ended_ms: int) -> None:
        self.end = (status, ended_ms)
        self.is_ending = True

    @property
    def missing_points(self) -> int:
        return len(self.points) - self.sent

    @property
    def is_settled(self) -> bool:
        is_told = not (self.params or self.tags or self.missing_points or self.artifacts or self.end)
        return self.run_id is not None and is_told

    def take(self, count: int) -> Batch:
        """Take what is told next, with at most so many points. Points count as sent only then."""
        with self._lock:
            batch = Batch(self.points[self.sent : self.sent + count], self.params, self.tags)
            self.params, self.tags = {}, {}
        return batch

    def put_back(self, batch: Batch) -> None:
        """Keep it for the next try; what was told since counts."""
        with self._lock:
            self.params, self.tags = batch.params | self.params, batch.tags | self.tags

    def begin(self) -> None:
        """The run is new."""
        with self._lock:
            self.tags = self.first_tags | self.tags

    def leave_out_what_is_in(self, found: Any) -> set[str]:
        """Keep only what the MLflow run does not hold yet.

        Returns:
            The names of its tags that no longer hold.
        """
        there = found.data.tags
        with self._lock:
            tags = {name: value for name, value in self.first_tags.items() if name not in there} | self.tags
            if self.parent is not None:
                tags["mlflow.parentRunId"] = str(self.parent.run_id)
            no_longer = {name for name in self.passing_tags if name in there and name not in tags}
            self.tags = {name: value for name, value in tags.items() if there.get(name) != value}
            self.params = {name: value for name, value in self.params.items() if name not in found.data.params}
            is_ended = self.end is not None and self.end[0] == found.info.status and not self.tags and not no_longer
        if is_ended:
            self.end = None
            if self.parent is not None:  # a trial's end, which has its number of epochs, is sent after these
                self.sent = len(self.points)
        self.is_continued = True
        return no_longer
