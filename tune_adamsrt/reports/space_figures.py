"""The figures of a report that show the search space: configurations, their values, what matters among them."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap

from tune_adamsrt.records import TrialRecord, TrialState, best_of
from tune_adamsrt.reports import analysis
from tune_adamsrt.reports.analysis import TooFewTrialsError, candidates
from tune_adamsrt.reports.chart import (
    ACCURACY,
    GRID,
    LOW_TO_HIGH,
    MUTED,
    PAGE,
    SERIES_COLORS,
    STATE_COLORS,
    STATE_DASHES,
    STATE_ORDER,
    STYLE,
    TEXT,
    Chart,
    new_figure,
)
from tune_adamsrt.reports.scales import ZERO_POSITION, Scale, build_scale, stored_space
from tune_adamsrt.results import split_betas
from tune_adamsrt.studies import StoredSearch


@matplotlib.rc_context(STYLE)
def parallel_coordinates(search: StoredSearch) -> Chart:
    """Draw every configuration as a line through its hyper-parameters; candidates go on to their value."""
    name, title = "parallel-coordinates", "Configurations"
    if not search.trials:
        return Chart(name, title, "Not drawn: no trial has been started yet.", None)
    figure, axes = new_figure()
    scales = _scales(search)
    colored = _Colored(candidates(search))
    faint = 0.45 if len(search.trials) < 40 else 0.25
    for trial in sorted(search.trials, key=lambda trial: (trial in colored, trial.value if trial in colored else 0)):
        parts = split_betas(trial.hyper_parameters)
        heights = [scale.position(parts[scale.name]) for scale in scales]
        if trial in colored:
            heights.append(colored.height(trial))
            axes.plot(range(len(heights)), heights, color=colored.color(trial), linewidth=1.3, alpha=0.9, zorder=2)
        else:
            axes.plot(
                range(len(heights)), heights, color=STATE_COLORS[trial.state], linewidth=0.6, alpha=faint, zorder=1,
                linestyle=STATE_DASHES.get(trial.state, "-"),
            )  # fmt: skip
    for at, scale in enumerate(scales):
        axes.axvline(at, color=MUTED, linewidth=0.8, zorder=0)
        _write_ticks(axes, at, scale.ticks)
    if colored.trials:
        axes.axvline(len(scales), color=MUTED, linewidth=0.8, zorder=0)
        _write_ticks(axes, len(scales), [(0.0, f"{colored.low:.2f}"), (1.0, f"{colored.high:.2f}")])
    labels = [scale.name.replace("weight_decay", "weight\ndecay") for scale in scales] + ["value\n(%)"]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.25, len(labels) - 0.55)
    axes.set_ylim(min(ZERO_POSITION, 0.0) - 0.06, 1.06)
    return Chart(
        name,
        title,
        "One line per trial. Coloured lines were trained in full and end at their value, the darkest (on a dark page "
        "the brightest) at the best; thin lines were stopped or failed and end before it. Betas, momentum, learning "
        "rate and weight decay stand on the scale on which they were searched.",
        figure,
    )


@matplotlib.rc_context(STYLE)
def response_map(search: StoredSearch) -> Chart:
    """Draw the trials over learning rate and weight decay, coloured by their value."""
    name, title = "response-map", "Learning rate and weight decay"
    scales = {scale.name: scale for scale in _scales(search)}
    if not {"lr", "weight_decay"} <= scales.keys():
        return Chart(name, title, "Not drawn: this search has no learning rate or no weight decay.", None)
    if not search.trials:
        return Chart(name, title, "Not drawn: no trial has been started yet.", None)
    figure, axes = new_figure()
    x, y = scales["lr"], scales["weight_decay"]

    def places(trials: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
        found = [trial.hyper_parameters for trial in trials]
        return [x.position(point["lr"]) for point in found], [y.position(point["weight_decay"]) for point in found]

    colored = _Colored(candidates(search))
    for state in STATE_ORDER[:-1]:
        if of_state := [trial for trial in search.trials if trial.state is state]:
            marker = "x" if state is TrialState.FAILED else "."
            axes.plot(*places(of_state), marker, color=STATE_COLORS[state], markersize=5, alpha=0.9, label=str(state))
    if colored.trials:
        points = axes.scatter(
            *places(colored.trials), c=[100 * (trial.value or 0) for trial in colored.trials], cmap=colored.colormap,
            norm=colored.norm, s=42, edgecolors=PAGE, linewidths=0.6, zorder=3,
        )  # fmt: skip
        bar = figure.colorbar(points, ax=axes, pad=0.02, aspect=26)
        bar.set_label(f"{ACCURACY}, trained in full")
        bar.set_ticks([colored.low, colored.high], labels=[f"{colored.low:.2f}", f"{colored.high:.2f}"])
        bar.outline.set_visible(False)
        bar.ax.tick_params(which="both", length=0)
        best = best_of(colored.trials)
        assert best is not None
        axes.plot(
            *places([best]), "o", markersize=11, markerfacecolor="none", markeredgecolor=TEXT, zorder=4,
            label=f"best (trial {best.number})",
        )  # fmt: skip
    if any(place == ZERO_POSITION for place, _ in y.ticks):
        axes.axhline(ZERO_POSITION / 2, color=GRID, linewidth=1, zorder=0)
    axes.set_xticks([place for place, _ in x.ticks], [label for _, label in x.ticks])
    axes.set_yticks([place for place, _ in y.ticks], [label for _, label in y.ticks])
    axes.set_xlabel("learning rate")
    axes.set_ylabel("weight decay")
    axes.grid(True)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(min([-0.05, *(place - 0.06 for place, _ in y.ticks)]), 1.05)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=4, columnspacing=1.0, handletextpad=0.3)
    none = "" if colored.trials else " No trial has reached the full budget, so that none is coloured."
    return Chart(
        name,
        title,
        "Trials trained in full are coloured by their value, the others only marked. The points differ in the other "
        "hyper-parameters too, and nothing is drawn between them, since nothing was measured there." + none,
        figure,
    )


@matplotlib.rc_context(STYLE)
def importance(search: StoredSearch) -> Chart:
    """Draw how much each hyper-parameter decides whether a candidate is among the best."""
    name, title = "importance", "Hyper-parameter importance"
    try:
        found = analysis.importance(search)
    except TooFewTrialsError as error:
        return Chart(name, title, f"Not drawn: {error}.", None)
    end = "the full budget" if found.epoch == search.info.epochs else f"epoch {found.epoch} (too few came further)"
    missing = ""
    if any(trial.state is TrialState.STOPPED and trial.epoch < found.epoch for trial in search.trials):
        missing = " Trials stopped earlier are not in it, so that whatever made them poor is underrated."
    figure, axes = new_figure(height=1.1 + 0.36 * len(found.shares))
    names = list(found.shares)[::-1]
    axes.barh(names, [found.shares[name] for name in names], color=SERIES_COLORS[0], height=0.55)
    axes.plot(
        [found.chance[name] for name in names], range(len(names)), "|", color=TEXT, markersize=13, markeredgewidth=1.6,
        label="exceeded by chance in 1 of 20 cases",
    )  # fmt: skip
    axes.set_xlabel("share of importance")
    axes.set_xlim(left=0)
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left")
    return Chart(
        name,
        title,
        f"PED-ANOVA (Optuna's default evaluator): what tells the best {100 * found.top:.0f} % of the {found.trials} "
        f"trials that reached {end} from all of them.{missing} A bar that ends before its mark is no longer than "
        "values shuffled among the trials make it.",
        figure,
    )


def _scales(search: StoredSearch) -> list[Scale]:
    return [build_scale(name, allowed) for name, allowed in stored_space(search.info.space).ranges.items()]


class _Colored:
    """Candidates and the colours of their values, from the 10 % quantile (and below) to the best."""

    def __init__(self, trials: Sequence[TrialRecord]) -> None:
        self.trials = list(trials)
        values = [100 * trial.value for trial in trials if trial.value is not None] or [0.0]
        self.low, self.high = float(np.quantile(values, 0.1)), max(values)
        if self.high - self.low < 0.01:
            self.low = self.high - 0.01
        self.colormap = ListedColormap(list(LOW_TO_HIGH))
        self.norm = BoundaryNorm(
            np.linspace(self.low, self.high, len(LOW_TO_HIGH) + 1).tolist(), len(LOW_TO_HIGH), clip=True
        )

    def __contains__(self, trial: TrialRecord) -> bool:
        return trial.state is TrialState.COMPLETE

    def height(self, trial: TrialRecord) -> float:
        return max(-0.04, (100 * (trial.value or 0.0) - self.low) / (self.high - self.low))

    def color(self, trial: TrialRecord) -> str:
        return LOW_TO_HIGH[min(len(LOW_TO_HIGH) - 1, max(0, int(self.height(trial) * len(LOW_TO_HIGH))))]


def _write_ticks(axes: Axes, x: float, ticks: Sequence[tuple[float, str]]) -> None:
    for place, label in ticks:
        axes.plot([x - 0.025, x + 0.025], [place, place], color=MUTED, linewidth=0.8, zorder=0)
        axes.annotate(
            label, (x, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5, color=MUTED,
            bbox={"facecolor": PAGE, "edgecolor": "none", "alpha": 0.75, "pad": 0.6}, zorder=5,
        )  # fmt: skip
