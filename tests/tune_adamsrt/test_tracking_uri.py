"""Where a search is tracked: which URI counts, which are refused, and what is shown of them."""

import os
from pathlib import Path

import pytest

from tune_adamsrt.mlflow.uri import check_tracking_uri, mask_secrets, resolve_tracking_uri, ui_command


def test_the_option_comes_before_the_environment_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert resolve_tracking_uri(None) == "http://mlflow.example:5000"
    assert resolve_tracking_uri("sqlite:///runs/x.db") == f"sqlite:///{tmp_path}/runs/x.db"
    assert resolve_tracking_uri("sqlite:////data/x.db?timeout=3") == "sqlite:////data/x.db?timeout=3"


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://me:secret@mlflow.example",
        "postgresql+psycopg2://me:secret@db/mlflow",
        "databricks",
        "databricks://profile",
    ],
)
def test_uris_that_may_work_pass(uri: str) -> None:
    check_tracking_uri(uri)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("./mlruns", "sqlite:///mlflow.db"),
        ("file:///tmp/mlruns", "sqlite:///mlflow.db"),
        ("htp://127.0.0.1", "http, https"),
        ("http://", "must name a host"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("nosuch://me:hunter2@host", "must start with one of"),
    ],
)
def test_uris_that_cannot_work_are_refused_in_one_line(uri: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        check_tracking_uri(uri)
    assert "\n" not in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_database_that_cannot_be_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database, but long enough to be one")
    for uri, says in {
        f"sqlite:///{text}": "must be an SQLite file",
        f"sqlite:///{tmp_path}": "must be a writable file",
        f"sqlite:///{text}/mlflow.db": "needs a writable folder",
    }.items():
        with pytest.raises(ValueError, match=says):
            check_tracking_uri(uri)
    check_tracking_uri(f"sqlite:///{tmp_path}/new/deep/mlflow.db")
    (tmp_path / "empty.db").touch()
    check_tracking_uri(f"sqlite:///{tmp_path}/empty.db")


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root may write everywhere
    with pytest.raises(ValueError, match="needs a writable folder"):
        check_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")


def test_the_ui_command_quotes_paths_and_leaves_secrets_out() -> None:
    assert ui_command("sqlite:////a b@c/mlflow.db").endswith("ui --backend-store-uri 'sqlite:////a b@c/mlflow.db'")
    assert ui_command("http://me:hunter2@host:5000") == "open http://***@host:5000"
    assert ui_command("postgresql://me:hun@ter2@db/mlflow").endswith("'postgresql://***@db/mlflow'")
    assert "hunter2" not in ui_command("postgresql://db/mlflow?user=me&password=hunter2&sslmode=require")


def test_secrets_are_masked_wherever_they_stand() -> None:
    text = "cannot reach 'https://me:hunter2@host/x' (token=hunter2&y=1): sqlite:////home/a@b/c"
    assert mask_secrets(text) == "cannot reach 'https://***@host/x' (token=***&y=1): sqlite:////home/a@b/c"
