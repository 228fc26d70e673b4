"""What does tracking cost the search? Ours against Ray's MLflowLoggerCallback, in one run.

    python -m benchmarks.tracking_overhead                          10,000 reports, three rounds, minutes
    python -m benchmarks.tracking_overhead --trials 50 --rounds 1   a look

Both are called as the driver calls them, on its main thread, and log to the same `mlflow server` over HTTP (SQLite
behind it) on this machine. See README.md for the method and the results.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tune_adamsrt.mlflow.store import QUIET_ENVIRONMENT
from tune_adamsrt.records import EpochReport, SearchInfo, SearchSummary, TrialRecord, TrialState
from tune_adamsrt.tracking import Tracking

EPOCHS = 20
CONCURRENT = 8
RESULTS = Path(__file__).parent / "results" / "tracking_overhead.json"


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The URL of an MLflow server on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def make_report(epoch: int) -> EpochReport:
    return EpochReport(epoch, 0.9, 0.1, 0.9, 0.2, 0.9, 0.001, 2.5, 1000.0, 3.0, 0.1, 0.0001, time.time())


def in_order(trials: int) -> Iterator[tuple[int, int]]:
    """Trial and epoch of each report: CONCURRENT trials side by side, then the next ones."""
    for first in range(0, trials, CONCURRENT):
        for epoch in range(1, EPOCHS + 1):
            for number in range(first, min(first + CONCURRENT, trials)):
                yield number, epoch


def paced(reports_per_second: float) -> Callable[[], None]:
    """Wait for the moment of the next report."""
    due = time.perf_counter()

    def wait() -> None:
        nonlocal due
        due += 1 / reports_per_second
        time.sleep(max(0.0, due - time.perf_counter()))

    return wait


class Stopwatch:
    """Adds up what calls take the calling thread."""

    def __init__(self) -> None:
        self.per_report: list[float] = []
        self.other_s = 0.0

    def report(self, call: Callable[..., object], *args: Any) -> None:
        began = time.perf_counter()
        call(*args)
        self.per_report.append(time.perf_counter() - began)

    def other(self, call: Callable[..., object], *args: Any) -> None:
        began = time.perf_counter()
        call(*args)
        self.other_s += time.perf_counter() - began


def measure_ours(url: str, *, experiment: str, trials: int, reports_per_second: float) -> dict[str, Any]:
    info = SearchInfo(
        name=f"{experiment}/adamsrt",
        setting=experiment,
        optimizer="adamsrt",
        study_name=experiment,
        trials=trials,
        epochs=EPOCHS,
        max_epochs_spent=trials * EPOCHS,
        max_concurrent=CONCURRENT,
        time_budget_s=None,
        space={},
        tags={},
        key=experiment,
    )
    watch, wait = Stopwatch(), paced(reports_per_second)
    problems: list[str] = []
    tracking = Tracking(url, on_warning=problems.append)
    records: dict[int, TrialRecord] = {}
    began = time.perf_counter()
    watch.other(tracking.search_started, info)
    clock = time.pthread_getcpuclockid(tracking._writer._thread.ident or 0)
    for number, epoch in in_order(trials):
        wait()
        if epoch == 1:
            record = TrialRecord(number, {"lr": 0.01, "betas": (0.9, 0.99)}, seed=number, started_at=time.time())
            records[number] = record
            watch.other(tracking.trial_started, record)
        record, report = records[number], make_report(epoch)
        record.epochs.append(report)
        watch.report(tracking.epoch_reported, record, report)
        if epoch == EPOCHS:
            record.state, record.ended_at = TrialState.COMPLETE, time.time()
            watch.other(tracking.trial_ended, record)
    seconds = time.perf_counter() - began
    thread_cpu_s = time.clock_gettime(clock)
    sent = tracking.sent.epochs
    ended = time.perf_counter()
    tracking.search_ended(SearchSummary(None, trials, list(records.values()), trials * EPOCHS, seconds, "done"))
    is_delivered = tracking.close(timeout_s=600.0)
    if not is_delivered:
        raise RuntimeError(f"not all is delivered: {problems}")
    return {
        **summarize(watch, seconds),
        "thread_cpu_share": thread_cpu_s / seconds,
        "delivered_meanwhile": sent / (trials * EPOCHS),
        "seconds_until_delivered": time.perf_counter() - ended,
    }


class TuneTrial:
    """What the callback asks of a Tune trial."""

    def __init__(self, number: int) -> None:
        self.config = {"lr": 0.01, "betas": (0.9, 0.99)}
        self.number = number

    def __str__(self) -> str:
        return f"trial-{self.number:03d}"


def measure_ray(url: str, *, experiment: str, trials: int) -> dict[str, Any]:
    """The same calls without a pace, since they take longer than any."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    watch = Stopwatch()
    callback = MLflowLoggerCallback(tracking_uri=url, experiment_name=experiment)
    callback.setup()
    records: dict[int, TuneTrial] = {}
    began = time.perf_counter()
    for number, epoch in in_order(trials):
        if epoch == 1:
            records[number] = TuneTrial(number)
            watch.other(callback.log_trial_start, records[number])
        watch.report(callback.log_trial_result, epoch, records[number], tune_result(make_report(epoch)))
        if epoch == EPOCHS:
            watch.other(callback.log_trial_end, records[number])
    return summarize(watch, time.perf_counter() - began)


