"""Where studies are kept, a Journal file or a database: opened, held by one driver at a time, and lost."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from tune_adamsrt.journal import Journal
from tune_adamsrt.mlflow.uri import mask_secrets

optuna.logging.set_verbosity(optuna.logging.ERROR)

P = ParamSpec("P")
R = TypeVar("R")


class StudyError(ValueError):
    """A study that cannot be used as asked: unknown, made for another search, or unreadable."""


class StorageLostError(BaseException):
    """The storage of a running study does not take what it is told: a full disk, a database that has gone.

    Not an Exception, since Tune catches those of searchers, and would go on with a search that nobody records.
    """


def recorded(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method end the search where the storage is lost."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except (OSError, SQLAlchemyError, StorageInternalError) as error:
            raise StorageLostError(" ".join(str(error).split())) from error

    return call


def open_storage(location: str, *, must_exist: bool = False) -> BaseStorage:
    """Open a study storage: a Journal file (a path) or a database (`sqlite:///...`, `postgresql://...`).

    Raises:
        StudyError: it is damaged, cannot be written or reached, or (must_exist) is not there. It stays as it is.
    """
    try:
        if "://" in location:
            return optuna.storages.RDBStorage(location)
        path = Path(location).expanduser()
        if must_exist and not path.exists():
            raise StudyError(f"the study storage must exist, got {path}; name it with --output or --study-storage")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Who only reads must not mend: what looks cut off may be a line in the making.
        return JournalStorage(JournalFileBackend(str(path))) if must_exist else Journal(str(path))
    except (ValueError, KeyError, AssertionError) as error:  # from reading the journal
        if isinstance(error, StudyError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StudyError(
            f"the study storage must be whole, got {location}, which is damaged ({reason}); move it away or restore it"
        ) from error
    except OSError as error:
        raise StudyError(
            f"the study storage must be writable, got {location} ({error.strerror}); choose another --output"
        ) from error
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"the study storage must answer, got {mask_secrets(location)} ({reason})") from error


@contextlib.contextmanager
def locked(study_name: str, folder: Path) -> Iterator[None]:
    """Keep a second driver on this machine from the same study. Raises StudyError where another has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{study_name}.lock", timeout=1)  # status holds it for an instant
        lock.acquire()
    except Timeout:
        raise StudyError(
            f"study {study_name!r} must have one driver, another search is running it; wait for it"
        ) from None
    except OSError as error:
        raise StudyError(
            f"the output folder must be writable, got {folder} ({error.strerror}); choose another"
        ) from error
    try:
        yield
    finally:
        lock.release()
