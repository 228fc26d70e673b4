"""Brings one run after the other up to date in an MLflow store; only the writer's thread calls it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_adamsrt.mlflow.run import Batch, Run
from tune_adamsrt.mlflow.store import TrackingOffError, create_run, find_runs, is_refused, open_experiment

POINTS_PER_CALL = 80  # of up to 11 metrics each; log_batch takes at most 1000
TRIES_PER_ARTIFACT = 3


@dataclass
class Sent:
    """What went to the store: runs created, epochs of trials, ends of runs, files."""

    runs: int = 0
    epochs: int = 0
    ends: int = 0
    files: int = 0

    def __str__(self) -> str:
        counts = {"runs": self.runs, "epochs": self.epochs, "ends": self.ends, "files": self.files}
        return ", ".join(f"{count} {name if count > 1 else name[:-1]}" for name, count in counts.items() if count)


class Sender:
    """Sends what runs have still to be told, and nothing that the store has already.

    Args:
        key: runs whose key begins with it are looked up before they are created; empty where all are new.
        warn: told of each kind of trouble (a name and a line).
    """

    def __init__(self, uri: str, *, experiment: str, key: str, warn: Callable[[str, str], None]) -> None:
        self.sent = Sent()
        self._uri = uri
        self._experiment = experiment
        self._key = key
        self._warn = warn
        self._client: Any = None
        self._experiment_id = ""
        self._found: dict[str, Any] | None = None  # what an earlier driver has left, by key

    def open(self) -> None:
        """Find or create the experiment, and find the runs of an earlier driver; once."""
        if self._client is None:
            self._client, self._experiment_id = open_experiment(self._uri, self._experiment)
        if self._found is None:
            key = self._key
            self._found = find_runs(self._client, self._experiment_id, key, with_children=True) if key else {}

    def send(self, run: Run) -> None:
        """Everything that the run has to be told, in an order that leaves the end state for last."""
        if run.run_id is None:
            try:
                run.run_id = self._find_or_create(run)
            except Exception as error:
                if not is_refused(error):
                    raise
                raise TrackingOffError(f"MLflow at {self._uri} refuses the run {run.name}: {error}") from error
            run.is_created.set()
        end = run.end  # what is told before an end must not be sent after it
        while run.params or run.tags or run.missing_points:
            self._send_values(run)
        while run.artifacts:
            self._send_artifact(run)
        if end is not None and run.end is not None:
            status, end_ms = end
            self._attempt(run, lambda: self._client.set_terminated(run.run_id, status=status, end_time=end_ms))
            run.end = None
            self.sent.ends += 1

    def _find_or_create(self, run: Run) -> str:
        found = (self._found or {}).get(run.key)
        if found is None and run.is_creation_tried:
            found = find_runs(self._client, self._experiment_id, run.key).get(run.key)
        if found is not None:
            self._take_up(run, found)
            return str(found.info.run_id)
        run.is_creation_tried = True
        parent_id = None if run.parent is None else run.parent.run_id
        run_id = create_run(
            self._client, self._experiment_id, run.name, key=run.key, started_ms=run.started_ms, parent_id=parent_id
        )
        self.sent.runs += 1
        run.begin()
        return run_id

    def _take_up(self, run: Run, found: Any) -> None:
        """Go on with a run that is in the store; it runs again unless its end is known already."""
        run_id = found.info.run_id
        no_longer = run.leave_out_what_is_in(found)
        runs_again = not run.is_ending and found.info.status != "RUNNING"
        for tag in no_longer:
            try:
                self._client.delete_tag(run_id, tag)
            except Exception as error:  # refused: it is gone already
                if not is_refused(error):
                    raise
        if runs_again:  # the old end time stays until the new end: MLflow cannot clear it
            self._attempt(run, lambda: self._client.update_run(run_id, status="RUNNING"))

    def _send_values(self, run: Run) -> None:
        batch = run.take(POINTS_PER_CALL)
        try:
            new = Batch([point for point in batch.points if not self._is_known(run, point[1], point[2])], *batch[1:])
            is_taken = self._log(run, new)
        except Exception:
            run.put_back(batch)
            raise
        run.sent += len(batch.points)
        if not is_taken:
            run.refused += len(new.points)
        elif run.parent is not None:
            self.sent.epochs += len(new.points)

    def _log(self, run: Run, batch: Batch) -> bool:
        """Send it; False where MLflow refuses."""
        from mlflow.entities import Metric, Param, RunTag

        # a point keeps its time, and MLflow stores equal points once: sending again after a lost answer is safe
        metrics = [
            Metric(name, _drawable(value), ms, step)
            for ms, step, values in batch.points
            for name, value in values.items()
        ]
        if not (metrics or batch.params or batch.tags):
            return True
        return self._attempt(
            run,
            lambda: self._client.log_batch(
                run.run_id,
                metrics=metrics,
                params=[Param(key, value) for key, value in batch.params.items()],
                tags=[RunTag(key, value) for key, value in batch.tags.items()],
                synchronous=True,
            ),
        )

    def _is_known(self, run: Run, step: int, values: Mapping[str, float]) -> bool:
        """Whether a continued run had this point; its first metric stands for the others, as they go together."""
        if not run.is_continued or not values:
            return False
        name = next(iter(values))
        if name not in run.known_steps:
            history = self._client.get_metric_history(run.run_id, name)
            run.known_steps[name] = {point.step for point in history}
        return step in run.known_steps[name]

    def _send_artifact(self, run: Run) -> None:
        artifact = run.artifacts[0]
        name = artifact.name if isinstance(artifact, Path) else artifact[0]
        try:
            if isinstance(artifact, Path):
                self._client.log_artifact(run.run_id, str(artifact))
                self.sent.files += 1
            elif not (run.is_continued and name in {file.path for file in self._client.list_artifacts(run.run_id)}):
                self._client.log_text(run.run_id, artifact[1], name)
                self.sent.files += 1
        except Exception as error:
            self._client.get_run(run.run_id)  # raises where the whole store is down: then the file can wait
            run.artifact_tries += 1
            if run.artifact_tries < TRIES_PER_ARTIFACT:
                raise
            self._warn(f"artifact {name}", f"MLflow at {self._uri} does not take the file {name}: {error}")
        run.artifacts.popleft()
        run.artifact_tries = 0

    def _attempt(self, run: Run, call: Callable[[], object]) -> bool:
        """Do it; False where MLflow refuses for good, which is told once. Anything else raises, to be tried again."""
        try:
            call()
        except Exception as error:
            if not is_refused(error):
                raise
            self._warn("refused", f"MLflow at {self._uri} refuses what run {run.name} is told: {error}")
            return False
        return True


def _drawable(value: float) -> float:
    """Infinity as NaN: databases store it as 1.8e308, which flattens every chart."""
    return float(value) if math.isfinite(value) else math.nan
