"""What a study storage holds, read from outside a search: for --list-studies, --resume, status, report and sync."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage

from adamsrt.registry import unknown_name_message
from tune_adamsrt.candidates import build_confirmation, is_confirmation
from tune_adamsrt.records import (
    Confirmation,
    HyperParameters,
    SearchInfo,
    TrialRecord,
    TrialState,
    best_of,
    top_candidates,
)
from tune_adamsrt.storage import StudyError
from tune_adamsrt.stored_trials import load_records, read_test_accuracies


@dataclass(frozen=True)
class StoredSearch:
    """A search as its study has it, whether it runs, has ended, or has lost its driver.

    Attributes:
        info: as the search described itself when it last started; `info.restored` holds all its trials.
        protocol: what all trials have in common: dataset, model, epochs, batch size, ... (see `Plan.protocol`).
        started_at, ended_at: of its last run, in seconds since the Unix epoch; ended_at is None where it has not ended.
        ended_by: "done", "interrupted", "time budget", ...; None where it still runs or its driver was lost.
        confirms: the name of the study whose best are trained again here; None for a search.
        test_accuracies: of a confirmation, by the number of the search's trial that was tested.
    """

    info: SearchInfo
    protocol: dict[str, Any]
    sampler: str
    seed: int
    started_at: float | None
    ended_at: float | None
    ended_by: str | None
    confirms: str | None = None
    test_accuracies: Mapping[int, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def trials(self) -> list[TrialRecord]:
        return list(self.info.restored)


def load_search(storage: BaseStorage, study_name: str) -> StoredSearch:
    """Read a search from its study. Raises StudyError for an unknown study, or one that no search has made."""
    trials = _records(storage, study_name)
    attributes = optuna.load_study(study_name=study_name, storage=storage).user_attrs
    if "description" not in attributes:
        raise StudyError(f"study {study_name!r} must be one of tune_adamsrt, it holds no description; name another")
    description = json.loads(attributes["description"])
    kept = dict(attributes.get("search") or _bare_search(study_name, description, trials))
    times = {name: kept.pop(name, None) for name in ("started_at", "ended_at", "ended_by")}
    known = {field.name for field in dataclasses.fields(SearchInfo)}
    return StoredSearch(
        info=SearchInfo(
            **{name: value for name, value in kept.items() if name in known}
            | {"key": attributes.get("key", ""), "restored": trials}
        ),
        protocol=description["protocol"],
        sampler=description["sampler"],
        seed=description["seed"],
        confirms=description.get("confirms"),
        test_accuracies=read_test_accuracies(attributes),
        **times,
    )


def confirmations_of(storage: BaseStorage, study_name: str) -> list[StoredSearch]:
    """Read the confirmations of a search, one per number of seeds, the newest last."""
    names = [study.study_name for study in storage.get_all_studies() if study.user_attrs.get("description")]
    found = [load_search(storage, name) for name in names if is_confirmation(name, of=study_name)]
    return sorted(found, key=lambda confirmation: confirmation.started_at or 0.0)


def load_confirmation(storage: BaseStorage, study_name: str) -> Confirmation | None:
    """Read what the last confirmation of a search came to; None where none has ended with a test."""
    search = {trial.number: trial for trial in _records(storage, study_name)}
    for stored in reversed(confirmations_of(storage, study_name)):
        confirmation = build_confirmation(search, stored.trials, stored.test_accuracies)
        if confirmation.test_accuracies:
            return confirmation
    return None


def _bare_search(study_name: str, description: dict[str, Any], trials: list[TrialRecord]) -> dict[str, Any]:
    """What can be said of a study whose search has not described itself: it was killed first, or is an older one."""
    space, epochs = description["space"], description["protocol"]["epochs"]
    return {
        "name": f"{space['setting']}/{space['optimizer']}",
        "setting": space["setting"],
        "optimizer": space["optimizer"],
        "study_name": study_name,
        "trials": len(trials),
        "epochs": epochs,
        "max_epochs_spent": len(trials) * epochs,
        "max_concurrent": 1,
        "time_budget_s": None,
        "space": space,
        "tags": {},
    }


def newest_study_name(storage: BaseStorage, *, prefix: str) -> str:
    """Find the study to resume: the newest search whose name starts so. Raises StudyError where there is none."""
    known = [
        study.study_name
        for study in storage.get_all_studies()
        if not is_confirmation(study.study_name)
        and "campaign" not in study.user_attrs.get("search", {}).get("tags", {})  # it has a budget of its own
    ]
    names = sorted(name for name in known if name.startswith(prefix))
    if not names:
        raise StudyError(f"--resume needs an earlier study {prefix}*, got none in this storage; leave --resume out")
    return names[-1]


def top_points(storage: BaseStorage, study_name: str, count: int) -> list[HyperParameters]:
    """Give the hyper-parameters of an earlier study's best candidates, the best first. Raises StudyError."""
    candidates = [record for record in _records(storage, study_name) if record.state is TrialState.COMPLETE]
    if not candidates:
        raise StudyError(f"--warm-start-from needs a study with candidates, got {study_name!r} without any")
    return [record.hyper_parameters for record in top_candidates(candidates, count)]


def describe_studies(storage: BaseStorage) -> Iterator[str]:
    """Give a line per study: its name, what it searches, its trials by state and its best value."""
    for study in sorted(storage.get_all_studies(), key=lambda study: study.study_name):
        records = _records(storage, study.study_name)
        description = json.loads(study.user_attrs.get("description", "{}"))
        space = description.get("space", {})
        counts = ", ".join(
            f"{count} {state}" for state in TrialState if (count := sum(r.state is state for r in records))
        )
        best = best_of([record for record in records if record.state is TrialState.COMPLETE])
        value = f"best {100 * best.value:.2f} %" if best is not None and best.value is not None else "no candidate"
        if "confirms" in description:
            tested = ", ".join(f"tested trial {number}" for number in read_test_accuracies(study.user_attrs))
            value = f"confirms {description['confirms']}: {tested or 'not tested yet'}"
        what = f"{space.get('setting', '?')}/{space.get('optimizer', '?')}"
        yield f"{study.study_name}  {what}  {counts or 'no trials'}  {value}"


def _records(storage: BaseStorage, study_name: str) -> list[TrialRecord]:
    names = [study.study_name for study in storage.get_all_studies()]
    if study_name not in names:
        raise StudyError(unknown_name_message("study", study_name, names))
    return load_records(optuna.load_study(study_name=study_name, storage=storage).get_trials(deepcopy=False))
