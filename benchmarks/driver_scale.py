"""What does the driver itself cost, and how does that grow with the trials of a search?

    python -m benchmarks.driver_scale                                        10,000 trials of 20 reports, 1,000 workers
    python -m benchmarks.driver_scale --trials 300 1000 --workers 100        a look

One search under a simulated clock, with what a real one has: StudySearcher, the scheduler, the study in a Journal file
on disk, Tracking with its thread and an SQLite store. Each call is timed as Tune's controller makes it; the calls just
before each number of trials are summed up there. Then a driver takes each of these searches up again after it was
killed. See README.md for the method and the results.
"""

import argparse
import heapq
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from benchmarks.curves import EPOCHS, PROBLEMS
from benchmarks.simulated_tune import SimulatedTrial, result_of
from tune_adamsrt.budget import Budget
from tune_adamsrt.records import Observer, SearchInfo
from tune_adamsrt.results import write_tables
from tune_adamsrt.rungs import Rungs, choose_rungs
from tune_adamsrt.scheduler import Promotion, SuccessiveHalving
from tune_adamsrt.searcher import StudySearcher
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import open_storage
from tune_adamsrt.studies import load_search
from tune_adamsrt.study import Study
from tune_adamsrt.tracking import Tracking

SETTING = load_setting("resnet18-cifar10")
SPACE = build_search_space(SETTING, "adamsrt")
PROBLEM = PROBLEMS[0]
NAME = "scale"
MIB = 2**20
CHECKPOINT_EVERY = 5  # reports
WINDOW = 0.1  # of the trials so far: over how many calls are summed up
RESULTS = Path(__file__).parent / "results" / "driver_scale.json"


class Driver:
    """What runs on the head: the study and all that Tune's controller calls.

    Args:
        scheduler: halving, promotion, or none, where every trial gives all reports.
    """

    def __init__(
        self,
        journal: Path,
        *,
        trials: int,
        reports: int,
        sampler: str,
        scheduler: str,
        observers: Sequence[Observer] = (),
    ) -> None:
        began = time.perf_counter(), time.process_time()
        self.storage = open_storage(str(journal))
        replayed = time.perf_counter(), time.process_time()
        self.study = Study(
            NAME,
            storage=self.storage,
            space=SPACE,
            sampler=sampler,
            seed=0,
            protocol={"epochs": reports},
            observers=observers,
        )
        epochs = choose_rungs(reports, min_epochs=1, reduction_factor=2) if scheduler != "none" else ()
        rungs = Rungs(epochs, reduction_factor=2)
        budget = Budget(self.study, trials=trials)
        self.searcher = StudySearcher(self.study, budget, rungs)
        self.scheduler = (Promotion if scheduler == "promotion" else SuccessiveHalving)(self.study, rungs, budget)
        ready = time.perf_counter(), time.process_time()
        self.times_to_open = {
            "replay_s": replayed[0] - began[0],
            "rebuild_s": ready[0] - replayed[0],
            "cpu_s": ready[1] - began[1],
        }


