"""From the regret of many searches to the tables of the README: quartiles, epochs to a target, and their ratios."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[np.float64]
Curves = dict[tuple[str, int], Array]
"""(problem, seed) -> regret after every step of the search, in accuracy."""


def curves_of(table: pa.Table) -> tuple[dict[str, Curves], Array]:
    """Give the regret of every search by its name, and the epochs of the steps."""
    curves: dict[str, dict[tuple[str, int], list[float]]] = {}
    columns = ("search", "problem", "seed", "regret")
    for search, problem, seed, regret in zip(*(table[name].to_pylist() for name in columns), strict=True):
        curves.setdefault(search, {}).setdefault((problem, seed), []).append(regret)
    epochs = np.array(sorted(set(table["epochs"].to_pylist())), dtype=float)
    return {search: {key: np.array(r) for key, r in of.items()} for search, of in curves.items()}, epochs


def epochs_to_keep(regret: Array, epochs: Array, target: float) -> float:
    """Give the epochs after which the regret is at most `target` for the rest of the run; inf where it never is."""
    misses = np.flatnonzero(regret > target)
    after = 0 if len(misses) == 0 else int(misses[-1]) + 1
    return float(epochs[after]) if after < len(epochs) else math.inf


def ratios(ours: Sequence[float], theirs: Sequence[float], spent: float) -> tuple[Array, int]:
    """Give ours / theirs for pairs of epochs to a target, and how many pairs say nothing.

    Where only they never reach it, the epochs spent stand for theirs: the ratio is too high, against us. Where only we
    never do, it is inf. Pairs in which neither does are left out, and counted.
    """
    informative = [(a, b) for a, b in zip(ours, theirs, strict=True) if math.isfinite(a) or math.isfinite(b)]
    return np.array([a / min(b, spent) for a, b in informative]), len(ours) - len(informative)


def quartiles(values: Sequence[float] | Array) -> tuple[float, float, float]:
    """Give median, first and third quartile, each one of the values, so that inf does no harm."""
    q25, q50, q75 = np.quantile(np.asarray(values), [0.25, 0.5, 0.75], method="higher")
    return float(q50), float(q25), float(q75)


def render(table: pa.Table, *, ours: str, others: Sequence[str], at: Sequence[int], targets: Sequence[float]) -> str:
    """Render the report as Markdown.

    Args:
        at: epochs at which to show the regret.
        targets: regrets to reach and keep; the first also by problem.
    """
    curves, epochs = curves_of(table)
    keys = sorted(curves[ours])
    problems = list(dict.fromkeys(table["problem"].to_pylist()))
    seeds = len({seed for _, seed in keys})
    spent = float(epochs[-1])
    lines = [f"{seeds} seeds x {len(problems)} problems = {len(keys)} searches each; {spent:.0f} epochs each.", ""]

    lines += ["Regret in accuracy points after so many epochs, median [quartiles]; - : no answer yet.", ""]
    lines += _table(
        ["search", *(f"{epoch}" for epoch in at)],
        [[name, *(_points([of[key][_step(epochs, e)] for key in keys]) for e in at)] for name, of in curves.items()],
    )
    lines += ["", f"The same after {spent:.0f} epochs, by problem.", ""]
    lines += _table(
        ["search", *problems],
        [
            [name, *(_points([of[key][-1] for key in keys if key[0] == problem]) for problem in problems)]
            for name, of in curves.items()
        ],
    )
    for target in targets:
        reached = {name: [epochs_to_keep(of[key], epochs, target) for key in keys] for name, of in curves.items()}
        lines += ["", f"Epochs until the regret is at most {100 * target:g} points and stays there.", ""]
        rows = []
        for name in curves:
            share = np.mean(np.isfinite(reached[name]))
            rows.append([name, _epochs(reached[name], spent), f"{share:.0%}"])
            for other in others:
                values, silent = ratios(reached[name], reached[other], spent)
                rows[-1].append("" if other == name else f"{_ratio(values)}, n = {len(values)} ({silent} neither)")
        lines += _table(["search", "median [quartiles]", "reached", *(f"epochs / {other}'s" for other in others)], rows)
    lines += ["", f"Epochs to {100 * targets[0]:g} points by problem: median, and how many of {seeds} reached it.", ""]
    rows = []
    for name, of in curves.items():
        row = [name]
        for problem in problems:
            needed = [epochs_to_keep(of[key], epochs, targets[0]) for key in keys if key[0] == problem]
            median = quartiles(needed)[0]
            row.append(f"{_count(median, spent)} ({np.isfinite(needed).sum()})")
        rows.append(row)
    lines += _table(["search", *problems], rows)
    return "\n".join(lines)


def _step(epochs: Array, epoch: int) -> int:
    return int(np.searchsorted(epochs, epoch, side="right")) - 1


def _points(regrets: Sequence[float]) -> str:
    shown = ["-" if value > 0.5 else f"{100 * value:.2f}" for value in quartiles(regrets)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _count(epochs: float, spent: float) -> str:
    return f"{epochs:.0f}" if math.isfinite(epochs) else f"> {spent:.0f}"


def _epochs(values: Sequence[float], spent: float) -> str:
    median, low, high = quartiles(values)
    return f"{_count(median, spent)} [{_count(low, spent)}, {_count(high, spent)}]"


def _ratio(values: Array) -> str:
    if len(values) == 0:
        return "-"
    shown = [f"{value:.2f}" if math.isfinite(value) else "never" for value in quartiles(values)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
