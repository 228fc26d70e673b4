"""Confirmation: the best candidates again, at the full budget, on seeds that the search has not used.

    candidates x seeds -> a study of its own -> Ray Tune, without early stopping -> the best mean -> the test set, once

It is a search over a list, so that a crash, a restart, checkpoints, the terminal and MLflow need nothing of their own.
`measure_test_accuracies` is the one place that reads the test set, after the choice; what it says is kept with the
study, so that a restart does not read it again.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ray
import torch
from optuna.storages import BaseStorage
from ray.exceptions import RayError, RayTaskError

from adamsrt.training import Training
from tune_adamsrt.budget import Budget
from tune_adamsrt.candidates import build_confirmation, confirmation_name, fresh_seeds, listed_runs
from tune_adamsrt.cluster.versions import OtherVersionsError, has_other_versions, installed
from tune_adamsrt.mlflow.model import model_item
from tune_adamsrt.plan import Plan
from tune_adamsrt.records import Confirmation, Observer, SearchInfo, TrialRecord, TrialState, top_candidates
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.running import run_trials
from tune_adamsrt.searcher import hopeless_reason
from tune_adamsrt.storage import StorageLostError
from tune_adamsrt.study import Study
from tune_adamsrt.trainable import training_spec
from tune_adamsrt.weights import load_weights, remove_weights, weights_file

TEST_TRIES = 3  # a machine that is lost while it tests costs another try


class ConfirmationError(Exception):
    """The chosen candidate could not be tested; the message is one line."""


class View(Observer, Protocol):
    """An observer that can be told a line as well."""

    def note(self, message: str) -> None: ...


class Tracker(Protocol):
    """Who gives an observer for the runs that confirm a search."""

    def for_confirmation(self, info: SearchInfo) -> Observer: ...


def confirm(
    plan: Plan,
    search: Study,
    storage: BaseStorage,
    *,
    info: SearchInfo,
    resources: TrialResources,
    max_concurrent: int,
    slots: Callable[[], int] | None = None,
    view: View,
    tracking: Tracker,
) -> tuple[Confirmation, str | None]:
    """Train the best candidates of a search again, choose one, and test it; or go on with that.

    Args:
        plan, info: the search's.
        slots: see `run_trials`.
    Returns:
        What it came to (without a candidate where it was cut short), and why it was cut short: "interrupted", or the
        error in one line; None where it was not.
    Raises:
        StudyError, StorageLostError.
    """
    plan = confirmation_plan(plan)
    confirmation = open_confirmation(plan, search, storage)
    about = describe_confirmation(plan, confirmation, info, max_concurrent)
    confirmation.note_start(about)
    candidates = len({number for number, _ in confirmation.listed})
    view.note(f"confirming the best {candidates}: {about.trials} runs, {about.max_epochs_spent} epochs more")
    view.search_started(about)
    for observer in (view, tracking.for_confirmation(about)):
        confirmation.add_observer(observer)
    budget = Budget(confirmation, trials=about.trials)
    stopped_by = run_trials(
        plan,
        confirmation,
        budget,
        resources=resources,
        max_concurrent=about.max_concurrent,
        slots=slots,
        note=view.note,
    )
    result = Confirmation(None, tuple(confirmation.trials.values()), (), candidates)
    if stopped_by is None:
        try:
            result = conclude(plan, search, confirmation, resources)
        except ConfirmationError as error:
            stopped_by = str(error)
        except KeyboardInterrupt:
            stopped_by = "interrupted"
    with contextlib.suppress(StorageLostError):  # it is what ended the confirmation
        confirmation.note_end(about, stopped_by or hopeless_reason(confirmation, about.trials) or "all trials done")
    return result, stopped_by


def describe_confirmation(plan: Plan, confirmation: Study, info: SearchInfo, max_concurrent: int) -> SearchInfo:
    trials = len(confirmation.listed)
    return dataclasses.replace(
        info,
        study_name=confirmation.name,
        trials=trials,
        max_epochs_spent=trials * confirmation.epochs,
        max_concurrent=min(max_concurrent, trials),
        time_budget_s=None,
        tags={**info.tags, "sampler": "listed", "scheduler": plan.scheduler, "rungs": ""},
        key=confirmation.key,
        restored=list(confirmation.trials.values()),
        role="confirmation",
        epochs_after=max(0, info.epochs_after - trials * confirmation.epochs),
    )


def confirmation_plan(plan: Plan) -> Plan:
    """The search's plan with no early stopping, whose runs keep their weights."""
    name = confirmation_name(plan.study_name, plan.confirm_seeds)
    return dataclasses.replace(plan, study_name=name, scheduler="fifo", keeps_weights=True)


