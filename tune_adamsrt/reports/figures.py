"""The figures of a report: one function each, from stored searches to a `Chart`.

A figure that the trials at hand cannot fill is a chart without one, whose caption says why. docs/results.md shows how
to read them.
"""

import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tune_adamsrt.records import TrialRecord, TrialState, best_of
from tune_adamsrt.reports import analysis
from tune_adamsrt.reports.analysis import TooFewTrialsError, candidates
from tune_adamsrt.reports.chart import (
    ACCURACY,
    GRID,
    PAGE,
    SERIES_COLORS,
    SERIES_DASHES,
    STATE_COLORS,
    STATE_DASHES,
    STATE_ORDER,
    STYLE,
    TEXT,
    Chart,
    new_figure,
)
from tune_adamsrt.reports.space_figures import importance, parallel_coordinates, response_map
from tune_adamsrt.studies import StoredSearch

MAX_POINTS_PER_CURVE = 100
MAX_VECTOR_CURVES = 200  # more of them become one image inside the SVG


@matplotlib.rc_context(STYLE)
def best_so_far(searches: Sequence[StoredSearch]) -> Chart:
    """Draw the best value of each search against the epochs that all its trials have spent."""
    name, title = "best-so-far", "Best so far"
    series = [(search, analysis.best_so_far(search)) for search in searches]
    if not any(found.any_epoch for _, found in series):
        return Chart(name, title, "Not drawn: no epoch has been reported yet.", None)
    figure, axes = new_figure()
    for index, (search, found) in enumerate(series):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        dashes = SERIES_DASHES[index % len(SERIES_DASHES)]
        for steps, width, alpha in ((found.any_epoch, 0.9, 0.55), (found.candidates, 2.0, 1.0)):
            if steps:  # the dots: a best that comes at the very end has no line yet
                spent = [epoch for epoch, _ in steps] + [found.spent]
                value = [100 * best for _, best in steps] + [100 * steps[-1][1]]
                axes.step(
                    spent, value, where="post", color=color, linewidth=width, alpha=alpha, linestyle=dashes,
                    marker="o" if width > 1 else None, markersize=3.5, markevery=range(len(steps)),
                    label=_label(search, searches) if width > 1 or not found.candidates else "_",
                )  # fmt: skip
    tops = [steps[-1][1] for _, found in series for steps in (found.candidates, found.any_epoch) if steps]
    firsts = [found.candidates[0][1] for _, found in series if found.candidates] or [0.9 * max(tops)]
    low, high = 100 * min(firsts), 100 * max(tops)
    margin = max(0.25, 0.3 * (high - low))
    axes.set_ylim(low - margin, min(100.4, high + margin / 2))
    axes.set_xlim(left=0)
    axes.set_xlabel("epochs spent, stopped and failed trials included")
    axes.set_ylabel(ACCURACY)
    axes.grid(True)
    axes.legend(loc="lower right")
    waiting = [_label(search, searches) for search, found in series if not found.candidates]
    return Chart(
        name,
        title,
        "Strong line: the best value among the trials trained in full, once they were. Faint line: the best value of "
        "any trial at any epoch; it compares trials at different epochs and chooses nothing."
        + (f" No trial has reached the full budget yet: {', '.join(waiting)}." if waiting else ""),
        figure,
    )


