"""What speaks against comparing the optimizers of one setting, and what a reader must know before doing so. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from tune_adamsrt.reports.comparison import Cell
from tune_adamsrt.reports.scales import stored_space
from tune_adamsrt.reports.significance import PairTest, Test

SPECIAL_CASES = {"adams": "adam", "adamsrt": "adam", "adamg": "adam", "sgdmrt": "sgd"}
"""Optimizer -> the one that it becomes with one group per element (arXiv:2006.13382)."""

BUDGET_TOLERANCE = 0.1  # of the largest; early stopping makes the epochs spent by equal searches differ


def refusals_of(cells: Mapping[str, Cell]) -> tuple[str, ...]:
    """Say why the optimizers of a setting must not be compared: they were trained under different protocols."""
    names = dict.fromkeys(name for cell in cells.values() for name in cell.protocol)
    lines = [
        _difference(name.replace("_", " "), {key: cell.protocol.get(name) for key, cell in cells.items()})
        for name in names
    ]
    return tuple(line for line in lines if line)


def flags_of(cells: Mapping[str, Cell], tests: Sequence[PairTest], *, test: Test, alpha: float) -> tuple[str, ...]:
    """Say what a reader must know of the optimizers of a setting before comparing them."""
    return (*_unequal(cells, test), *_lost_to_special_case(cells, tests, alpha), *_single(cells))


def _unequal(cells: Mapping[str, Cell], test: Test) -> list[str]:
    # Not the number of trials: at equal epochs, whoever is stopped early more often has more of them.
    lines = [
        _difference("epochs allowed to the search", {n: cell.search_epochs_allowed for n, cell in cells.items()}),
        _apart("epochs spent by the searches", {n: cell.search_epochs_spent for n, cell in cells.items()}),
        _apart("epochs spent to confirm", {n: cell.confirm_epochs_spent for n, cell in cells.items()}),
        _difference("seeds", {name: _listed(cell.seeds) for name, cell in cells.items()}),
    ]
    for facts in ({n: c.method for n, c in cells.items()}, {n: c.versions for n, c in cells.items()}):
        for fact in dict.fromkeys(fact for known in facts.values() for fact in known):
            shown = fact.replace("version.", "version of ").replace("_", " ")
            lines.append(_difference(shown, {name: known.get(fact) for name, known in facts.items()}))
    few = [name for name, cell in cells.items() if len(cell.test) < 2]
    if few:
        lines.append(f"one seed only, so that nothing can be tested: {', '.join(few)}")
    if test is Test.PAIRED and len({cell.seeds for cell in cells.values()}) > 1:
        lines.append("paired tests use the seeds that both optimizers share; the means are over all seeds")
    return [line for line in lines if line]


def _lost_to_special_case(cells: Mapping[str, Cell], tests: Sequence[PairTest], alpha: float) -> list[str]:
    """An optimizer that can be another one, and loses to it by more than noise, was not tuned enough.

    More than noise: p < alpha for this pair alone. A warning should come too early rather than too late, so it is not
    corrected for the number of pairs.
    """
    lines = []
    p_values = {frozenset((found.first, found.second)): found.p for found in tests}
    for name, special in SPECIAL_CASES.items():
        p = p_values.get(frozenset((name, special)))
        if p is None or p >= alpha:
            continue
        mine, theirs = cells[name], cells[special]
        if mine.test_accuracy.mean >= theirs.test_accuracy.mean:
            continue
        line = (
            f"{name} contains {special} (one group per element), yet loses to it by "
            f"{100 * (theirs.test_accuracy.mean - mine.test_accuracy.mean):.2f} points (p = {p:.2g}): "
            "its space or its budget is too small"
        )
        if not stored_space(mine.space).contains(theirs.hyper_parameters):
            line += f"; its space does not hold the best values of {special}"
        lines.append(line)
    return lines


def _single(cells: Mapping[str, Cell]) -> list[str]:
    """What speaks against one cell by itself: an optimum at an edge, or one that early stopping all but lost."""
    lines = []
    for name, cell in cells.items():
        lines += [f"{name}: the best is at an edge of its space: {edge}" for edge in cell.edges]
        lines += [
            f"{name}: early stopping might have lost the best: at epoch {at.epoch} it was {at.rank} of {at.trials}, "
            "outside the best half"
            for at in cell.standing
            if not at.is_in_best_half
        ]
    return lines


def _difference(what: str, values: Mapping[str, Any]) -> str:
    """ "unequal epochs: 405 (adam, sgd), 200 (adamg)"; empty where all optimizers have the same value."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(str(value), []).append(name)
    if len(groups) < 2:
        return ""
    return f"unequal {what}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def _apart(what: str, spent: Mapping[str, int]) -> str:
    """ "unequal epochs: from 100 (adam) to 200 (sgd)"; empty where they differ by little."""
    fewest, most = min(spent, key=lambda name: spent[name]), max(spent, key=lambda name: spent[name])
    if spent[fewest] >= (1 - BUDGET_TOLERANCE) * spent[most]:
        return ""
    return f"unequal {what}: from {spent[fewest]} ({fewest}) to {spent[most]} ({most})"


def _listed(seeds: Sequence[int]) -> str:
    return f"{len(seeds)}: {' '.join(str(seed) for seed in seeds)}"