def open_confirmation(plan: Plan, search: Study, storage: BaseStorage) -> Study:
    """Open the study of a confirmation and list what it trains.

    Args:
        plan: from confirmation_plan.
    """
    candidates = top_candidates(search.in_state(TrialState.COMPLETE), plan.confirm_candidates)
    return Study(
        plan.study_name,
        storage=storage,
        space=plan.space,
        sampler="random",  # it is never asked: all runs are listed
        seed=plan.seed,
        protocol=plan.protocol,
        listed=listed_runs(candidates, fresh_seeds(plan.seed, plan.confirm_seeds)),
        confirms=search,
    )


def conclude(plan: Plan, search: Study, confirmation: Study, resources: TrialResources) -> Confirmation:
    """Choose a candidate, and read the test set for it, unless that was done before.

    Args:
        plan: from confirmation_plan; all runs of `confirmation` have ended.
    Raises:
        ConfirmationError: the test could not be done.
        StorageLostError.
    """
    runs = list(confirmation.trials.values())
    result = build_confirmation(search.trials, runs, confirmation.test_accuracies)
    if result.candidate is None:
        return result
    if not result.test_accuracies:
        accuracies = _run_test(plan, result.chosen_runs, resources)
        confirmation.note_test(result.candidate.number, accuracies)
        result = build_confirmation(search.trials, runs, confirmation.test_accuracies)
    for run in runs:
        if run not in result.chosen_runs:
            remove_weights(weights_file(plan.weights_folder, run.number))
    return result


def _run_test(plan: Plan, runs: Sequence[TrialRecord], resources: TrialResources) -> list[float]:
    """Read the test set in one Ray task, with a trial's resources: the threads decide a CPU's last bits."""
    place = plan.place(resources) | {"versions": installed()}
    config = {"protocol": plan.protocol, "place": place, "hyper_parameters": runs[0].hyper_parameters, "seed": 0}
    files = [weights_file(plan.weights_folder, run.number) for run in runs]
    task = ray.remote(measure_test_accuracies).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_retries=TEST_TRIES,
        retry_exceptions=[OtherVersionsError],
    )
    try:
        accuracies: list[float] = ray.get(task.remote(config, files))
        return accuracies
    except RayTaskError as error:
        reason = str(error.cause).strip().splitlines() or [type(error.cause).__name__]
        raise ConfirmationError(f"the test set could not be read: {reason[-1]}") from error
    except RayError as error:
        raise ConfirmationError(f"the test set could not be read: {type(error).__name__}") from error


def measure_test_accuracies(config: Mapping[str, Any], files: Sequence[str]) -> list[float]:
    """Measure the test accuracy of weights of one configuration, as `training_example.py` does at its end.

    Args:
        config: as a trial's, see `TrainingTrainable`.
        files: paths or URIs of the weights.
    Raises:
        OtherVersionsError: this node has other versions than the driver.
    """
    if has_other_versions(config["place"].get("versions")):
        raise OtherVersionsError
    torch.set_num_threads(max(1, int(config["place"]["cpus_per_trial"])))
    training = Training(training_spec(dict(config)))
    blank = training.state_dict()
    accuracies = []
    for file in files:
        training.load_state_dict(blank | {"best_weights": load_weights(file)})
        accuracies.append(training.test().test_accuracy)
    return accuracies


def confirmed_model(plan: Plan, search: Study, confirmation: Confirmation) -> dict[str, Any]:
    """Describe the confirmed candidate's model for MLflow: the weights of its best run by validation.

    Args:
        plan: the search's.
    """
    run, valid, test = confirmation.best_run, confirmation.valid_accuracy, confirmation.test_accuracy
    assert confirmation.candidate is not None
    return model_item(
        name=f"{plan.setting.name}-{plan.optimizer}",
        weights=weights_file(confirmation_plan(plan).weights_folder, run.number),
        protocol=plan.protocol,
        data_root=str(plan.data_root),
        hyper_parameters=confirmation.candidate.hyper_parameters,
        valid_accuracy=valid.mean,
        is_reduced=plan.is_reduced,
        tags={
            "study": search.name,
            "trial": confirmation.candidate.number,
            "seed": run.seed,
            "test_accuracy": confirmation.test_accuracies[confirmation.chosen_runs.index(run)],
            "test_accuracy_mean": test.mean,
            "test_accuracy_std": test.std,
            "valid_accuracy_std": valid.std,
            "confirm_seeds": valid.n,
        },
    )
