"""Where a search is tracked: the MLflow tracking URI, its check, and what to type to see the runs.

Text and files only: nothing here imports MLflow or asks a server.
"""

import os
import re
import shlex
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from tune_adamsrt.paths import short_path

DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")


def resolve_tracking_uri(option: str | None = None) -> str:
    """The tracking URI: the option, else MLFLOW_TRACKING_URI, else mlflow.db here. SQLite paths are made absolute."""
    uri = option or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    if path is None:
        return uri
    query = uri.partition("?")[2]
    return f"sqlite:///{path.absolute()}" + (f"?{query}" if query else "")


def check_tracking_uri(uri: str) -> None:
    """Refuse, with ValueError, a resolved tracking URI that cannot work; asks no server and imports no MLflow."""
    shown = mask_secrets(uri)
    scheme = _scheme(uri)
    if uri == "databricks" or scheme == "databricks":
        return
    if scheme in ("", "file"):
        raise ValueError(
            f"tracking URI must name a database or a server, got the folder '{shown}', which MLflow no longer writes "
            f"to; use sqlite:///mlflow.db or http://..."
        )
    if scheme in ("http", "https"):
        if not urlsplit(uri).hostname:
            raise ValueError(f"tracking URI must name a host, got '{shown}'; write it like http://127.0.0.1:5000")
    elif scheme == "sqlite":
        _check_sqlite_file(uri)
    elif scheme not in DATABASE_SCHEMES:
        plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
        if scheme not in plugins:
            known = ", ".join(sorted({*DATABASE_SCHEMES, "http", "https", "databricks", *plugins} - {"file", ""}))
            raise ValueError(f"tracking URI must start with one of {known}, got '{shown}'")


def ui_command(uri: str) -> str:
    """What to type, or open, to see the runs; credentials are left out (***)."""
    shown = mask_secrets(uri)
    if (path := sqlite_path(uri)) is not None and "?" not in uri:
        shown = f"sqlite:///{short_path(path)}"
    if _scheme(uri) in DATABASE_SCHEMES:
        # artifacts need no option: each experiment stores where its own are, and the UI's server reads them from there
        return f"{_mlflow_program()} ui --backend-store-uri {shlex.quote(shown)}"
    if _scheme(uri) in ("http", "https"):
        return f"open {shown}"
    return f"open the MLflow UI of {shown}"


def mask_secrets(text: str) -> str:
    """The text with user:password@ in URLs, and passwords and tokens in their queries, replaced by ***."""
    text = re.sub(r"://[^\s'\"/][^\s'\"]*@", "://***@", text)
    return re.sub(r"(?i)\b(\w*(?:password|passwd|pwd|token|secret)\w*)=[^&\s'\"]+", r"\1=***", text)


def _scheme(uri: str) -> str:
    """postgresql of postgresql+psycopg2://...; empty for a path."""
    scheme, is_there, _ = uri.partition(":")
    return scheme.partition("+")[0].lower() if is_there else ""


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite URI; None for any other URI, or for a database in memory."""
    if _scheme(uri) != "sqlite":
        return None
    name = uri.partition("://")[2].partition("?")[0].removeprefix("/")
    return None if name in ("", ":memory:") else Path(name)


def _check_sqlite_file(uri: str) -> None:
    path = sqlite_path(uri)
    if path is None:
        raise ValueError(f"tracking URI must name a file, got '{uri}', a database that ends with the search")
    if path.exists():
        if not path.is_file() or not os.access(path, os.W_OK):
            raise ValueError(f"the MLflow database must be a writable file, got {path}; choose another --tracking-uri")
        with path.open("rb") as file:
            head = file.read(16)
        if head and head != b"SQLite format 3\0":
            raise ValueError(
                f"the MLflow database must be an SQLite file, {path} is none; choose another --tracking-uri"
            )
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"the MLflow database needs a writable folder, {folder} is none; choose another --tracking-uri"
        )


def _mlflow_program() -> str:
    """The mlflow program of this Python, as briefly as the user's shell will understand it."""
    program = Path(sys.executable).parent / "mlflow"
    found = shutil.which("mlflow")
    if not program.exists() or (found and Path(found) == program):
        return "mlflow"
    return shlex.quote(str(short_path(program)))
