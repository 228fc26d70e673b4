"""The figures of a comparison: what tuning costs each optimizer, and how much its learning rate matters."""

from collections.abc import Sequence

import matplotlib
import numpy as np

from tune_adamsrt.records import best_of
from tune_adamsrt.reports.analysis import candidates
from tune_adamsrt.reports.chart import ACCURACY, SERIES_COLORS, SERIES_DASHES, STYLE, Chart, new_figure
from tune_adamsrt.reports.performance import COVERED, ExpectedBest, expected_best, lr_sensitivity
from tune_adamsrt.studies import StoredSearch

BUDGETS = 200  # points per curve
BAND = 0.9
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@matplotlib.rc_context(STYLE)
def performance_against_budget(searches: Sequence[StoredSearch], *, seed: int = 0) -> Chart:
    """Draw what tuning each optimizer of one setting for b epochs can be expected to find.

    Args:
        searches: of one setting, one per optimizer.
    """
    name, title = "performance-against-budget", "Performance against budget"
    found: list[tuple[StoredSearch, ExpectedBest]] = []
    for search in searches:
        spent = sum(trial.epochs_spent for trial in search.trials)
        if candidates(search):
            budgets = np.unique(np.linspace(0, spent, BUDGETS + 1)[1:].round())
            generator = np.random.default_rng([seed, len(found)])
            found.append((search, expected_best(search.trials, generator, budgets=budgets.tolist(), band=BAND)))
    drawn = [(search, curve) for search, curve in found if len(curve.epochs)]
    left_out = [search.info.optimizer for search in searches if all(search is not other for other, _ in drawn)]
    if not drawn:
        return Chart(name, title, "Not drawn: too few trials have been trained in full.", None)
    figure, axes = new_figure()
    for search, curve in drawn:
        color, dashes = _look(searches, search)
        axes.fill_between(curve.epochs, 100 * curve.low, 100 * curve.high, color=color, alpha=0.13, linewidth=0)
        axes.plot(
            curve.epochs, 100 * curve.mean, color=color, linestyle=dashes, linewidth=1.8, label=search.info.optimizer
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("epochs of tuning, stopped and failed trials included")
    axes.set_ylabel(f"best {ACCURACY}")
    axes.grid(True)
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2)
    caption = (
        f"Lines: the best validation accuracy that a search of so many epochs finds on average; bands: "
        f"{100 * BAND:.0f} % of such searches. They are drawn from the trials at hand, with replacement and in random "
        "order (1000 draws). That is exact for random search; a sampler that learns finds good trials later than drawn "
        "here, and no draw can find more than the best trial at hand. A line begins where "
        f"{100 * COVERED:.0f} % of the draws have a trial trained in full."
    )
    return Chart(name, title, caption + _not_drawn(left_out), figure)


@matplotlib.rc_context(STYLE)
def learning_rate_sensitivity(searches: Sequence[StoredSearch]) -> Chart:
    """Draw the accuracy of each optimizer's trials against their learning rate, relative to that of its best.

    Args:
        searches: of one setting, one per optimizer.
    """
    name, title = "lr-sensitivity", "Sensitivity to the learning rate"
    drawn = [search for search in searches if len(candidates(search)) > 1]
    left_out = [search.info.optimizer for search in searches if search not in drawn]
    if not drawn:
        return Chart(name, title, "Not drawn: too few trials have been trained in full.", None)
    figure, axes = new_figure()
    shown = []
    for search in drawn:
        best = best_of(candidates(search))
        assert best is not None
        ratios, values = zip(*lr_sensitivity(search.trials, best), strict=True)
        color, _ = _look(searches, search)
        marker = MARKERS[searches.index(search) % len(MARKERS)]
        percent = [100 * value for value in values]
        axes.plot(
            ratios, percent, marker, color=color, alpha=0.75, markersize=4.5, markeredgewidth=0,
            label=search.info.optimizer,
        )  # fmt: skip
        shown += percent
    axes.set_xscale("log")
    low, high = float(np.quantile(shown, 0.05)), max(shown)
    margin = max(0.25, 0.08 * (high - low))
    is_cut = low - margin > min(shown)
    axes.set_ylim(low - margin if is_cut else min(shown) - margin, min(100.4, high + margin))
    axes.axvline(1.0, color=STYLE["axes.edgecolor"], linewidth=0.8, zorder=0)
    axes.set_xlabel("learning rate / that of the optimizer's best trial")
    axes.set_ylabel(ACCURACY)
    axes.grid(True)
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2)
    caption = (
        "Each dot is a trial trained in full; its other hyper-parameters vary too. An optimizer whose dots stay high "
        "far from 1 needs less tuning. Stopped trials are left out: poor learning rates are rarer than in the search."
    )
    caption += " The axis leaves out the lowest 5 % of all points." * is_cut
    return Chart(name, title, caption + _not_drawn(left_out), figure)


def comparison_charts(searches: Sequence[StoredSearch], *, seed: int = 0) -> list[Chart]:
    """Draw both figures of one setting."""
    return [performance_against_budget(searches, seed=seed), learning_rate_sensitivity(searches)]


def _look(searches: Sequence[StoredSearch], search: StoredSearch) -> tuple[str, object]:
    """The colour and dashes of an optimizer: the same in every figure of a setting."""
    index = searches.index(search)
    return SERIES_COLORS[index % len(SERIES_COLORS)], SERIES_DASHES[index % len(SERIES_DASHES)]


def _not_drawn(optimizers: Sequence[str]) -> str:
    return f" Not drawn, for want of trials trained in full: {', '.join(optimizers)}." if optimizers else ""
