"""The report as one HTML page: from searches and their charts to text. Nothing here reads or writes.

The page holds everything it shows: figures as SVG, styles and a few lines of script, and asks the network for nothing.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

import adamsrt
from tune_adamsrt.candidates import build_confirmation
from tune_adamsrt.formats import (
    format_duration,
    format_hyper_parameters,
    format_percent,
    format_seeds,
    format_spread,
)
from tune_adamsrt.records import Confirmation, Spread, TrialRecord, TrialState, best_of
from tune_adamsrt.reports.analysis import candidates, edge_lines, rungs_of
from tune_adamsrt.reports.chart import GRID, MUTED, PAGE, TEXT, Chart, render_inline_svg, theme_variables, variable
from tune_adamsrt.reports.tables import build_overview, build_trials_grid
from tune_adamsrt.studies import StoredSearch

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tune_adamsrt.reports", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


@dataclass(frozen=True)
class DrawnSearch:
    """A search, its charts, and the studies that trained its best configurations again, the newest last."""

    search: StoredSearch
    charts: Sequence[Chart]
    confirmations: Sequence[StoredSearch] = ()

    @property
    def confirmed(self) -> Confirmation | None:
        """What the last confirmation came to; None where none has ended with a test."""
        trials = {trial.number: trial for trial in self.search.trials}
        for stored in reversed(self.confirmations):
            found = build_confirmation(trials, stored.trials, stored.test_accuracies)
            if found.test_accuracies:
                return found
        return None


def render_page(
    searches: Sequence[DrawnSearch],
    comparisons: Sequence[Chart],
    *,
    created: datetime.datetime,
    has_files: bool = True,
) -> str:
    """Render the page.

    Args:
        comparisons: charts of several searches; shown first.
        created: when, with its time zone.
        has_files: the figures are beside the page as well.
    """
    names = list(dict.fromkeys(drawn.search.info.setting for drawn in searches))
    template = _TEMPLATES.get_template("report_page.html")
    return (
        template.render(
            title=", ".join(names) if len(searches) > 1 else searches[0].search.info.name,
            has_several=len(searches) > 1,
            created=_time(created.timestamp()),
            version=adamsrt.__version__,
            has_files=has_files,
            light=theme_variables(dark=False),
            dark=theme_variables(dark=True),
            page_color=variable(PAGE),
            text_color=variable(TEXT),
            muted_color=variable(MUTED),
            line_color=variable(GRID),
            overview=build_overview([drawn.search for drawn in searches]),
            comparisons=[_figure(chart, f"c{i}") for i, chart in enumerate(comparisons) if chart.figure is not None],
            sections=[_section(drawn, f"s{index}") for index, drawn in enumerate(searches)],
        )
        + "\n"
    )


def figure_path(chart: Chart) -> str:
    """Where a chart's files lie beside the page, without the suffix."""
    return f"figures/{chart.name}"


def _figure(chart: Chart, key: str) -> dict[str, Any]:
    svg = Markup(render_inline_svg(chart, key))  # its own texts were escaped when it was rendered
    return {"key": key, "chart": chart, "svg": svg, "path": figure_path(chart)}


def _section(drawn: DrawnSearch, key: str) -> dict[str, Any]:
    search, confirmed = drawn.search, drawn.confirmed
    best = best_of(candidates(search))
    chosen = best if confirmed is None else confirmed.candidate
    return {
        "key": key,
        "name": search.info.name,
        "headline": _headline(search, best, confirmed),
        "hyper_parameters": "" if chosen is None else format_hyper_parameters(chosen.hyper_parameters, exact=True),
        "facts": _facts(search),
        "warnings": [] if chosen is None else edge_lines(search, chosen),
        "caveats": _caveats(search, confirmed),
        "figures": [_figure(chart, f"{key}f{i}") for i, chart in enumerate(drawn.charts) if chart.figure is not None],
        "undrawn": [chart for chart in drawn.charts if chart.figure is None],
        "trials": build_trials_grid(search),
        "confirmations": [build_trials_grid(confirmation) for confirmation in drawn.confirmations],
    }


def _headline(search: StoredSearch, best: TrialRecord | None, confirmed: Confirmation | None) -> tuple[str, list[str]]:
    """The number that stands on top, and what it is."""
    if best is None:
        return "no result yet", ["No trial has been trained in full, so that there is nothing to choose from."]
    chosen_from = _count(len(candidates(search)), "trial")
    found = f"validation accuracy of trial {best.number} ({best.origin}), the best of {chosen_from} trained in full"
    if confirmed is None:
        return format_percent(best.value), [found]
    assert confirmed.candidate is not None
    test, valid = confirmed.test_accuracy, confirmed.valid_accuracy
    return _spread(test), [
        f"test accuracy of trial {confirmed.candidate.number}, trained again on {format_seeds(test.n)}"
        + (" (mean and standard deviation)" if test.n > 1 else "")
        + f"; the best by validation accuracy ({_spread(valid)}) of {confirmed.candidates} confirmed",
        f"In the search: {format_percent(best.value)}, {found}.",
    ]


