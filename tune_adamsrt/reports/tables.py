"""The sortable tables of a report's page as rows of cells: text and what it is sorted by."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tune_adamsrt.formats import format_hyper_parameters, format_value
from tune_adamsrt.records import TrialRecord, TrialState, best_of
from tune_adamsrt.reports.analysis import candidates
from tune_adamsrt.reports.scales import in_reading_order
from tune_adamsrt.results import split_betas, test_accuracies
from tune_adamsrt.studies import StoredSearch


@dataclass(frozen=True)
class Column:
    """Sorted as numbers or as text; the first click on one where high is best sorts it downwards."""

    name: str
    is_number: bool = True
    best_is_high: bool = False


@dataclass(frozen=True)
class Cell:
    """What is shown, and what it is sorted by where that is not the text; an empty key comes last either way."""

    text: str
    key: str | None = None


@dataclass(frozen=True)
class Row:
    """One cell per column."""

    cells: Sequence[Cell]
    is_best: bool = False


@dataclass(frozen=True)
class Grid:
    """A table."""

    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=tuple)


def build_overview(searches: Sequence[StoredSearch]) -> Grid:
    """Put the searches side by side."""
    columns = [
        Column("search", is_number=False),
        Column("best value (%)", best_is_high=True),
        *(Column(name) for name in ("complete", "stopped", "failed", "running", "epochs spent")),
        Column("best configuration", is_number=False),
        Column("study", is_number=False),
    ]
    rows = []
    for search in searches:
        best = best_of(candidates(search))
        states = [trial.state for trial in search.trials]
        counts = [
            states.count(TrialState.COMPLETE),
            states.count(TrialState.STOPPED),
            states.count(TrialState.FAILED),
            states.count(TrialState.RUNNING) + states.count(TrialState.PAUSED),
            sum(trial.epochs_spent for trial in search.trials),
        ]
        rows.append(
            Row(
                [
                    Cell(search.info.name),
                    _percent(None if best is None else best.value),
                    *(_number(count) for count in counts),
                    Cell("" if best is None else format_hyper_parameters(best.hyper_parameters)),
                    Cell(search.info.study_name),
                ]
            )
        )
    return Grid(columns, rows)


def build_trials_grid(search: StoredSearch) -> Grid:
    """List the trials of a search or a confirmation, the best first."""
    parts = in_reading_order({part for trial in search.trials for part in split_betas(trial.hyper_parameters)})
    columns = [
        Column("trial"),
        Column("outcome", is_number=False),
        Column("value (%)", best_is_high=True),
        Column("epochs", best_is_high=True),
        *(Column(part) for part in parts),
        Column("valid. loss"),
        Column("seed"),
        Column("origin", is_number=False),
        Column("reason", is_number=False),
    ]
    tested = test_accuracies(search)
    if tested:
        columns.insert(3, Column("test accuracy (%)", best_is_high=True))
    best = best_of(candidates(search)) if search.confirms is None else None
    rows = []
    for trial in _best_first(search.trials):
        values = split_betas(trial.hyper_parameters)
        cells = [
            _number(trial.number),
            Cell(str(trial.state)),
            _percent(trial.value),
            *([_percent(tested.get(trial.number))] if tested else []),
            _number(trial.epoch),
            *(_number(values.get(part)) for part in parts),
            _number(trial.epochs[-1].valid_loss if trial.epochs else None),
            _number(trial.seed),
            Cell(trial.origin),
            Cell(trial.reason),
        ]
        rows.append(Row(cells, is_best=best is not None and trial.number == best.number))
    return Grid(columns, rows)


def _best_first(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Candidates by value and validation loss, then the others by how far they came; what diverged is last there."""

    def place(trial: TrialRecord) -> tuple[bool, int, float, float, int]:
        value = trial.value if trial.value is not None and math.isfinite(trial.value) else -math.inf
        loss = trial.epochs[-1].valid_loss if trial.epochs else math.nan
        is_candidate = trial.state is TrialState.COMPLETE
        return not is_candidate, -trial.epoch, -value, loss if math.isfinite(loss) else math.inf, trial.number

    return sorted(trials, key=place)


def _number(value: float | None) -> Cell:
    if value is None:
        return Cell("", "")
    if isinstance(value, int):
        return Cell(str(value))
    return Cell(format_value(value), repr(float(value)) if math.isfinite(value) else "")


def _percent(value: float | None) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell("" if value is None else str(value), "")
    return Cell(f"{100 * value:.2f}", repr(value))
