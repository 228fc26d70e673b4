"""Tables of trials and epochs: what stands in them, and that others can read them."""

import dataclasses
import datetime
import math
import re
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_searches import STARTED, make_epochs, make_stored, make_stored_trial

import adamsrt
from tune_adamsrt.records import EpochReport, TrialState
from tune_adamsrt.results import epochs_schema, epochs_table, replaced, trials_schema, trials_table, write_tables
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import open_storage
from tune_adamsrt.studies import load_search
from tune_adamsrt.study import Study

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "results.md"
NAN = math.nan

TEXT, WHOLE, REAL, TIME = "string", "int64", "double", "timestamp[us, tz=UTC]"
KEYS = {"setting": TEXT, "optimizer": TEXT, "study": TEXT, "number": WHOLE}
TRIALS = KEYS | {
    **{"role": TEXT, "confirms": WHOLE, "state": TEXT, "reason": TEXT, "origin": TEXT, "seed": WHOLE},
    **{"lr": REAL, "beta1": REAL, "beta2": REAL, "momentum": REAL, "weight_decay": REAL},
    **{"epochs": WHOLE, "epochs_spent": WHOLE, "epochs_repeated": WHOLE, "full_budget": WHOLE},
    **{"limit_train_examples": WHOLE, "value": REAL, "value_epoch": WHOLE, "valid_loss": REAL, "test_accuracy": REAL},
    **{"started_at": TIME, "ended_at": TIME, "host": TEXT},
}
EPOCHS = KEYS | {
    **{"epoch": WHOLE, "value": REAL, "train_loss": REAL, "train_accuracy": REAL, "valid_loss": REAL},
    **{"valid_accuracy": REAL, "lr": REAL, "seconds": REAL, "train_images_per_second": REAL, "weight_norm": REAL},
    **{"grad_norm": REAL, "effective_lr": REAL, "reported_at": TIME},
}


@pytest.fixture
def search():
    """A candidate with an epoch trained twice, a stopped trial, one that diverged, one that has just begun."""
    return make_stored(
        make_stored_trial(1, TrialState.STOPPED, [0.4, 0.5], reason="rung 1 (epoch 2): rank 2 of 2, ..."),
        make_stored_trial(
            0, TrialState.COMPLETE, [0.5, 0.75, 0.75, 0.875],
            times=[10, 20, 30, 40.25], epochs_repeated=1, ended_at=STARTED + 41.5, host="node-1",
        ),
        make_stored_trial(2, TrialState.FAILED, [0.3, NAN], reason="diverged"),
        make_stored_trial(3, TrialState.RUNNING, []),
    )  # fmt: skip


def test_the_columns_are_pinned():
    """A column that changes its name, its type or its meaning is a new FORMAT_VERSION."""
    assert {field.name: str(field.type) for field in trials_schema()} == TRIALS
    assert {field.name: str(field.type) for field in epochs_schema()} == EPOCHS
    for schema in (trials_schema(), epochs_schema()):
        assert schema.metadata[b"tune_adamsrt.format"] == b"1"
        assert schema.metadata[b"tune_adamsrt.version"] == adamsrt.__version__.encode()
        assert all(field.metadata[b"description"] for field in schema)


def test_every_value_of_a_report_has_a_column():
    assert {field.name for field in dataclasses.fields(EpochReport)} <= set(epochs_schema().names)


def test_the_documentation_lists_the_columns():
    _, trials, epochs = re.split(r"### (?:trials|epochs)\.parquet\n", DOCUMENTATION.read_text())
    for text, schema in ((trials, trials_schema()), (epochs, epochs_schema())):
        listed = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.*) \|$", text, flags=re.MULTILINE)
        assert [name for name, _, _ in listed] == schema.names
        for name, kind, words in listed:
            assert kind == str(schema.field(name).type).replace("timestamp[us, tz=UTC]", "timestamp, UTC")
            assert words.startswith(schema.field(name).metadata[b"description"].decode()), name