@matplotlib.rc_context(STYLE)
def learning_curves(search: StoredSearch) -> Chart:
    """Draw every trial's value against its epochs, coloured by what became of it."""
    name, title = "learning-curves", "Learning curves"
    trials = [trial for trial in search.trials if any(math.isfinite(report.value) for report in trial.epochs)]
    if not trials:
        return Chart(name, title, "Not drawn: no epoch has been reported yet.", None)
    figure, axes = new_figure()
    best = best_of(candidates(search))
    handles = []
    for state in STATE_ORDER:
        of_state = [trial for trial in trials if trial.state is state]
        if not of_state:
            continue
        color, dashes = STATE_COLORS[state], STATE_DASHES.get(state, "-")
        curves = [thinned_curve(trial) for trial in of_state]
        axes.add_collection(
            LineCollection(
                curves, colors=color, linestyles=[dashes], linewidths=0.9, alpha=0.75 if len(trials) < 40 else 0.5,
                rasterized=len(trials) > MAX_VECTOR_CURVES,
            )
        )  # fmt: skip
        if state is not TrialState.COMPLETE:
            ends = [curve[-1] for curve in curves]
            marker = "x" if state is TrialState.FAILED else "o"
            axes.plot(*zip(*ends, strict=True), marker, color=color, markersize=2.6, zorder=3)
        handles.append(Line2D([], [], color=color, linestyle=dashes, label=f"{len(of_state)} {state}"))
    if best is not None:
        x, y = zip(*thinned_curve(best), strict=True)
        axes.plot(x, y, color=TEXT, linewidth=1.9, zorder=4)
        handles.append(Line2D([], [], color=TEXT, linewidth=1.9, label=f"best (trial {best.number})"))
    values = [100 * report.value for trial in trials for report in trial.epochs if math.isfinite(report.value)]
    low, high = float(np.quantile(values, 0.05)), max(values)
    margin = max(0.25, 0.08 * (high - low))
    is_cut = low - margin > min(values)
    axes.set_ylim(low - margin if is_cut else min(values) - margin, min(100.4, high + margin))
    axes.set_xlim(0, search.info.epochs * 1.02)
    for rung in analysis.rungs_of(search):
        axes.axvline(rung, color=GRID, linewidth=1.2, zorder=0)
    axes.set_xlabel("epoch (vertical lines: rungs)" if analysis.rungs_of(search) else "epoch")
    axes.set_ylabel(ACCURACY)
    figure.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1.0, handlelength=1.5)
    judged = "its validation accuracy" if search.protocol.get("selection") == "last" else "its best one so far"
    caption = f"Each trial's value after each epoch: {judged}. Dots: stopped there; crosses: failed."
    return Chart(name, title, caption + (" The axis leaves out the lowest 5 % of all points." * is_cut), figure)


def thinned_curve(trial: TrialRecord) -> list[tuple[float, float]]:
    """A trial's (epoch, value in %) where it is finite; of long ones some 100 points, the first and last among them."""
    points = [(report.epoch, 100 * report.value) for report in trial.epochs if math.isfinite(report.value)]
    if len(points) > MAX_POINTS_PER_CURVE:
        kept = np.unique(np.linspace(0, len(points) - 1, MAX_POINTS_PER_CURVE).round().astype(int))
        points = [points[index] for index in kept]
    return [(float(epoch), round(value, 3)) for epoch, value in points]


