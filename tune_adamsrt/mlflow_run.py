"""An MLflow run as the writer sees it: what it has still to be told, also where another driver has begun it."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Report = tuple[int, int, dict[str, float]]  # milliseconds since the Unix epoch, step, metrics
Artifact = Path | tuple[str, str]  # a file, or a name and its text


@dataclass(eq=False)
class Run:
    """An MLflow run and what it has still to be told.

    Attributes:
        key: finds the run again: after a lost answer to its creation and, where it is not random, after a restart.
        first_tags: told once; a run that another driver has begun keeps its own.
        passing_tags: names of tags that hold only while a run is not taken up again ("reason").
        earlier: reports of an earlier driver, which may not have got to send them; in order, each step once.
        known_steps: steps that a continued run had when it was found, by metric.
    """

    name: str
    key: str
    started_ms: int
    parent: "Run | None" = None
    first_tags: dict[str, str] = field(default_factory=dict)
    passing_tags: frozenset[str] = frozenset()
    earlier: Sequence[Report] = ()
    run_id: str | None = None
    is_created: threading.Event = field(default_factory=threading.Event)
    is_creation_tried: bool = False
    is_continued: bool = False
    is_ending: bool = False
    last_step: int = 0
    known_steps: dict[str, set[int]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    reports: deque[Report] = field(default_factory=deque)
    artifacts: deque[Artifact] = field(default_factory=deque)
    artifact_tries: int = 0
    end: tuple[str, int] | None = None  # status, milliseconds

    @property
    def is_settled(self) -> bool:
        is_told = not (self.params or self.tags or self.earlier or self.reports or self.artifacts or self.end)
        return self.run_id is not None and is_told

    def leave_out_what_is_in(self, found: Any) -> set[str]:
        """Keep only what the MLflow run does not hold yet.

        Returns:
            The names of its tags that no longer hold.
        """
        there = found.data.tags
        tags = {name: value for name, value in self.first_tags.items() if name not in there} | self.tags
        if self.parent is not None:
            tags["mlflow.parentRunId"] = str(self.parent.run_id)
        no_longer = {name for name in self.passing_tags if name in there and name not in tags}
        self.tags = {name: value for name, value in tags.items() if there.get(name) != value}
        self.params = {name: value for name, value in self.params.items() if name not in found.data.params}
        if self.end is not None and self.end[0] == found.info.status and not self.tags and not no_longer:
            self.end = None
        self.is_continued = True
        return no_longer