def test_a_row_per_trial_in_the_order_of_their_numbers(search):
    table = trials_table([search])
    assert table.column("number").to_pylist() == [0, 1, 2, 3]
    assert table.column("state").to_pylist() == ["complete", "stopped", "failed", "running"]
    assert table.slice(0, 1).to_pylist() == [
        {
            **{"setting": "resnet20-digits", "optimizer": "adamsrt", "study": "resnet20-digits-adamsrt", "number": 0},
            **{"role": "search", "confirms": None, "state": "complete", "reason": None, "origin": "sampled by tpe"},
            **{"seed": 100, "lr": 0.001, "beta1": 0.9, "beta2": 0.99, "momentum": None, "weight_decay": 1e-4},
            **{"epochs": 4, "epochs_spent": 5, "epochs_repeated": 1, "full_budget": 4, "limit_train_examples": None},
            **{"value": 0.875, "value_epoch": 4, "valid_loss": 0.125, "test_accuracy": None, "host": "node-1"},
            "started_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            "ended_at": datetime.datetime(2026, 1, 1, 0, 0, 41, 500_000, tzinfo=datetime.UTC),
        }
    ]


def test_what_there_is_not_is_null_and_what_diverged_is_nan(search):
    stopped, failed, running = trials_table([search]).to_pylist()[1:]
    assert (stopped["value"], stopped["value_epoch"], stopped["host"], stopped["ended_at"]) == (0.5, 2, None, None)
    assert math.isnan(failed["value"]) and math.isnan(failed["valid_loss"])
    assert (failed["value_epoch"], failed["epochs"]) == (2, 2)
    assert (running["value"], running["value_epoch"], running["valid_loss"], running["epochs"]) == (None, None, None, 0)


def test_a_row_per_epoch(search):
    rows = epochs_table([search]).to_pylist()
    assert [(row["number"], row["epoch"]) for row in rows] == [
        *[(0, 1), (0, 2), (0, 3), (0, 4)],
        *[(1, 1), (1, 2)],
        *[(2, 1), (2, 2)],
    ]
    assert [row["value"] for row in rows[:4]] == [0.5, 0.75, 0.75, 0.875]
    assert rows[3]["reported_at"] == datetime.datetime(2026, 1, 1, 0, 0, 40, 250_000, tzinfo=datetime.UTC)
    assert rows[4]["reported_at"] is None
    assert math.isnan(rows[-1]["value"]) and math.isnan(rows[-1]["train_loss"])


def test_norms_that_were_not_measured_are_null():
    trial = make_stored_trial(0, TrialState.RUNNING, [])
    trial.epochs = [
        *make_epochs([0.5], weight_norm=1.5, grad_norm=0.25, effective_lr=NAN),
        *make_epochs([NAN], weight_norm=NAN),
    ]
    measured, diverged = epochs_table([make_stored(trial)]).to_pylist()
    assert (measured["weight_norm"], measured["grad_norm"], measured["effective_lr"]) == (1.5, 0.25, None)
    assert math.isnan(diverged["weight_norm"]) and diverged["grad_norm"] is None


def test_optimizers_without_betas_leave_them_null():
    point = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0}
    search = make_stored(make_stored_trial(0, TrialState.RUNNING, [], hyper_parameters=point), optimizer="sgd")
    [row] = trials_table([search]).to_pylist()
    names = ("lr", "beta1", "beta2", "momentum", "weight_decay")
    assert [row[name] for name in names] == [0.1, None, None, 0.9, 0.0]


def test_confirmed_runs_carry_their_test_accuracies():
    """Kept in the order of the seeds, which need not be that of the runs' numbers."""
    runs = [
        make_stored_trial(number, TrialState.COMPLETE, [0.5, 0.5, 0.5, 0.5], seed=seed, confirms=confirms)
        for number, seed, confirms in ((0, 900, 3), (1, 900, 5), (2, 800, 3), (3, 800, 5))
    ]
    stored = dataclasses.replace(make_stored(*runs), confirms="a-search", test_accuracies={3: [0.81, 0.91]})
    table = trials_table([stored])
    assert table.column("role").to_pylist() == ["confirmation"] * 4
    assert table.column("confirms").to_pylist() == [3, 5, 3, 5]
    assert table.column("test_accuracy").to_pylist() == [0.91, None, 0.81, None]


