"""What a study storage holds, read from outside a search: for --list-studies, --resume and --warm-start-from."""

import json
from collections.abc import Iterator

import optuna
from optuna.storages import BaseStorage

from adamsrt.registry import unknown_name_message
from tune_adamsrt.records import HyperParameters, TrialRecord, TrialState
from tune_adamsrt.study import StudyError, best_of, load_records


def newest_study_name(storage: BaseStorage, *, prefix: str) -> str:
    """Find the study to resume: the newest whose name starts so. Raises StudyError where there is none."""
    names = sorted(study.study_name for study in storage.get_all_studies() if study.study_name.startswith(prefix))
    if not names:
        raise StudyError(f"--resume needs an earlier study {prefix}*, got none in this storage; leave --resume out")
    return names[-1]


def top_points(storage: BaseStorage, study_name: str, count: int) -> list[HyperParameters]:
    """Give the hyper-parameters of an earlier study's best candidates, the best first. Raises StudyError."""
    candidates = [record for record in _records(storage, study_name) if record.state is TrialState.COMPLETE]
    if not candidates:
        raise StudyError(f"--warm-start-from needs a study with candidates, got {study_name!r} without any")
    points: list[HyperParameters] = []
    while candidates and len(points) < count:
        best = best_of(candidates)
        assert best is not None
        candidates.remove(best)
        if best.hyper_parameters not in points:
            points.append(best.hyper_parameters)
    return points


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
        what = f"{space.get('setting', '?')}/{space.get('optimizer', '?')}"
        yield f"{study.study_name}  {what}  {counts or 'no trials'}  {value}"


def _records(storage: BaseStorage, study_name: str) -> list[TrialRecord]:
    names = [study.study_name for study in storage.get_all_studies()]
    if study_name not in names:
        raise StudyError(unknown_name_message("study", study_name, names))
    return load_records(optuna.load_study(study_name=study_name, storage=storage).get_trials(deepcopy=False))