class Stopwatch:
    """What each call took the calling thread: (CPU seconds, seconds) by the kind of call."""

    def __init__(self) -> None:
        self.taken: dict[str, list[tuple[float, float]]] = {}

    def time(self, kind: str, call: Callable[..., Any], *args: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        answer = call(*args)
        self.taken.setdefault(kind, []).append((time.thread_time() - cpu, time.perf_counter() - wall))
        return answer

    def summarize(self) -> dict[str, dict[str, float]]:
        return {kind: summary_of(taken) for kind, taken in self.taken.items()}


def summary_of(taken: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median, 99th percentile and maximum in milliseconds, of CPU time and of the clock."""
    found: dict[str, float] = {"n": len(taken)}
    for name, seconds in zip(("cpu", "wall"), zip(*taken, strict=True), strict=True):
        p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else seconds[0]
        found |= {
            f"{name}_median_ms": 1000 * statistics.median(seconds),
            f"{name}_p99_ms": 1000 * p99,
            f"{name}_max_ms": 1000 * max(seconds),
        }
    return found


def simulate(driver: Driver, *, reports: int, workers: int, marks: Sequence[int], seed: int = 0) -> Iterator[Stopwatch]:
    """Run the search until so many trials have started, as `simulated_tune.simulate` does; stop there, as if killed.

    Yields:
        At each of the marks (numbers of trials started), the calls since WINDOW before it.
    """
    searcher, scheduler, study = driver.searcher, driver.scheduler, driver.study
    watch = Stopwatch()
    trials: dict[int, SimulatedTrial] = {}
    clock: list[tuple[float, int, str]] = []  # when a report comes, of which trial, and Tune's name for it
    asked = itertools.count()
    waiting = list(marks)
    windows = {round(mark * (1 - WINDOW)) for mark in marks}

    def fill_workers(now: float) -> None:
        while len(clock) < workers and len(study.trials) < marks[-1]:
            trial_id = f"{next(asked):06d}"
            config = watch.time("ask", searcher.suggest, trial_id)
            if config is None or config == Searcher.FINISHED:
                return
            number = config["trial_number"]
            if number not in trials:
                trials[number] = SimulatedTrial(number, config["hyper_parameters"], PROBLEM, seed)
                if len(study.trials) in windows:
                    watch.taken.clear()
            trial = trials[number]  # with promotion, one that goes on from its checkpoint
            trial.trial_id = trial_id
            heapq.heappush(clock, (now + trial.epoch_time, number, trial_id))
            if len(study.trials) == waiting[0]:
                return

    fill_workers(0.0)
    while clock:
        now, number, trial_id = heapq.heappop(clock)
        trial = trials[number]
        result = train(trial, reports) | {"trial_number": number, "trial_id": trial_id, "hostname": "worker"}
        is_done = trial.epoch == reports or "failure" in result
        decision = TrialScheduler.STOP
        if not is_done:
            decision = watch.time("report", scheduler.on_trial_result, None, trial, result)
        if decision == TrialScheduler.STOP:
            watch.time("tell", searcher.on_trial_complete, trial_id, result | {"done": True})
        else:
            cpu, wall = watch.taken["report"].pop()  # of the scheduler; a report is both calls
            watch.time("report", searcher.on_trial_result, trial_id, result)
            of_searcher = watch.taken["report"].pop()
            watch.taken["report"].append((cpu + of_searcher[0], wall + of_searcher[1]))
            if trial.epoch % CHECKPOINT_EVERY == 0:
                watch.time("checkpoint", study.note_checkpoint, number, f"/runs/tune-cache/{trial_id}/{trial.epoch}")
            heapq.heappush(clock, (now + trial.epoch_time, number, trial_id))
        fill_workers(now)
        if waiting and len(study.trials) == waiting[0]:
            waiting.pop(0)
            yield watch
            if not waiting:
                return


def train(trial: SimulatedTrial, reports: int) -> dict[str, Any]:
    """Train up to the next of so many reports, spread over a whole run; give what our Trainable reports."""
    trial.epoch += 1
    epoch = round(trial.epoch * EPOCHS / reports)
    accuracy, loss = trial.run.result(epoch)
    if trial.run.has_diverged(epoch):
        return result_of(trial.epoch, accuracy, accuracy, loss) | {"failure": f"diverged at epoch {trial.epoch}"}
    trial.value = trial.best = max(trial.best, accuracy)
    return result_of(trial.epoch, trial.value, accuracy, loss)


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one search; one row per number of trials. The journal as it was there is kept as `<trials>.journal`."""
    journal = folder / "optuna.journal"
    marks = sorted(arguments.trials)
    info = SearchInfo(
        name=f"{NAME}/adamsrt",
        setting=NAME,
        optimizer="adamsrt",
        study_name=NAME,
        trials=marks[-1],
        epochs=arguments.reports,
        max_epochs_spent=marks[-1] * arguments.reports,
        max_concurrent=arguments.workers,
        time_budget_s=None,
        space={},
        tags={},
        key=NAME,
    )
    tracking = Tracking(f"sqlite:///{folder}/mlflow.db") if arguments.tracking else None
    observers: list[Observer] = [tracking] if tracking is not None else []
    if arguments.terminal:
        from rich.console import Console

        from tune_adamsrt.terminal import TerminalView

        observers.append(TerminalView(Console(file=(folder / "terminal.log").open("w"))))
    driver = Driver(
        journal,
        trials=marks[-1],
        reports=arguments.reports,
        sampler=arguments.sampler,
        scheduler=arguments.scheduler,
        observers=observers,
    )
    for observer in observers:
        observer.search_started(info)
    driver.study.note_start(info)
    rows = []
    began, cpu_s = time.perf_counter(), time.thread_time()
    running = simulate(driver, reports=arguments.reports, workers=arguments.workers, marks=marks)
    for mark, watch in zip(marks, running, strict=True):
        row = {
            "trials": mark,
            "reports": driver.study.epochs_spent,
            "calls": watch.summarize(),
            "rss_mib": rss_bytes() / MIB,
            "journal_mib": journal.stat().st_size / MIB,
            "seconds": time.perf_counter() - began,
            "driver_thread_cpu_s": time.thread_time() - cpu_s,
            "epochs_in_mlflow": 0 if tracking is None else tracking.sent.epochs,
            "load": os.getloadavg()[0],
        }
        rows.append(row)
        shutil.copyfile(journal, folder / f"{mark}.journal")
        medians = [f"{kind} {call['cpu_median_ms']:.2f} ms" for kind, call in row["calls"].items()]
        print(f"{mark} trials after {row['seconds']:.0f} s; CPU, median: {', '.join(medians)}", flush=True)
    if tracking is not None:
        tracking.deliver(0.0)  # what is missing stays missing: the driver was killed
    return rows


def reopen(journal: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Take a search up again whose driver was killed, in a process of its own; and write its tables."""
    before = rss_bytes()
    driver = Driver(
        journal,
        trials=10 * max(arguments.trials),
        reports=arguments.reports,
        sampler=arguments.sampler,
        scheduler=arguments.scheduler,
    )
    interrupted = len(driver.study.interrupted)
    driver.study.interrupted.clear()  # these need no sampler
    watch = Stopwatch()
    watch.time("first ask", driver.searcher.suggest, "a")
    watch.time("second ask", driver.searcher.suggest, "b")
    opened = rss_bytes()
    began = time.perf_counter(), time.process_time()
    write_tables(journal.parent, [load_search(driver.storage, NAME)])
    return {
        **driver.times_to_open,
        "interrupted": interrupted,
        "first_ask_ms": 1000 * watch.taken["first ask"][0][0],
        "second_ask_ms": 1000 * watch.taken["second ask"][0][0],
        "rss_before_mib": before / MIB,
        "rss_mib": opened / MIB,
        "tables_s": time.perf_counter() - began[0],
        "tables_cpu_s": time.process_time() - began[1],
        "rss_with_tables_mib": rss_bytes() / MIB,
    }


def rss_bytes() -> int:
    """Give the memory that this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def render(search: dict[str, Any]) -> str:
    """Markdown tables of one search: the calls, then the driver as a whole."""
    rows = search["rows"]
    lines = ["| call | " + " | ".join(f"{row['trials']:,} trials" for row in rows) + " |"]
    lines.append("|---" * (1 + len(rows)) + "|")
    for clock in ("cpu", "wall"):
        for kind in ("ask", "report", "tell", "checkpoint"):
            cells = [of_call(row["calls"].get(kind), clock) for row in rows]
            lines.append(f"| {kind}, {'CPU' if clock == 'cpu' else 'clock'} | " + " | ".join(cells) + " |")
    whole = [
        ("reports so far", lambda row: f"{row['reports']:,}"),
        ("memory of the driver, MiB", lambda row: f"{row['rss_mib']:.0f}"),
        ("journal file, MiB", lambda row: f"{row['journal_mib']:.1f}"),
        ("driver's thread so far, CPU s", lambda row: f"{row['driver_thread_cpu_s']:.0f}"),
        ("epochs in MLflow by then", lambda row: f"{row['epochs_in_mlflow']:,}"),
        ("resume: read the journal, s", lambda row: f"{row['reopened']['replay_s']:.1f}"),
        ("resume: rebuild the study, s", lambda row: f"{row['reopened']['rebuild_s']:.1f}"),
        ("resume: both, CPU s", lambda row: f"{row['reopened']['cpu_s']:.1f}"),
        ("resume: first ask, CPU ms", lambda row: f"{row['reopened']['first_ask_ms']:.0f}"),
        ("resume: memory, MiB", lambda row: f"{row['reopened']['rss_mib']:.0f}"),
        ("Parquet tables, CPU s", lambda row: f"{row['reopened']['tables_cpu_s']:.1f}"),
        ("load of the machine", lambda row: f"{row['load']:.1f}"),
    ]
    for label, cell in whole:
        lines.append(f"| {label} | " + " | ".join(cell(row) for row in rows) + " |")
    return "\n".join(lines)


def of_call(call: dict[str, float] | None, clock: str) -> str:
    if call is None:
        return "-"
    return " / ".join(f"{call[f'{clock}_{what}_ms']:.2f}" for what in ("median", "p99", "max"))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    if arguments.reopen is not None:
        print(json.dumps(reopen(arguments.reopen, arguments)))
        return
    options = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        rows = measure(Path(name), arguments)
        for row in rows:
            kept = Path(name) / f"{row['trials']}.journal"
            command = [sys.executable, "-m", "benchmarks.driver_scale", *options, "--reopen", str(kept)]
            row["reopened"] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    search = {"machine": machine(), "arguments": {key: str(value) for key, value in vars(arguments).items()}}
    search["rows"] = rows
    print(render(search))
    if arguments.results is not None:
        kept_results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
        arguments.results.write_text(json.dumps(kept_results | {arguments.scheduler: search}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("mlflow", "optuna", "ray")}
    return {"cores": os.cpu_count(), "python": platform.python_version(), **versions}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 3000, 10000], help="where to sum up")
    parser.add_argument("--reports", type=int, default=20, help="of a trial in full (default: 20)")
    parser.add_argument("--workers", type=int, default=1000, help="trials side by side (default: 1000)")
    parser.add_argument("--scheduler", default="halving", choices=("halving", "promotion", "none"))
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--tracking", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--terminal", action="store_true", help="with the plain lines of TerminalView, into a file")
    parser.add_argument("--folder", type=Path, help="where the journal is written: a disk like the head's")
    parser.add_argument("--results", type=Path, help=f"keep the figures there ({RESULTS.name})")
    parser.add_argument("--reopen", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
