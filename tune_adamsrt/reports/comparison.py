"""One optimizer on one setting, as a comparison sees it: what its search and the confirmation of its best came to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage

from tune_adamsrt.records import Confirmation, HyperParameters, Spread, spread_of
from tune_adamsrt.reports.analysis import WinnerAt, edge_lines, winner_at
from tune_adamsrt.storage import StudyError
from tune_adamsrt.studies import StoredSearch, load_confirmation, load_search


@dataclass(frozen=True)
class Cell:
    """One optimizer on one setting: the candidate that its search has confirmed.

    Attributes:
        test, valid: seed -> accuracy in [0, 1], of the confirmed candidate's runs.
        epochs: the full budget of a trial.
        trials: all that were started.
        search_epochs_spent: by all of them, stopped and failed ones and epochs trained twice included.
        search_epochs_allowed: the most that the search was allowed to spend.
        confirm_epochs_spent: by all runs of the confirmation.
        protocol: what all trials have in common, but for the optimizer.
        method: sampler, scheduler, and what the search knew beforehand.
        versions: of the packages, the code and the kind of device.
        edges: which of its values lie at an edge of the space, in words.
        standing: where it stood among all trials at every rung.
    """

    setting: str
    optimizer: str
    test: Mapping[int, float]
    valid: Mapping[int, float]
    hyper_parameters: HyperParameters
    space: Mapping[str, Any]
    epochs: int
    trials: int
    search_epochs_spent: int
    search_epochs_allowed: int
    confirm_epochs_spent: int
    protocol: Mapping[str, Any]
    method: Mapping[str, str]
    versions: Mapping[str, str]
    edges: tuple[str, ...] = ()
    standing: tuple[WinnerAt, ...] = ()
    study: str = ""
    trial: int | None = None

    @property
    def test_accuracy(self) -> Spread:
        return spread_of(list(self.test.values()))

    @property
    def valid_accuracy(self) -> Spread:
        return spread_of(list(self.valid.values()))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(self.test))


def build_cell(search: StoredSearch, confirmation: Confirmation) -> Cell:
    """Put together what a search and its confirmation came to; the confirmation has been tested."""
    chosen = confirmation.candidate
    assert chosen is not None
    info = search.info
    runs = confirmation.chosen_runs
    return Cell(
        setting=info.setting,
        optimizer=info.optimizer,
        test={run.seed: value for run, value in zip(runs, confirmation.test_accuracies, strict=True)},
        valid={run.seed: run.value for run in runs if run.value is not None},
        hyper_parameters=chosen.hyper_parameters,
        space=info.space,
        epochs=info.epochs,
        trials=len(search.trials),
        search_epochs_spent=sum(trial.epochs_spent for trial in search.trials),
        search_epochs_allowed=info.max_epochs_spent,
        confirm_epochs_spent=confirmation.epochs_spent,
        protocol={name: value for name, value in search.protocol.items() if name != "optimizer"},
        method={
            "sampler": search.sampler,
            "scheduler": info.tags.get("scheduler", ""),
            "published_first_points": info.tags.get("first_points", ""),
        },
        versions={
            name: value
            for name, value in info.tags.items()
            if name.startswith("version.") or name in ("git_revision", "device")
        },
        edges=tuple(edge_lines(search, chosen)),
        standing=tuple(winner_at(search, chosen)),
        study=info.study_name,
        trial=chosen.number,
    )


def load_cell(storage: BaseStorage, study_name: str) -> Cell:
    """Read what a search came to. Raises StudyError where it is unknown, or its best has not been tested."""
    search = load_search(storage, study_name)
    confirmation = load_confirmation(storage, study_name)
    if confirmation is None:
        raise StudyError(
            f"study {study_name!r} must have a confirmed and tested best to be compared, got none; "
            "go on with it (--resume) without --confirm-seeds 0"
        )
    return build_cell(search, confirmation)


def load_cells(storage: BaseStorage, study_names: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """Read what several searches came to; for those whose best has not been tested, say so in a line each.

    Raises StudyError for an unknown study, or where no search has been tested.
    """
    cells, left_out = [], []
    for name in study_names:
        if load_confirmation(storage, name) is None:
            left_out.append(f"{name}: left out, its best has not been confirmed and tested yet")
        else:
            cells.append(load_cell(storage, name))
    if not cells:
        raise StudyError(
            f"a table needs a search whose best has been tested, got none of {len(study_names)}; "
            "run one with --confirm-seeds 3"
        )
    return cells, left_out