def tune_result(report: EpochReport) -> dict[str, Any]:
    """Our report with what Tune itself adds to a result."""
    return {
        **vars(report),
        "timestamp": int(time.time()),
        "done": False,
        "training_iteration": report.epoch,
        "trial_id": "0123abcd",
        "date": "2026-01-01_00-00-00",
        "time_this_iter_s": report.seconds,
        "time_total_s": report.seconds * report.epoch,
        "pid": os.getpid(),
        "hostname": platform.node(),
        "node_ip": "127.0.0.1",
        "time_since_restore": report.seconds * report.epoch,
        "iterations_since_restore": report.epoch,
    }


def summarize(watch: Stopwatch, seconds: float) -> dict[str, Any]:
    return {
        "reports": len(watch.per_report),
        "seconds": seconds,
        "load": os.getloadavg()[0],
        "median_ms": 1000 * statistics.median(watch.per_report),
        "p99_ms": 1000 * statistics.quantiles(watch.per_report, n=100)[98] if len(watch.per_report) >= 100 else None,
        "max_ms": 1000 * max(watch.per_report),
        "driver_ms_per_report": 1000 * (sum(watch.per_report) + watch.other_s) / len(watch.per_report),
        "driver_share": (sum(watch.per_report) + watch.other_s) / seconds,
    }


def points_stored(folder: Path, experiment: str) -> int:
    """How many values the database has of an experiment's trials."""
    query = """
        SELECT count(*) FROM metrics JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)
        WHERE key = 'value' AND experiments.name = ?
    """
    with sqlite3.connect(folder / "mlflow.db") as database:
        return int(database.execute(query, (experiment,)).fetchone()[0])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=500, help=f"of {EPOCHS} epochs each (default: 500)")
    parser.add_argument("--ray-trials", type=int, default=1, help="for Ray's callback, which is slow (default: 1)")
    parser.add_argument("--reports-per-second", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7"}  # MLflow's defaults
    os.environ.update(QUIET_ENVIRONMENT | patient)  # alike for both
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    rounds = []
    with tempfile.TemporaryDirectory() as name, mlflow_server(Path(name)) as url:
        for index in range(arguments.rounds):
            ray = measure_ray(url, experiment=f"ray-{index}", trials=arguments.ray_trials)
            ours = measure_ours(
                url,
                experiment=f"ours-{index}",
                trials=arguments.trials,
                reports_per_second=arguments.reports_per_second,
            )
            stored = points_stored(Path(name), f"ours-{index}")
            if stored != arguments.trials * EPOCHS:
                raise RuntimeError(f"{stored} points in the store, of {arguments.trials * EPOCHS}")
            rounds.append({"ours": ours, "ray": ray})
            write_results(rounds, vars(arguments))
            print(f"round {index + 1} of {arguments.rounds} done", flush=True)
    print(render(rounds))


def write_results(rounds: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> None:
    versions = {name: importlib.metadata.version(name) for name in ("mlflow", "ray")}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), **versions}
    RESULTS.write_text(json.dumps({"machine": machine, "arguments": arguments, "rounds": rounds}, indent=1) + "\n")


def render(rounds: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: median and range over the rounds."""
    rows = [
        ("reports in a round", "reports", 1, ".0f"),
        ("driver, per report: median, ms", "median_ms", 1, ".3f"),
        ("driver, per report: 99th percentile, ms", "p99_ms", 1, ".3f"),
        ("driver, per report: longest, ms", "max_ms", 1, ".1f"),
        ("driver, all calls, per report, ms", "driver_ms_per_report", 1, ".3f"),
        ("driver, share of wall time, %", "driver_share", 100, ".2f"),
        ("background thread's CPU, share of wall time, %", "thread_cpu_share", 100, ".1f"),
        ("delivered when the last report comes, %", "delivered_meanwhile", 100, ".0f"),
        ("from then until all is delivered, s", "seconds_until_delivered", 1, ".0f"),
        ("load average of the machine", "load", 1, ".0f"),
    ]
    lines = ["|   | ours | Ray's callback |", "|---|---|---|"]
    for label, key, factor, form in rows:
        cells = []
        for who in ("ours", "ray"):
            values = sorted(factor * one[who][key] for one in rounds if one[who].get(key) is not None)
            middle = format(statistics.median(values), form) if values else "-"
            spread = f" [{values[0]:{form}}, {values[-1]:{form}}]" if values and values[0] < values[-1] else ""
            cells.append(middle + spread)
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
