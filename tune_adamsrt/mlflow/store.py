"""What is asked of an MLflow store, call by call: its experiment, and the runs of a search by their keys.

Everything here waits for the store and raises whatever it, a driver or a plugin raises; only the writer's thread calls
it.
"""

import getpass
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from tune_adamsrt.mlflow.uri import sqlite_path

RUN_KEY = "tune_adamsrt.run_key"  # the tag that finds a run again

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


class TrackingOffError(Exception):
    """Nothing of this search can be tracked; trying again is no use."""


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
        if database is not None and not database.exists():
            _make_database(database)
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


def _make_database(database: Path) -> None:
    """Make MLflow's tables in a new file, which is there as a whole or not at all.

    MLflow makes them one by one, and does not open a file again in which a process was killed half-way.
    """
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    unfinished = database.with_name(f".{database.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    unfinished.replace(database)


def find_runs(client: Any, experiment_id: str, key: str, *, with_children: bool = False) -> dict[str, Any]:
    """The run of this key, and those of `key/...` where asked for, by their keys; deleted runs are left out."""
    condition = f"LIKE '{key}%'" if with_children else f"= '{key}'"
    found: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], filter_string=f"tags.`{RUN_KEY}` {condition}", page_token=token)
        found |= {run.data.tags[RUN_KEY]: run for run in page}
        token = page.token
        if not token:
            return found


def create_run(client: Any, experiment_id: str, name: str, *, key: str, started_ms: int, parent_id: str | None) -> str:
    """Create a run that `find_runs` finds. Returns its id."""
    tags = {RUN_KEY: key, "mlflow.user": _user(), "mlflow.source.name": "tune_adamsrt"}
    if parent_id is not None:
        tags["mlflow.parentRunId"] = parent_id
    created = client.create_run(experiment_id, start_time=started_ms, tags=tags, run_name=name)
    return str(created.info.run_id)


def is_refused(error: Exception) -> bool:
    """Whether sending the same again is no use."""
    return getattr(error, "error_code", None) in REFUSALS


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
