"""MLflow stores for tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tune_adamsrt.mlflow import writer as mlflow_writer
from tune_adamsrt.tracking import Tracking


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take it seconds to create."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    folder = tmp_path / "a folder"  # with a space: the path stands in URIs
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Tracking sets in the environment ends with the test."""
    from tune_adamsrt.mlflow.store import QUIET_ENVIRONMENT

    for name in [*QUIET_ENVIRONMENT, "MLFLOW_TRACKING_URI"]:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer tries again at once, and does not spare the core."""
    monkeypatch.setattr(mlflow_writer, "BACKOFF_S", 0.01)
    monkeypatch.setattr(mlflow_writer, "CPU_SHARE", 1.0)


@pytest.fixture
def warnings_told() -> list[str]:
    return []


@pytest.fixture
def tracking(uri: str, warnings_told: list[str]) -> Iterator[Tracking]:
    tracking = Tracking(uri, on_warning=warnings_told.append, flush_interval_s=0.01)
    yield tracking
    tracking.close(1.0)
