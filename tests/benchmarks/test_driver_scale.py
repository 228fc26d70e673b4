"""The measurement of the driver: it drives a whole search, sums up the right calls, and takes the search up again."""

import pytest

from benchmarks import driver_scale
from tune_adamsrt.records import TrialState

WORKERS = 6


@pytest.mark.parametrize("scheduler", ["none", "halving", "promotion"])
def test_a_small_search_is_driven_measured_and_taken_up_again(scheduler, tmp_path):
    options = ["--trials", "20", "40", "--reports", "4", "--workers", str(WORKERS), "--no-tracking"]
    arguments = driver_scale.parse([*options, "--scheduler", scheduler, "--sampler", "random"])
    rows = driver_scale.measure(tmp_path, arguments)
    for row in rows:
        row["reopened"] = driver_scale.reopen(tmp_path / f"{row['trials']}.journal", arguments)
        assert row["calls"]["ask"]["n"] >= row["trials"] * driver_scale.WINDOW
        assert row["journal_mib"] * driver_scale.MIB == (tmp_path / f"{row['trials']}.journal").stat().st_size
        for call in row["calls"].values():
            assert 0 < call["cpu_median_ms"] <= call["cpu_p99_ms"] <= call["cpu_max_ms"]

    options = {"trials": 100, "reports": 4, "sampler": "random", "scheduler": scheduler}
    study = driver_scale.Driver(tmp_path / "40.journal", **options).study
    assert len(study.trials) == 40
    assert study.epochs_spent == rows[-1]["reports"]
    if scheduler == "none":
        assert all(trial.epoch == 4 for trial in study.in_state(TrialState.COMPLETE))
        assert {trial.state for trial in study.trials.values()} <= {*TrialState} - {TrialState.STOPPED}
        assert len(study.interrupted) == WORKERS == rows[-1]["reopened"]["interrupted"]
    tables = driver_scale.render({"rows": rows})
    assert "| 20 trials | 40 trials |" in tables and f"| {rows[-1]['reports']:,} |" in tables
