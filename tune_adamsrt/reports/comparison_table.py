"""Optimizers x settings: cells, tests and checks, column by column. Only `load_published` reads anything."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune_adamsrt.records import Spread
from tune_adamsrt.reports.comparison import Cell
from tune_adamsrt.reports.significance import PairTest, Test, compare_all, not_worse_than_best
from tune_adamsrt.reports.table_checks import flags_of, refusals_of

ALPHA = 0.05
SOURCE = "arXiv:2006.13382"
"""Of the published test accuracies."""

Published = Mapping[tuple[str, str], Spread]
"""(setting, optimizer) -> published test accuracy in [0, 1]; n is 0, since the number of runs is not given."""


def load_published() -> Published:
    """Read the published test accuracies (see SOURCE)."""
    text = importlib.resources.files("tune_adamsrt.reports").joinpath("published_test_accuracy.json").read_text()
    return {
        (f"{model}-{dataset}", optimizer): Spread(found["mean"] / 100, found["std"] / 100, 0)
        for dataset, models in json.loads(text)["test_accuracy"].items()
        for model, optimizers in models.items()
        for optimizer, found in optimizers.items()
    }


@dataclass(frozen=True)
class Column:
    """All optimizers on one setting.

    Attributes:
        best: the highest mean test accuracy; None where the cells must not be compared.
        bold: the best and all that are not significantly worse.
        tests: of every pair.
        refusals: why the cells must not be compared; then there is neither a best nor a test.
        flags: what a reader must know before comparing.
    """

    setting: str
    cells: Mapping[str, Cell]
    best: str | None
    bold: frozenset[str]
    tests: tuple[PairTest, ...]
    refusals: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Optimizers x settings."""

    columns: tuple[Column, ...]
    optimizers: tuple[str, ...]
    published: Published
    test: Test
    alpha: float

    def cell(self, setting: str, optimizer: str) -> Cell | None:
        return next((column.cells.get(optimizer) for column in self.columns if column.setting == setting), None)

    @property
    def method(self) -> str:
        """What is bold and how that was tested, to follow a "Bold: "."""
        test = (
            "Welch's t-test over seeds" if self.test is Test.WELCH else "paired t-test over the seeds that both share"
        )
        return (
            f"the best mean test accuracy of a setting, and all that are not significantly worse "
            f"(two-sided {test} for every pair, Holm's correction over all pairs of the setting, alpha {self.alpha:g})."
        )


def build_comparison(
    cells: Sequence[Cell],
    *,
    published: Published,
    test: Test = Test.WELCH,
    alpha: float = ALPHA,
) -> Comparison:
    """Arrange cells, test them and check them. Settings and optimizers keep the order in which they first come.

    Raises ValueError where two cells have the same place.
    """
    columns = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        by_optimizer: dict[str, Cell] = {}
        for cell in cells:
            if cell.setting == setting:
                other = by_optimizer.setdefault(cell.optimizer, cell)
                if other is not cell:
                    raise ValueError(
                        f"a table must have one search of {setting}/{cell.optimizer}, got {other.study} and "
                        f"{cell.study}; name the one that counts"
                    )
        refusals = refusals_of(by_optimizer)
        accuracies = {name: cell.test for name, cell in by_optimizer.items()} if not refusals else {}
        tests = tuple(compare_all(accuracies, test))
        best, bold = not_worse_than_best(accuracies, tests, alpha=alpha)
        flags = flags_of(by_optimizer, tests, test=test, alpha=alpha)
        columns.append(Column(setting, by_optimizer, best, bold, tests, refusals, flags))
    optimizers = tuple(dict.fromkeys(cell.optimizer for cell in cells))
    return Comparison(tuple(columns), optimizers, published, test, alpha)
