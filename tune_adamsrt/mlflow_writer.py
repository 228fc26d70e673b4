"""The background writer: one thread that owns the MLflow client and sends what runs have to be told.

`Writer.tell` only notes plain values. The thread sends them in batches, tries again while the store does not answer,
and says so once; what a search means in MLflow's terms is tracking.py's.
"""

import logging
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_adamsrt.mlflow_run import Artifact, Report, Run
from tune_adamsrt.mlflow_store import (
    QUIET_ENVIRONMENT,
    TrackingOffError,
    create_run,
    find_runs,
    is_refused,
    open_experiment,
)
from tune_adamsrt.tracking_uri import mask_secrets

REPORTS_PER_CALL = 100  # of up to 9 metrics each; log_batch takes at most 1000
TRIES_BEFORE_WARNING = 3
BACKOFF_S = 0.25  # doubled with each failure in a row
LONGEST_BACKOFF_S = 30.0


class Writer:
    """One thread that owns the MLflow client and sends what the runs have to be told."""

    def __init__(
        self, uri: str, on_warning: Callable[[str], None] | None, max_waiting_reports: int, flush_interval_s: float
    ) -> None:
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._uri = uri
        self._experiment = ""
        self._key = ""
        self._on_warning = on_warning
        self._max_waiting_reports = max_waiting_reports
        self._flush_interval_s = flush_interval_s
        self._changed = threading.Condition()  # guards everything below and what the runs hold
        self._runs: list[Run] = []  # the parent first
        self._has_news = False
        self._is_closing = False
        self._is_off = False
        self._failures = 0  # in a row
        self._waiting_reports = 0  # those being sent included
        self._dropped_reports = 0
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._client: Any = None
        self._experiment_id = ""
        self._found: dict[str, Any] | None = None  # what an earlier driver has left, by key

    @property
    def is_answering(self) -> bool:
        return not self._is_off and self._failures < TRIES_BEFORE_WARNING

    def start(self, experiment: str, key: str = "") -> None:
        """Start the thread; runs whose key begins with `key` are looked up before they are created."""
        self._experiment = experiment
        self._key = key
        if not self._thread.is_alive():
            self._thread.start()

    def add_run(
        self,
        name: str,
        *,
        started_at: float,
        key: str = "",
        parent: Run | None = None,
        first_tags: Mapping[str, Any] | None = None,
        passing_tags: Sequence[str] = (),
        earlier: Sequence[Report] = (),
    ) -> Run:
        """Note a run, and what is special where an earlier driver has begun it: see Run. Without a key it is new."""
        run = Run(
            name,
            key or uuid.uuid4().hex,
            int(started_at * 1000),
            parent,
            first_tags=_as_tags(first_tags),
            passing_tags=frozenset(passing_tags),
            earlier=earlier,
            last_step=earlier[-1][1] if earlier else 0,
        )
        with self._changed:
            self._runs.append(run)
        return run

    def tell(
        self,
        run: Run,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        artifact: Artifact | None = None,
        end: str | None = None,
        ended_at: float | None = None,
    ) -> None:
        """Note what to send; touches neither disk nor network."""
        now_ms = int(time.time() * 1000)
        with self._changed:
            run.params.update({key: str(value) for key, value in (params or {}).items()})
            run.tags.update(_as_tags(tags))
            if artifact is not None:
                run.artifacts.append(artifact)
            if end is not None:
                run.end = (end, now_ms if ended_at is None else int(ended_at * 1000))
                run.is_ending = True
            if metrics is not None:
                run.last_step = step
                run.reports.append((now_ms, step, dict(metrics)))
                self._waiting_reports += 1
                self._drop_oldest()
            self._has_news = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            lost = self._dropped_reports + self._waiting_reports
            unsettled = [run for run in self._runs if not run.is_settled]
        if lost or unsettled:
            self._warn(
                "lost",
                f"MLflow at {self._uri}: {lost} epoch reports were not delivered, "
                f"{len(unsettled)} of {len(self._runs)} runs are incomplete there",
            )
        return not lost and not unsettled

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._has_news)
                # a moment later there is more to say, and one call says it all
                self._changed.wait_for(lambda: self._is_closing, timeout=self._flush_interval_s)
                is_last = self._is_closing
                self._has_news = False
            try:
                self._send_all()
                self._failures = 0
            except TrackingOffError as error:
                self._switch_off(error)
                return
            except Exception as error:  # whatever a store, a driver or a plugin raises, the search goes on
                self._failures += 1
                if self._failures >= TRIES_BEFORE_WARNING:
                    self._warn(
                        "no answer",
                        f"MLflow at {self._uri} does not take the results; the search goes on, and they are sent later "
                        f"({error})",
                    )
                    if is_last:
                        return
                self._back_off(is_last)
            else:
                if is_last:
                    return

    def _back_off(self, is_last: bool) -> None:
        with self._changed:
            self._has_news = True
            delay_s = min(BACKOFF_S * 2**self._failures, 1.0 if is_last else LONGEST_BACKOFF_S)
            self._changed.wait_for(lambda: self._is_closing and not is_last, timeout=delay_s)

    def _send_all(self) -> None:
        if self._client is None:
            self._client, self._experiment_id = open_experiment(self._uri, self._experiment)
        if self._found is None:
            client, experiment_id, key = self._client, self._experiment_id, self._key
            self._found = find_runs(client, experiment_id, key, with_children=True) if key else {}
        with self._changed:
            runs = [run for run in self._runs if not run.is_settled]
        for run in runs:
            self._send(run)

    def _send(self, run: Run) -> None:
        """Everything that the run has to be told, in an order that leaves the end state for last."""
        if run.run_id is None:
            try:
                run.run_id = self._find_or_create(run)
            except Exception as error:
                if not is_refused(error):
                    raise
                raise TrackingOffError(f"MLflow at {self._uri} refuses the run {run.name}: {error}") from error
            run.is_created.set()
        while run.earlier:
            self._send_earlier(run)
        while run.params or run.tags or run.reports:
            self._send_values(run)
        while run.artifacts:
            self._send_artifact(run)
        if run.end is not None:
            status, end_ms = run.end
            self._attempt(run, lambda: self._client.set_terminated(run.run_id, status=status, end_time=end_ms))
            run.end = None

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
        with self._changed:
            run.tags = run.first_tags | run.tags
        return run_id

    def _take_up(self, run: Run, found: Any) -> None:
        """Go on with a run that is in the store; it runs again unless its end is known already."""
        run_id = found.info.run_id
        with self._changed:
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

    def _send_earlier(self, run: Run) -> None:
        reports = list(run.earlier[:REPORTS_PER_CALL])
        is_taken = self._log(run, reports, {}, {})
        with self._changed:
            run.earlier = run.earlier[REPORTS_PER_CALL:]
            self._dropped_reports += 0 if is_taken else len(reports)

    def _send_values(self, run: Run) -> None:
        with self._changed:
            reports = [run.reports.popleft() for _ in range(min(REPORTS_PER_CALL, len(run.reports)))]
            params, tags = run.params, run.tags
            run.params, run.tags = {}, {}
        try:
            is_taken = self._log(run, reports, params, tags)
        except Exception:
            with self._changed:
                run.reports.extendleft(reversed(reports))
                run.params, run.tags = params | run.params, tags | run.tags
            raise
        with self._changed:
            self._waiting_reports -= len(reports)
            self._dropped_reports += 0 if is_taken else len(reports)

    def _log(self, run: Run, reports: Sequence[Report], params: Mapping[str, str], tags: Mapping[str, str]) -> bool:
        """Send it, without the points that the run had when it was found; False where MLflow refuses."""
        from mlflow.entities import Metric, Param, RunTag

        # a point keeps its time, and MLflow stores equal points once: sending again after a lost answer is safe
        metrics = [
            Metric(name, _drawable(value), ms, step)
            for ms, step, values in reports
            if not self._is_known(run, step, values)
            for name, value in values.items()
        ]
        if not (metrics or params or tags):
            return True
        return self._attempt(
            run,
            lambda: self._client.log_batch(
                run.run_id,
                metrics=metrics,
                params=[Param(key, value) for key, value in params.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
                synchronous=True,
            ),
        )

    def _is_known(self, run: Run, step: int, values: Mapping[str, float]) -> bool:
        """Whether a continued run had this report; its first metric stands for the others, as they go together."""
        if not run.is_continued or not values:
            return False
        name = next(iter(values))
        if name not in run.known_steps:
            history = self._client.get_metric_history(run.run_id, name)
            run.known_steps[name] = {point.step for point in history}
        return step in run.known_steps[name]

    def _send_artifact(self, run: Run) -> None:
        artifact = run.artifacts[0]
        try:
            if isinstance(artifact, Path):
                self._client.log_artifact(run.run_id, str(artifact))
            else:
                name, text = artifact
                self._client.log_text(run.run_id, text, name)
        except Exception as error:
            self._client.get_run(run.run_id)  # raises where the whole store is down: then the file can wait
            run.artifact_tries += 1
            if run.artifact_tries < TRIES_BEFORE_WARNING:
                raise
            name = artifact.name if isinstance(artifact, Path) else artifact[0]
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

    def _drop_oldest(self) -> None:
        while self._waiting_reports > self._max_waiting_reports:
            run = max(self._runs, key=lambda run: len(run.reports))
            if not run.reports:
                return  # all are being sent
            run.reports.popleft()
            self._waiting_reports -= 1
            self._dropped_reports += 1

    def _switch_off(self, error: Exception) -> None:
        self._warn("off", str(error))
        with self._changed:
            self._is_off = True
            for run in self._runs:
                run.is_created.set()

    def _warn(self, kind: str, text: str) -> None:
        if kind in self._warned or self._on_warning is None:
            return
        self._warned.add(kind)
        line = mask_secrets(" ".join(text.split()))
        try:
            self._on_warning(line if len(line) <= 300 else line[:297] + "...")
        except Exception:
            logging.getLogger(__name__).debug("on_warning raised", exc_info=True)


def _drawable(value: float) -> float:
    """Infinity as NaN: databases store it as 1.8e308, which flattens every chart."""
    return float(value) if math.isfinite(value) else math.nan


def _as_tags(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {re.sub(r"[^\w\-./: ]", "_", name)[:250]: str(value) for name, value in (values or {}).items()}
