"""A campaign: searches that are made to be compared, `--optimizer all` or several settings.

Each search gets the same total of epochs, so that no optimizer is tuned better because it was tuned longer: stopped and
failed trials count, and how many trials it takes is the search's own affair. The searches share one name, by which an
interrupted campaign goes on: what is done is left alone, what was begun goes on, what is missing begins.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from optuna.storages import BaseStorage

from tune_adamsrt.candidates import is_confirmation
from tune_adamsrt.plan import STUDY_NAME, Plan, search_study_name
from tune_adamsrt.storage import StudyError
from tune_adamsrt.studies import StoredSearch, confirmations_of, load_confirmation, load_search

UNFINISHED = ("interrupted", "broken off")  # how `ended_by` of a search begins that has more to do


def check_campaign(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that would make a campaign's searches unequal, or hide one of them."""
    if arguments.campaign is not None and not STUDY_NAME.fullmatch(arguments.campaign):
        raise ValueError(
            f"--campaign must be letters, digits, '.', '_' and '-', got {arguments.campaign!r}; choose another"
        )
    if arguments.study:
        raise ValueError(
            f"--study must name the study of one search, got {arguments.study} for a campaign; leave it out"
        )
    if arguments.sampler == "grid":
        raise ValueError(
            "the searches of a campaign must have equal budgets, got --sampler grid, whose size is the space's; "
            "choose tpe or random"
        )
    if arguments.trials is not None and arguments.max_total_epochs is not None:
        raise ValueError(
            f"the searches of a campaign must have one budget, got --trials {arguments.trials} and --max-total-epochs "
            f"{arguments.max_total_epochs}; leave --trials out, they take as many as the epochs allow"
        )
    if arguments.warm_start_from:
        raise ValueError(
            f"the searches of a campaign must begin alike, got --warm-start-from {arguments.warm_start_from}, whose "
            "points are one optimizer's; leave it out"
        )
    if arguments.time_budget is not None:
        raise ValueError(
            "the searches of a campaign must end by epochs, got --time-budget, which would make them unequal; use "
            "--max-total-epochs (stop it at any time: it goes on where it stood)"
        )


def with_equal_epochs(plan: Plan) -> Plan:
    """The plan with its whole budget in epochs: as many as its trials in full, or --max-total-epochs.

    Raises ValueError where that leaves no room for a trial.
    """
    total = plan.max_total_epochs or plan.trials * plan.setting.epochs
    if total < plan.setting.epochs:
        raise ValueError(
            f"--max-total-epochs must leave room for one trial of {plan.setting.epochs} epochs, got {total}; raise it, "
            "or lower --epochs"
        )
    shortest = min([plan.setting.epochs, *plan.rungs])
    return dataclasses.replace(plan, max_total_epochs=total, trials=total // shortest)


def goes_on(plans: Sequence[Plan], storage: BaseStorage) -> list[Plan]:
    """The plans under the name of the newest campaign that has made one of them, for --resume. Raises StudyError."""
    wanted = {(plan.setting.name, plan.optimizer) for plan in plans}
    found = [
        (search.started_at or 0.0, search.info.tags["campaign"])
        for search in _searches(storage)
        if search.info.tags.get("campaign") and (search.info.setting, search.info.optimizer) in wanted
    ]
    if not found:
        raise StudyError("--resume needs an earlier campaign of these searches, got none in this storage; leave it out")
    campaign = max(found)[1]
    return [
        dataclasses.replace(
            plan,
            campaign=campaign,
            study_name=search_study_name(plan.setting.name, plan.optimizer, campaign),
        )
        for plan in plans
    ]


def studies_of(storage: BaseStorage, campaign: str) -> list[str]:
    """Name the studies of a campaign's searches. Raises StudyError where it has none."""
    searches = list(_searches(storage))
    names = [search.info.study_name for search in searches if search.info.tags.get("campaign") == campaign]
    if not names:
        known = sorted({search.info.tags["campaign"] for search in searches if search.info.tags.get("campaign")})
        others = f"it has {', '.join(known)}" if known else "it has none"
        raise StudyError(f"--campaign must be one of this storage, got {campaign!r}; {others}")
    return names


def is_done(storage: BaseStorage, plan: Plan) -> bool:
    """Tell whether a search has nothing left to do: it came to its end, and its best is confirmed and tested."""
    if not _is_begun(storage, plan):
        return False
    search = load_search(storage, plan.study_name)
    if search.ended_by is None or search.ended_by.startswith(UNFINISHED):
        return False
    if search.info.max_epochs_spent < plan.max_epochs_spent:
        return False  # it was asked for less then
    if not plan.confirm_seeds:
        return True
    confirmation = load_confirmation(storage, plan.study_name)
    return confirmation is not None and len(confirmation.seeds) >= plan.confirm_seeds


def epochs_to_do(storage: BaseStorage, plan: Plan) -> int:
    """The most that a search and its confirmation may still spend."""
    most = plan.max_epochs_spent + plan.max_epochs_to_confirm
    if not _is_begun(storage, plan):
        return most
    if is_done(storage, plan):
        return 0
    stored = [load_search(storage, plan.study_name), *confirmations_of(storage, plan.study_name)]
    return max(0, most - sum(trial.epochs_spent for search in stored for trial in search.trials))


def _is_begun(storage: BaseStorage, plan: Plan) -> bool:
    """Whether the search has a study; one whose driver was killed before it could say what it is for does not count."""
    studies = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
    return "description" in studies.get(plan.study_name, {})


def _searches(storage: BaseStorage) -> Iterator[StoredSearch]:
    for study in storage.get_all_studies():
        if "search" in study.user_attrs and not is_confirmation(study.study_name):
            yield load_search(storage, study.study_name)