@matplotlib.rc_context(STYLE)
def ends_per_rung(search: StoredSearch) -> Chart:
    """Draw what became of the trials that reached each rung."""
    name, title = "ends-per-rung", "Where trials ended"
    found = analysis.stages(search)
    if not search.trials:
        return Chart(name, title, "Not drawn: no trial has been started yet.", None)
    figure, axes = new_figure(height=1.25 + 0.36 * len(found))
    labels = [_stage_name(stage.epoch, search.info.epochs) for stage in found]
    parts: list[tuple[str, str, Callable[[analysis.Stage], int]]] = [
        ("went on", STATE_COLORS[TrialState.COMPLETE], lambda stage: stage.went_on),
        ("stopped here", STATE_COLORS[TrialState.STOPPED], lambda stage: stage.stopped),
        ("stopped by a budget", GRID, lambda stage: stage.elsewhere),
        ("failed", STATE_COLORS[TrialState.FAILED], lambda stage: stage.failed),
        ("running", STATE_COLORS[TrialState.RUNNING], lambda stage: stage.running),
    ]
    left = np.zeros(len(found))
    for label, color, count in parts:
        counts = np.array([count(stage) for stage in found])
        if counts.any():
            axes.barh(labels, counts, left=left, color=color, height=0.62, label=label, edgecolor=PAGE, linewidth=0.8)
        left += counts
    for row, stage in enumerate(found):
        axes.annotate(str(stage.reached), (stage.reached, row), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("trials that came so far")
    axes.set_xlim(0, max(stage.reached for stage in found) * 1.08)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    caption = (
        "Of the trials that reached an epoch: how many were stopped right there, and how many failed, or were ended by "
        "a time or epoch budget, before the next. At the full budget, to go on is to be complete."
    )
    return Chart(name, title, caption, figure)


@matplotlib.rc_context(STYLE)
def rank_fidelity(search: StoredSearch) -> Chart:
    """Draw how well the order of the candidates at each epoch agrees with their order at the end."""
    name, title = "rank-fidelity", "Does the order at a rung predict the end?"
    best = best_of(candidates(search))
    standing = _standing(search, best) if best is not None else ""
    try:
        found = analysis.rank_fidelity(search)
    except TooFewTrialsError as error:
        return Chart(name, title, f"Not drawn: {error}. {standing}".strip(), None)
    figure, axes = new_figure(height=2.7)
    axes.plot(list(found.tau), list(found.tau.values()), color=SERIES_COLORS[0], linewidth=1.5)
    marked = [epoch for epoch in analysis.comparison_epochs(search) if epoch in found.tau and epoch < found.until]
    axes.plot(marked, [found.tau[epoch] for epoch in marked], "o", color=SERIES_COLORS[0], markersize=6)
    for epoch in marked:
        axes.annotate(f"{found.tau[epoch]:.2f}", (epoch, found.tau[epoch]), textcoords="offset points", xytext=(6, -13))
    axes.set_ylim(min([0.0, *found.tau.values()]) - 0.05, 1.05)
    axes.set_xlim(0, found.until * 1.02)
    axes.set_xlabel("epoch (dots: " + ("rungs)" if analysis.rungs_of(search) else "1/8, 1/4 and 1/2 of the budget)"))
    end = "at the end" if found.until == search.info.epochs else f"at epoch {found.until}"
    axes.set_ylabel(f"Kendall's tau with the order\n{end}")
    axes.grid(True)
    caption = f"1: the {found.trials} trials stood in the same order as {end}; 0: no relation."
    if found.until < search.info.epochs:
        caption += f" Too few trials were trained in full, so that the end is taken to be epoch {found.until}."
    if any(trial.state is TrialState.STOPPED and trial.epoch < found.until for trial in search.trials):
        caption += " Those stopped earlier are missing, so that the rest are alike: among all trials the agreement "
        caption += "would mostly be higher."
    if search.protocol.get("selection", "best") == "best":
        caption += " The best value so far meets the final one by construction once the last improvement is in."
    return Chart(name, title, f"{caption} {standing}", figure)


def search_charts(search: StoredSearch) -> list[Chart]:
    """Draw every figure of one search."""
    draw = (
        learning_curves,
        response_map,
        parallel_coordinates,
        importance,
        ends_per_rung,
        rank_fidelity,
    )
    return [best_so_far([search]), *(chart(search) for chart in draw)]


def _standing(search: StoredSearch, best: TrialRecord) -> str:
    """Say whether halving at the rungs would have kept the winner."""
    found = [
        f"epoch {at.epoch}: rank {at.rank} of {at.trials}" + ("" if at.is_in_best_half else ", outside the best half")
        for at in analysis.winner_at(search, best)
    ]
    return f"The best trial ({best.number}) among all trials, as known now: {'; '.join(found)}." if found else ""


def _label(search: StoredSearch, among: Sequence[StoredSearch]) -> str:
    """The optimizer; the setting or the study too where that alone does not tell the searches apart."""
    info = search.info
    if sum(other.info.name == info.name for other in among) > 1:
        return info.study_name
    return info.optimizer if len({other.info.setting for other in among}) == 1 else info.name


def _stage_name(epoch: int, full: int) -> str:
    if epoch == 0:
        return "started"
    return f"epoch {epoch}" + (" (full)" if epoch == full else "")
