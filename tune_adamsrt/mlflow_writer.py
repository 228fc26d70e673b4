"""The background writer: one thread that owns the MLflow client and sends what runs have to be told.

`Writer.tell` only notes plain values. The thread sends them in batches, tries again while the store does not answer,
and says so once; what a search means in MLflow's terms is tracking.py's.
"""

import getpass
import logging
import math
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from tune_adamsrt.tracking_uri import mask_secrets, sqlite_path

REPORTS_PER_CALL = 100  # of up to 9 metrics each; log_batch takes at most 1000
TRIES_BEFORE_WARNING = 3
BACKOFF_S = 0.25  # doubled with each failure in a row
LONGEST_BACKOFF_S = 30.0

# What the user has set himself stays. MLflow's own retries are off, because the thread's can be interrupted.
QUIET_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

# MLflow's answers to which sending the same again is no use.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED"}

Report = tuple[int, int, dict[str, float]]  # milliseconds since the Unix epoch, step, metrics
Artifact = Path | tuple[str, str]  # a file, or a name and its text


@dataclass(eq=False)
class Run:
    """An MLflow run and what it has still to be told."""

    name: str
    key: str  # finds the run again where the answer to its creation was lost
    started_ms: int
    parent: "Run | None" = None
    run_id: str | None = None
    is_created: threading.Event = field(default_factory=threading.Event)
    is_creation_tried: bool = False
    is_ending: bool = False
    last_step: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    reports: deque[Report] = field(default_factory=deque)
    artifacts: deque[Artifact] = field(default_factory=deque)
    artifact_tries: int = 0
    end: tuple[str, int] | None = None  # status, milliseconds

    @property
    def is_settled(self) -> bool:
        return not (
            self.run_id is None or self.params or self.tags or self.reports or self.artifacts or self.end is not None
        )


class TrackingOffError(Exception):
    """Nothing of this search can be tracked; trying again is no use."""


class Writer:
    """One thread that owns the MLflow client and sends what the runs have to be told."""

    def __init__(
        self, uri: str, on_warning: Callable[[str], None] | None, max_waiting_reports: int, flush_interval_s: float
    ) -> None:
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._uri = uri
        self._experiment = ""
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

    @property
    def is_answering(self) -> bool:
        return not self._is_off and self._failures < TRIES_BEFORE_WARNING

    def start(self, experiment: str) -> None:
        self._experiment = experiment
        if not self._thread.is_alive():
            self._thread.start()

    def add_run(self, name: str, started_at: float, parent: Run | None = None) -> Run:
        run = Run(name, f"{uuid.uuid4().hex}", int(started_at * 1000), parent)
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
            run.tags.update({_tag_name(key): str(value) for key, value in (tags or {}).items()})
            if artifact is not None:
                run.artifacts.append(artifact)
            if end is not None:
                run.end = (end, now_ms if ended_at is None else int(ended_at * 1000))
                run.is_ending = True
            if metrics is not None:
                run.last_step = step
                run.reports.append((now_ms, step, {name: _drawable(value) for name, value in metrics.items()}))
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
        with self._changed:
            runs = [run for run in self._runs if not run.is_settled]
        for run in runs:
            self._send(run)

    def _send(self, run: Run) -> None:
        """Everything that the run has to be told, in an order that leaves the end state for last."""
        if run.run_id is None:
            try:
                run.run_id = self._create(run)
            except Exception as error:
                if not _is_refused(error):
                    raise
                raise TrackingOffError(f"MLflow at {self._uri} refuses the run {run.name}: {error}") from error
            run.is_created.set()
        while run.params or run.tags or run.reports:
            self._send_values(run)
        while run.artifacts:
            self._send_artifact(run)
        if run.end is not None:
            status, end_ms = run.end
            self._attempt(run, lambda: self._client.set_terminated(run.run_id, status=status, end_time=end_ms))
            run.end = None

    def _create(self, run: Run) -> str:
        if run.is_creation_tried:
            query = f"tags.`tune_adamsrt.run_key` = '{run.key}'"
            for found in self._client.search_runs([self._experiment_id], filter_string=query, max_results=1):
                return str(found.info.run_id)
        run.is_creation_tried = True
        tags = {"tune_adamsrt.run_key": run.key, "mlflow.user": _user(), "mlflow.source.name": "tune_adamsrt"}
        if run.parent is not None:
            tags["mlflow.parentRunId"] = str(run.parent.run_id)
        created = self._client.create_run(self._experiment_id, start_time=run.started_ms, tags=tags, run_name=run.name)
        return str(created.info.run_id)

    def _send_values(self, run: Run) -> None:
        from mlflow.entities import Metric, Param, RunTag

        with self._changed:
            reports = [run.reports.popleft() for _ in range(min(REPORTS_PER_CALL, len(run.reports)))]
            params, tags = run.params, run.tags
            run.params, run.tags = {}, {}
        # a point keeps its time, and MLflow stores equal points once: sending again after a lost answer is safe
        metrics = [Metric(name, value, ms, step) for ms, step, values in reports for name, value in values.items()]
        try:
            is_taken = self._attempt(
                run,
                lambda: self._client.log_batch(
                    run.run_id,
                    metrics=metrics,
                    params=[Param(key, value) for key, value in params.items()],
                    tags=[RunTag(key, value) for key, value in tags.items()],
                    synchronous=True,
                ),
            )
        except Exception:
            with self._changed:
                run.reports.extendleft(reversed(reports))
                run.params, run.tags = params | run.params, tags | run.tags
            raise
        with self._changed:
            self._waiting_reports -= len(reports)
            self._dropped_reports += 0 if is_taken else len(reports)

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
            if not _is_refused(error):
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


def open_experiment(uri: str, name: str) -> tuple[Any, str]:
    """An MlflowClient and the id of the experiment, created where it is missing; another process may do the same."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "CRITICAL").upper())
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

    database = sqlite_path(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    # MLflow creates its tables without a lock: two searches that start at once would both do it
    with FileLock(f"{database}.lock") if database is not None else nullcontext():
        client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if database is None else (database.parent / "mlartifacts" / name).as_uri()
        try:
            return client, str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise TrackingOffError(
            f"this search is not tracked: the MLflow experiment {name} at {uri} was deleted; restore it with: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return client, str(experiment.experiment_id)


def _is_refused(error: Exception) -> bool:
    return getattr(error, "error_code", None) in REFUSALS


def _drawable(value: float) -> float:
    """Infinity as NaN: databases store it as 1.8e308, which flattens every chart."""
    return float(value) if math.isfinite(value) else math.nan


def _tag_name(name: str) -> str:
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
