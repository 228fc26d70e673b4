"""The measurement of the driver: it drives a whole search, sums up the right calls, and takes the search up again."""

import shutil

import pytest

from benchmarks import driver_scale
from tune_adamsrt.records import TrialState

WORKERS = 4


@pytest.mark.parametrize("scheduler", ["none", "halving", "promotion"])
def test_a_small_search_is_driven_measured_and_taken_up_again(scheduler, tmp_path):
    options = ["--trials", "10", "20", "--reports", "4", "--workers", str(WORKERS), "--no-tracking"]
    arguments = driver_scale.parse([*options, "--scheduler", scheduler, "--sampler", "random"])
    rows = driver_scale.measure(tmp_path, arguments)
    for row in rows:
        journal = tmp_path / f"{row['trials']}.journal"
        assert row["journal_mib"] * driver_scale.MIB == journal.stat().st_size
        row["reopened"] = driver_scale.reopen(shutil.copy(journal, tmp_path / "copy.journal"), arguments)
        assert row["calls"]["ask"]["n"] >= row["trials"] * driver_scale.WINDOW
        for call in row["calls"].values():
            assert 0 < call["cpu_median_ms"] <= call["cpu_p99_ms"] <= call["cpu_max_ms"]

    study = driver_scale.Driver(journal, trials=100, reports=4, sampler="random", scheduler=scheduler).study
    assert len(study.trials) == 20
    assert study.epochs_spent == rows[-1]["reports"]
    if scheduler == "none":
        assert {trial.epoch for trial in study.in_state(TrialState.COMPLETE)} == {4}
        assert not study.in_state(TrialState.STOPPED)
        assert len(study.interrupted) == WORKERS == rows[-1]["reopened"]["interrupted"]
    tables = driver_scale.render({"rows": rows})
    assert "| 10 trials | 20 trials |" in tables and f"| {rows[-1]['reports']:,} |" in tables