def test_no_searches_are_empty_tables_with_all_columns():
    assert trials_table([]).schema == trials_schema() and epochs_table([make_stored()]).num_rows == 0


def test_the_examples_of_the_documentation_read_what_was_written(search, tmp_path, monkeypatch):
    write_tables(tmp_path, [search])
    [examples] = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    read = {}
    for line in examples.splitlines():
        exec(line, read)
    assert isinstance(read["trials"], pandas.DataFrame) and isinstance(read["epochs"], polars.DataFrame)
    assert isinstance(read["best"], duckdb.DuckDBPyRelation)
    assert read["best"].fetchall() == [("adamsrt", 0.875)]


def test_pandas_polars_and_duckdb_agree_with_what_was_written(search, tmp_path):
    trials, epochs = write_tables(tmp_path, [search])
    assert (trials.name, epochs.name) == ("trials.parquet", "epochs.parquet")
    written = trials_table([search]).to_pylist()

    def same(read):
        return [
            all(was is now is None or was == now or (was != was and now != now) for was, now in zip(*rows, strict=True))
            for rows in zip([row.values() for row in written], read, strict=True)
        ] == [True] * 4

    with_nulls = pandas.read_parquet(trials, dtype_backend="pyarrow")
    assert [None if pandas.isna(x) else x for x in with_nulls["ended_at"]][1:] == [None] * 3
    assert with_nulls["value"].isna().tolist() == [False, False, False, True], "NaN is not null"
    assert same(polars.read_parquet(trials).iter_rows())
    assert same(row.values() for row in duckdb.sql(f"from '{trials}'").to_arrow_table().to_pylist())
    assert len(pandas.read_parquet(epochs)) == len(polars.read_parquet(epochs)) == 8
    assert pq.read_schema(trials).equals(trials_schema(), check_metadata=True)


def test_a_study_of_a_search_becomes_rows(tmp_path):
    storage = open_storage(str(tmp_path / "optuna.journal"))
    space = build_search_space(load_setting("resnet20-digits"), "adam")
    study = Study("a", storage=storage, space=space, sampler="random", seed=3, protocol={"epochs": 2})
    for values in ((0.5, 0.625), (0.25,)):
        trial = study.ask()
        for report in make_epochs(values):
            study.report(trial.number, report, host="node-2")
        study.tell_complete(trial.number) if len(values) == 2 else study.tell_stopped(trial.number, "rung 1")
    rows = trials_table([load_search(storage, "a")]).to_pylist()
    assert [(row["value"], row["state"], row["reason"], row["host"]) for row in rows] == [
        (0.625, "complete", None, "node-2"),
        (0.25, "stopped", "rung 1", "node-2"),
    ]
    for row, trial in zip(rows, study.trials.values(), strict=True):
        assert (row["beta1"], row["beta2"]) == trial.hyper_parameters["betas"]
        assert row["lr"] == trial.hyper_parameters["lr"] and row["seed"] == trial.seed
    assert all(value is not None for value in epochs_table([load_search(storage, "a")]).column("reported_at"))


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new folder" / "file"
    for text in ("first", "second"):
        with replaced(target) as temporary:
            temporary.write_text(text)
            assert text == "first" or target.read_text() == "first"
    with pytest.raises(OSError, match="full"), replaced(target) as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


def test_the_tables_are_compressed(tmp_path):
    trial = make_stored_trial(0, TrialState.COMPLETE, [0.5] * 4)
    [trials, _] = write_tables(tmp_path, [make_stored(trial)])
    assert pq.ParquetFile(trials).metadata.row_group(0).column(0).compression == "ZSTD"
    assert isinstance(pq.read_table(trials), pa.Table)
