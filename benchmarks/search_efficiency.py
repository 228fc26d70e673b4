"""Is it a better search? Regret against epochs spent: ours, random search, and plain Ray Tune.

    python -m benchmarks.search_efficiency              all of it, one process, minutes
    python -m benchmarks.search_efficiency --seeds 2    a look

All searches drive the real classes (Optuna, ours, Ray's) in the order in which Ray Tune's controller calls them, on the
learning curves of `curves.py`, under a simulated clock. See README.md for the method and the results.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import FloatDistribution
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.curves import CHANCE, EPOCHS, PROBLEMS, Problem
from benchmarks.regret import render
from benchmarks.simulated_tune import MAX_CONCURRENT, UNLIMITED, Arm, SimulatedTrial, simulate
from tune_adamsrt.budget import Budget
from tune_adamsrt.rungs import Rungs, choose_rungs
from tune_adamsrt.samplers import SAMPLERS, JointSampler
from tune_adamsrt.scheduler import Promotion, SuccessiveHalving
from tune_adamsrt.searcher import StudySearcher
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.study import Study

SETTING = load_setting("resnet18-cifar10")
SPACE = build_search_space(SETTING, "adamsrt")

FULL_BUDGETS = 16  # what each search may spend, in trainings of EPOCHS epochs
TABLE_AT = (1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)  # parts of that
TARGETS = (0.01, 0.005)  # regret in accuracy; the first is the headline
RESULTS = Path(__file__).parent / "results"

RUNGS = choose_rungs(EPOCHS, min_epochs=SETTING.min_epochs, reduction_factor=SETTING.reduction_factor)
NOTE_EVERY = EPOCHS // 9

# What the default was before: the zero of the weight decay a category of its own.
SAMPLERS.add(
    "gated tpe",
    lambda space, seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
)
# Without the bound that keeps an ask short after thousands of trials.
SAMPLERS.add(
    "tpe, all shown",
    lambda space, seed: JointSampler(
        optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True), space, most_shown=sys.maxsize
    ),
)
# Stock Ray with our way to show a sampler the space, by its define-by-run function.
JOINT = JointSampler(optuna.samplers.RandomSampler(), SPACE)


class Ours:
    """Our study, searcher, scheduler and budget. Chosen: `Study.best`, the best trial at the full budget."""

    has_our_trainable = True

    def __init__(
        self,
        seed: int,
        *,
        sampler: str = "tpe",
        rungs: Sequence[int] = RUNGS,
        reduction_factor: int = SETTING.reduction_factor,
        published_first: bool = False,
        scheduler: type[SuccessiveHalving] = SuccessiveHalving,
        max_trials: int = UNLIMITED,
    ) -> None:
        self.study = Study(
            "benchmark",
            storage=optuna.storages.InMemoryStorage(),
            space=SPACE,
            sampler=sampler,
            seed=seed,
            protocol={"epochs": EPOCHS},
            first_points=[(point, "published best") for point in SPACE.first_points()] if published_first else (),
        )
        budget = Budget(self.study, trials=max_trials)
        at_rungs = Rungs(rungs, reduction_factor=reduction_factor)
        self.searcher = StudySearcher(self.study, budget, at_rungs)
        self.scheduler = scheduler(self.study, at_rungs, budget)

    def chosen(self, trials: Sequence[SimulatedTrial]) -> SimulatedTrial | None:
        best = self.study.best
        return None if best is None else trials[best.number]


class Stock:
    """Ray's OptunaSearch (its default sampler) and ASHAScheduler. Chosen: as `ResultGrid.get_best_result` does.

    The space is a define-by-run function, which their documentation offers for conditional spaces.

    Args:
        has_joint_space: no weight decay is the lower end of its range, as `JointSampler` has it.
        asha: grace_period and reduction_factor, where they are not ASHAScheduler's defaults.
    """

    has_our_trainable = False

    def __init__(self, seed: int, *, has_joint_space: bool = False, **asha: int) -> None:
        suggest = suggest_stock_jointly if has_joint_space else suggest_stock
        self.searcher = OptunaSearch(suggest, metric="value", mode="max", seed=seed)
        self.scheduler = ASHAScheduler(metric="value", mode="max", max_t=EPOCHS, **asha)

    def chosen(self, trials: Sequence[SimulatedTrial]) -> SimulatedTrial | None:
        return best_last_value(trials)


def suggest_stock(trial: Any) -> dict[str, Any]:
    return {"hyper_parameters": SPACE.suggest(trial)}


def suggest_stock_jointly(trial: Any) -> dict[str, Any]:
    """The same points, asked for as JointSampler asks for them."""
    ranges = {name: cast(FloatDistribution, distribution) for name, distribution in JOINT.joint.items()}
    point = {name: trial.suggest_float(name, of.low, of.high, log=of.log) for name, of in ranges.items()}
    return {"hyper_parameters": SPACE.suggest(optuna.trial.FixedTrial(JOINT.decode(point)))}


def best_last_value(trials: Sequence[SimulatedTrial]) -> SimulatedTrial | None:
    """What `ResultGrid.get_best_result` gives: whatever the epoch, of running and stopped trials too."""
    return max((trial for trial in trials if trial.epoch), key=lambda trial: trial.value, default=None)


def best_in_full(trials: Sequence[SimulatedTrial]) -> SimulatedTrial | None:
    """The best among the trials trained in full; of the stock classes' users only those who pick it by hand get it."""
    return max((trial for trial in trials if trial.epoch == EPOCHS), key=lambda trial: trial.value, default=None)


