"""Every trial and every epoch of one or more searches as Arrow tables, and as Parquet files.

Pure functions of `StoredSearch` values; only `write_tables` touches the disk. docs/results.md lists the columns.
"""

import contextlib
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import adamsrt
from adamsrt.optimizers import OPTIMIZERS
from tune_adamsrt.ranges import parts_of
from tune_adamsrt.records import EpochReport, HyperParameters, TrialRecord
from tune_adamsrt.reports.scales import in_reading_order
from tune_adamsrt.studies import StoredSearch

FORMAT_VERSION = 1
"""Grows when a column changes its meaning, its type or its name, or goes; not when one is added."""

TIME = pa.timestamp("us", tz="UTC")


def _field(name: str, kind: pa.DataType, description: str, unit: str = "", *, nullable: bool = True) -> pa.Field:
    metadata = {"description": description} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _key(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return _field(name, kind, description, nullable=False)


def part_names() -> list[str]:
    """The hyper-parameters of all optimizers, betas split: lr, beta1, beta2, momentum, weight_decay."""
    return in_reading_order({part for entry in OPTIMIZERS.values() for part in parts_of(entry.hyper_parameters)})


def split_betas(hyper_parameters: HyperParameters) -> dict[str, float]:
    """Give hyper-parameters as single numbers: betas=(0.9, 0.99) as beta1=0.9, beta2=0.99."""
    parts: dict[str, float] = {}
    for name, value in hyper_parameters.items():
        if name == "betas":
            parts["beta1"], parts["beta2"] = value
        else:
            parts[name] = value
    return parts


KEYS = (
    _key("setting", pa.string(), "a model on a dataset, such as resnet18-cifar100"),
    _key("optimizer", pa.string(), "the optimizer that is searched"),
    _key("study", pa.string(), "name of the Optuna study"),
    _key("number", pa.int64(), "the trial's number in its study, from 0"),
)


def trials_schema() -> pa.Schema:
    """The columns of `trials_table`, each with a description and, where it has one, a unit."""
    return _versioned(
        [
            *KEYS,
            _key("role", pa.string(), "search, or confirmation: a configuration trained again on fresh seeds"),
            _field("confirms", pa.int64(), "in a confirmation: the number of the search's trial that is trained again"),
            _key("state", pa.string(), "running, complete, stopped (by the scheduler or a budget) or failed"),
            _field("reason", pa.string(), "why it was stopped or failed; null otherwise"),
            _field("origin", pa.string(), "where its hyper-parameters come from"),
            _key("seed", pa.int64(), "of the initial weights and the order of the data"),
            *(_field(part, pa.float64(), "null where the optimizer has none") for part in part_names()),
            _key("epochs", pa.int64(), "epochs trained, each counted once"),
            _key("epochs_spent", pa.int64(), "epochs paid for: those trained twice after a loss count twice"),
            _key("epochs_repeated", pa.int64(), "epochs_spent - epochs"),
            _key("full_budget", pa.int64(), "epochs of a trial that is trained in full"),
            _field("limit_train_examples", pa.int64(), "training examples used; null where all were"),
            _field("value", pa.float64(), "what trials are compared by, at value_epoch; NaN where it diverged", "1"),
            _field("value_epoch", pa.int64(), "the epoch of value: the last one, the rung where it was stopped"),
            _field("valid_loss", pa.float64(), "validation loss at value_epoch; NaN or inf where it diverged"),
            _field("test_accuracy", pa.float64(), "of a confirmed and tested run; null for all others", "1"),
            _field("started_at", TIME, "when it was asked for, by the driver's clock"),
            _field("ended_at", TIME, "null where it runs or its driver was lost"),
            _field("host", pa.string(), "the machine that trained it last; null where unknown"),
        ]
    )


_EPOCH_FIELDS = (
    _key("epoch", pa.int64(), "epochs trained so far, 1 after the first"),
    _field("value", pa.float64(), "best (or last) validation accuracy so far; NaN where it diverged", "1"),
    _field("train_loss", pa.float64(), "mean over the epoch's batches, each before its step"),
    _field("train_accuracy", pa.float64(), "mean over the epoch's batches, each before its step", "1"),
    _field("valid_loss", pa.float64(), "after the epoch"),
    _field("valid_accuracy", pa.float64(), "after the epoch", "1"),
    _field("lr", pa.float64(), "learning rate in this epoch"),
    _field("seconds", pa.float64(), "training and validation together", "s"),
    _field("train_images_per_second", pa.float64(), "training alone", "1/s"),
    _field("weight_norm", pa.float64(), "mean norm of the scale-invariant weights per sphere; null if not measured"),
    _field("grad_norm", pa.float64(), "mean norm of their gradients at the last step; null if not measured"),
    _field("effective_lr", pa.float64(), "mean of lr / squared weight norm; null if not measured"),
    _field("reported_at", TIME, "when the driver heard of it; null where that was not recorded"),
)

_MEASURED_IF_ENABLED = ("weight_norm", "grad_norm", "effective_lr")


def epochs_schema() -> pa.Schema:
    """The columns of `epochs_table`."""
    return _versioned([*KEYS, *_EPOCH_FIELDS])


def _versioned(fields: list[pa.Field]) -> pa.Schema:
    metadata = {"tune_adamsrt.version": adamsrt.__version__, "tune_adamsrt.format": str(FORMAT_VERSION)}
    return pa.schema(fields, metadata=metadata)


def trials_table(searches: Sequence[StoredSearch]) -> pa.Table:
    """Give one row per trial, in the order of the searches and of the trials' numbers."""
    tests = {search.info.study_name: test_accuracies(search) for search in searches}
    rows = (
        _keys(search, trial)
        | dict.fromkeys(part_names())
        | {name: float(value) for name, value in split_betas(trial.hyper_parameters).items()}
        | {
            "role": "search" if search.confirms is None else "confirmation",
            "confirms": trial.confirms,
            "state": str(trial.state),
            "reason": trial.reason or None,
            "origin": trial.origin or None,
            "seed": trial.seed,
            "epochs": trial.epoch,
            "epochs_spent": trial.epochs_spent,
            "epochs_repeated": trial.epochs_repeated,
            "full_budget": search.info.epochs,
            "limit_train_examples": search.protocol.get("limit_train_examples"),
            "value": trial.value,
            "value_epoch": trial.epoch or None,
            "valid_loss": trial.epochs[-1].valid_loss if trial.epochs else None,
            "test_accuracy": tests[search.info.study_name].get(trial.number),
            "started_at": _microseconds(trial.started_at),
            "ended_at": _microseconds(trial.ended_at),
            "host": trial.host or None,
        }
        for search, trial in _trials(searches)
    )
    return _table(rows, trials_schema())


def epochs_table(searches: Sequence[StoredSearch]) -> pa.Table:
    """Give one row per epoch of every trial, in the order of `trials_table`."""
    rows = (_keys(search, trial) | _epoch_row(report) for search, trial in _trials(searches) for report in trial.epochs)
    return _table(rows, epochs_schema())


def test_accuracies(search: StoredSearch) -> dict[int, float]:
    """Give the test accuracies of a confirmation's runs by their numbers; empty for a search."""
    found: dict[int, float] = {}
    for candidate, accuracies in search.test_accuracies.items():
        # Kept in the order of the runs' seeds: see candidates.build_confirmation.
        runs = sorted((trial for trial in search.trials if trial.confirms == candidate), key=lambda trial: trial.seed)
        found |= {run.number: accuracy for run, accuracy in zip(runs, accuracies, strict=True)}
    return found


def write_tables(folder: Path, searches: Sequence[StoredSearch]) -> list[Path]:
    """Write trials.parquet and epochs.parquet; each is replaced as a whole. Returns their paths. Raises OSError."""
    paths = []
    for name, table in (("trials", trials_table(searches)), ("epochs", epochs_table(searches))):
        paths.append(folder / f"{name}.parquet")
        with replaced(paths[-1]) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return paths


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Give a path to write to; it takes the target's place at the end, so that nobody reads half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _trials(searches: Sequence[StoredSearch]) -> Iterator[tuple[StoredSearch, TrialRecord]]:
    return ((search, trial) for search in searches for trial in sorted(search.trials, key=lambda trial: trial.number))


def _keys(search: StoredSearch, trial: TrialRecord) -> dict[str, Any]:
    info = search.info
    return {
        "setting": info.setting,
        "optimizer": info.optimizer,
        "study": info.study_name,
        "number": trial.number,
    }


def _epoch_row(report: EpochReport) -> dict[str, Any]:
    row = vars(report) | {"reported_at": _microseconds(report.reported_at)}
    if report.is_finite:  # NaN then means "not measured"; in an epoch that diverged it is what was measured
        row |= {name: None for name in _MEASURED_IF_ENABLED if row[name] is None or math.isnan(row[name])}
    return row


def _microseconds(seconds: float | None) -> int | None:
    """Seconds since the Unix epoch as Arrow wants them; None where the time is not known."""
    return round(1e6 * seconds) if seconds else None


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    found = list(rows)
    return pa.table({name: [row[name] for row in found] for name in schema.names}, schema=schema)