def _facts(search: StoredSearch) -> list[tuple[str, str]]:
    info, tags, protocol = search.info, search.info.tags, search.protocol
    states = {state: sum(trial.state is state for trial in search.trials) for state in TrialState}
    spent = sum(trial.epochs_spent for trial in search.trials)
    repeated = sum(trial.epochs_repeated for trial in search.trials)
    rungs = ", ".join(str(epoch) for epoch in rungs_of(search))
    data = protocol.get("limit_train_examples")
    versions = [(name, tags.get(f"version.{name}")) for name in ("tune_adamsrt", "torch", "ray", "optuna", "python")]
    facts = [
        ("state", _state(search)),
        ("trials", _trial_counts(states, asked=None if info.is_bound_by_epochs else info.trials)),
        (
            "epochs spent",
            f"{spent} of at most {info.max_epochs_spent}, those of stopped and failed trials included"
            + (f"; {repeated} of them were trained twice after a loss" if repeated else ""),
        ),
        (
            "protocol",
            f"{protocol.get('model', '?')} on {protocol.get('dataset', '?')}, {info.epochs} epochs, "
            f"batch size {protocol.get('batch_size', '?')}"
            + (f", {data} training examples only" if data is not None else "")
            + (f"; {100 * protocol['valid_split']:g} % held out for validation" if "valid_split" in protocol else ""),
        ),
        (
            "search",
            f"sampler {search.sampler}, scheduler {tags.get('scheduler', 'unknown')}"
            + (f", rungs after epochs {rungs}" if rungs else ", no rungs"),
        ),
        (
            "seeds",
            f"search {search.seed}, split of the data {protocol.get('split_seed', '?')}; each trial has its own, "
            "see the table",
        ),
        ("ran on", ", ".join(tags[name] for name in ("cluster", "resources", "device") if name in tags)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions if version)),
        ("revision", tags.get("git_revision", "")),
        ("study", info.study_name),
    ]
    return [(label, text) for label, text in facts if text]


def _state(search: StoredSearch) -> str:
    if search.started_at is None:
        return "unknown: its search has not described itself"
    started = f"started {_time(search.started_at)}"
    if search.ended_at is None:
        return f"{started}; it still runs, or its driver was lost"
    took = format_duration(search.ended_at - search.started_at)
    return f"ended: {search.ended_by}; {started}, the last run took {took}"


def _trial_counts(states: dict[TrialState, int], *, asked: int | None) -> str:
    running = states[TrialState.RUNNING] + states[TrialState.PAUSED]
    counted = f"{states[TrialState.COMPLETE]} complete, {states[TrialState.STOPPED]} stopped, "
    counted += f"{states[TrialState.FAILED]} failed" + (f", {running} running" if running else "")
    return f"{sum(states.values())}{'' if asked is None else f' of {asked}'}: {counted}"


def _caveats(search: StoredSearch, confirmed: Confirmation | None) -> list[str]:
    chosen_from = len(candidates(search))
    lines = []
    if chosen_from and confirmed is None:
        lines.append(
            "One seed. Every configuration was trained once; how much another seed would change is not known. "
            "Not confirmed."
        )
    if confirmed is not None and confirmed.tested > 1:
        lines.append(f"The test set was read for {confirmed.tested} candidates, the last of which stands here.")
    if chosen_from > 1:
        lines.append(
            f"The search's best value is the largest of {chosen_from}, chosen on the images that it was measured on, "
            "so it is optimistic: more so with more trials and fewer validation images."
        )
    if any(trial.state is TrialState.STOPPED for trial in search.trials):
        lines.append(
            "A stopped trial's value is of the epoch where it was stopped. It says nothing about what it would have "
            "come to, and is not comparable with values of other epochs."
        )
    if search.protocol.get("selection", "best") == "best":
        lines.append(
            "A trial's value is the best over its epochs, mostly a little above the accuracy after its last one."
        )
    if search.protocol.get("limit_train_examples") is not None:
        lines.append("Trained on a part of the training set: other hyper-parameters may be best on all of it.")
    if search.ended_at is None:
        lines.append("The search has not ended; all of this may still change.")
    return lines


def _spread(spread: Spread) -> str:
    return format_spread(spread).replace("+-", "±")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