ARMS: dict[str, Callable[[int], Arm]] = {
    "ours": lambda seed: Ours(seed),
    "ours, published first": lambda seed: Ours(seed, published_first=True),
    "random": lambda seed: Ours(seed, sampler="random", rungs=()),
    "ray": lambda seed: Stock(seed, grace_period=10, reduction_factor=3),
    # Which part does it, and what else could be; not run unless named.
    "ours, gated": lambda seed: Ours(seed, sampler="gated tpe"),
    "ray, joint space": lambda seed: Stock(seed, has_joint_space=True, grace_period=10, reduction_factor=3),
    "ours, all shown": lambda seed: Ours(seed, sampler="tpe, all shown"),  # to compare with ours at --full-budgets 200
    "ours, random sampler": lambda seed: Ours(seed, sampler="random"),
    "ours, no rungs": lambda seed: Ours(seed, rungs=()),
    "ours, promotion": lambda seed: Ours(seed, scheduler=Promotion),
    "ours, Ray's rungs": lambda seed: Ours(seed, rungs=(10, 30, 90, 270)),
    "ours, rungs to 225": lambda seed: Ours(seed, rungs=(15, 45, 135, 225)),
    "ours, rungs 15 135 225": lambda seed: Ours(seed, rungs=(15, 135, 225)),
    "ours, half to 315": lambda seed: Ours(seed, rungs=(15, 45, 135, 225, 315), reduction_factor=2),
    "ours, half from 135": lambda seed: Ours(seed, rungs=(135, 225, 315), reduction_factor=2),
    "ours, half to 135": lambda seed: Ours(seed, rungs=(15, 30, 60, 135), reduction_factor=2),
    "ours, thirds to 315": lambda seed: Ours(seed, rungs=(15, 45, 135, 225, 315)),
    "ray, defaults": lambda seed: Stock(seed),  # thousands of trials, of which Optuna's TPE takes minutes
}
IN_FULL, LAST_VALUE = " (best in full)", " (best last value)"
HEADLINE = ("ours", "ours, published first", "random", "ray")


def measure(
    arm_name: str, problem: Problem, seed: int, workers: int = MAX_CONCURRENT, full_budgets: int = FULL_BUDGETS
) -> list[dict[str, Any]]:
    """Run one search; give the regret of what its user would choose after every NOTE_EVERY epochs."""
    arm = ARMS[arm_name](seed)
    rows: list[dict[str, Any]] = []
    other_reading = (IN_FULL, best_in_full) if isinstance(arm, Stock) else (LAST_VALUE, best_last_value)
    readings = {arm_name: arm.chosen, arm_name + other_reading[0]: other_reading[1]}

    def note(trials: list[SimulatedTrial], spent: int) -> None:
        for name, choose in readings.items():
            chosen = choose(trials)
            regret = problem.optimum - CHANCE if chosen is None else chosen.regret
            rows.append(
                {
                    "problem": problem.name,
                    "seed": seed,
                    "search": name,
                    "epochs": spent,
                    "regret": regret,
                    "has_answer": chosen is not None,
                    "trials": len(trials),
                    "in_full": sum(trial.epoch == EPOCHS for trial in trials),
                }
            )

    simulate(
        arm, problem, seed, max_epochs=full_budgets * EPOCHS, max_concurrent=workers, note=note, note_every=NOTE_EVERY
    )
    return rows


def run_all(
    arms: Sequence[str], seeds: Sequence[int], problems: Sequence[Problem], workers: int, full_budgets: int
) -> pa.Table:
    """Measure every search on every problem and seed, one after the other."""
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for done, seed in enumerate(seeds, start=1):
        for problem in problems:
            for arm in arms:
                rows += measure(arm, problem, seed, workers, full_budgets)
        print(f"{done} of {len(seeds)} seeds after {time.monotonic() - started:.0f} s", flush=True)
    return pa.Table.from_pylist(rows)


def render_results(table: pa.Table) -> str:
    measured = list(dict.fromkeys(table["search"].to_pylist()))
    others = [name for name in ("random", "ray", "ray" + IN_FULL) if name in measured]
    most = max(table["epochs"].to_pylist())
    return render(table, ours=measured[0], others=others, at=[int(most * part) for part in TABLE_AT], targets=TARGETS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0, help="for a look at other seeds than the recorded ones")
    parser.add_argument("--workers", type=int, default=MAX_CONCURRENT, help="trials at the same time")
    parser.add_argument("--full-budgets", type=int, default=FULL_BUDGETS, help="of a search, in trainings in full")
    parser.add_argument("--searches", nargs="+", default=HEADLINE, choices=list(ARMS), metavar="NAME")
    parser.add_argument("--problems", nargs="+", default=[p.name for p in PROBLEMS], metavar="NAME")
    parser.add_argument("--results", type=Path, default=RESULTS / "search_efficiency.parquet")
    parser.add_argument("--show", action="store_true", help="show the results there are, run nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Optuna's, about experimental and independent sampling
    if arguments.show:
        return print(render_results(pq.read_table(arguments.results)))
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    problems = [problem for problem in PROBLEMS if problem.name in arguments.problems]
    table = run_all(arguments.searches, seeds, problems, arguments.workers, arguments.full_budgets)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, arguments.results)
    print(render_results(table))


if __name__ == "__main__":
    main()
