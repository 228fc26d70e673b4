"""The search: `python -m tune_adamsrt.search --setting resnet20-digits`.

    arguments -> Plan (setting, space) -> Study -> Ray Tune (searcher, scheduler, trainable) -> best -> export

Everything that a user can get wrong is checked before the first Ray process starts.
"""

import os
import signal

if __name__ == "__main__":
    # The imports below take seconds: Ctrl-C meanwhile ends the process without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from optuna.storages import BaseStorage
from rich.console import Console

from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.budget import Budget
from tune_adamsrt.export import Entry, ExportError, check_exportable, merge_entry
from tune_adamsrt.plan import Plan, local_folder, make_plans, prepare_data, render_plan
from tune_adamsrt.provenance import export_comments, provenance_tags
from tune_adamsrt.records import HyperParameters, SearchInfo, SearchSummary, TrialRecord, TrialState
from tune_adamsrt.resources import TrialResources, choose_trial_resources, connect, count_slots, describe_cluster
from tune_adamsrt.running import check_output, run_trials
from tune_adamsrt.searcher import hopeless_reason
from tune_adamsrt.settings import known_settings, load_setting
from tune_adamsrt.studies import describe_studies, newest_study_name, top_points
from tune_adamsrt.study import StorageLostError, Study, StudyError, locked, open_storage
from tune_adamsrt.terminal import TerminalView
from tune_adamsrt.tracking import Tracking
from tune_adamsrt.tracking_uri import check_tracking_uri, mask_secrets, resolve_tracking_uri, ui_command

WARM_START_POINTS = 5
DONE, SEARCH_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, 1 (the search failed), 2 (a user's mistake), 130 (interrupted)."""
    arguments = parse_arguments(argv)
    try:
        if arguments.list_settings:
            return list_settings()
        if arguments.list_studies:
            return list_studies(arguments)
        plans = make_plans(arguments)
        if arguments.dry_run:
            return dry_run(plans, arguments)
        tracking_uri = resolve_tracking_uri(arguments.tracking_uri)
        check_tracking_uri(tracking_uri)
        for plan in plans:
            check_exportable(plan.export)
        with Console().status("preparing the data"):
            prepare_data(plans)
        check_output(plans[0].output)
        with Console().status("starting Ray"):
            connect(arguments.address)
        resources = [trial_resources(plan, arguments) for plan in plans]
    except (ValueError, ConnectionError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    exit_code = DONE
    for plan, per_trial in zip(plans, resources, strict=True):
        try:
            exit_code = max(exit_code, run_search(plan, per_trial, arguments, tracking_uri))
        except (StudyError, ExportError, StorageLostError) as error:
            return refuse(error)
        except KeyboardInterrupt:
            return INTERRUPTED
        if exit_code == INTERRUPTED:
            break
    return exit_code


def refuse(error: BaseException) -> int:
    print(f"error: {error}", file=sys.stderr)
    return USER_ERROR


def list_settings() -> int:
    for name in known_settings():
        setting = load_setting(name)
        print(f"{name:<20}{setting.trials:>4} trials of {setting.epochs} epochs")
    return DONE


def list_studies(arguments: argparse.Namespace) -> int:
    for line in describe_studies(open_storage(storage_location(arguments), must_exist=True)):
        print(line)
    return DONE


def storage_location(arguments: argparse.Namespace) -> str:
    """The Journal file or database that holds the studies."""
    return str(arguments.study_storage or local_folder(arguments.output) / "optuna.journal")


def dry_run(plans: Sequence[Plan], arguments: argparse.Namespace) -> int:
    for plan in plans:
        print(render_plan(plan, cpus_per_trial=arguments.cpus_per_trial, gpus_per_trial=arguments.gpus_per_trial))
    if len(plans) > 1:
        print(f"{len(plans)} searches, at most {sum(plan.max_epochs_spent for plan in plans)} epochs in total")
    return DONE


def trial_resources(plan: Plan, arguments: argparse.Namespace) -> TrialResources:
    return choose_trial_resources(
        cpus=arguments.cpus_per_trial,
        gpus=arguments.gpus_per_trial,
        default_cpus=plan.setting.cpus_per_trial,
        default_gpus=plan.setting.gpus_per_trial,
    )


def run_search(plan: Plan, resources: TrialResources, arguments: argparse.Namespace, tracking_uri: str) -> int:
    """Search one optimizer on one setting, export the best, and tell the user. Returns the exit code."""
    storage = open_storage(storage_location(arguments))
    study_name = plan.study_name
    if arguments.resume and not arguments.study:
        study_name = newest_study_name(storage, prefix=f"{plan.setting.name}-{plan.optimizer}-")
    with locked(study_name, plan.local_output):
        view = TerminalView()
        tracking = Tracking(tracking_uri, on_warning=view.warn)
        try:
            study = Study(
                study_name,
                storage=storage,
                space=plan.space,
                sampler=plan.sampler,
                seed=plan.seed,
                protocol=plan.protocol,
                first_points=first_points(plan, storage, arguments.warm_start_from),
                observers=(view, tracking),
            )
            budget = Budget(
                study,
                trials=plan.trials,
                time_budget_s=arguments.time_budget,
                max_total_epochs=arguments.max_total_epochs,
            )
            max_concurrent = min(arguments.max_concurrent or count_slots(resources), plan.trials)
            info = describe_search(plan, study, resources, arguments.time_budget, max_concurrent)
            study.note_start(info)
            for observer in (view, tracking):
                observer.search_started(info)
            started = time.monotonic()
            stopped_by = run_trials(
                plan, study, budget, resources=resources, max_concurrent=max_concurrent, note=view.note
            )
            where = []
            if stopped_by is None and study.best is not None:
                where.append(("best values", export_best(plan, study, study.best, tracking)))
                where += [("at the edge", line) for line in plan.space.edges(study.best.hyper_parameters)]
            summary = SearchSummary(
                best=study.best,
                candidates=len(study.in_state(TrialState.COMPLETE)),
                trials=list(study.trials.values()),
                epochs_spent=study.epochs_spent,
                seconds=time.monotonic() - started,
                ended_by=stopped_by or hopeless_reason(study, plan.trials) or budget.reason_not_to_start() or "done",
            )
            study.note_end(info, summary.ended_by)
            for observer in (view, tracking):
                observer.search_ended(summary)
            tracking.close()
            where.append(("study", f"{study_name} in {mask_secrets(storage_location(arguments))}"))
            where.append(("MLflow", ui_command(tracking_uri)))
            if stopped_by is not None:
                where.append(("to go on", resume_command(study_name)))
            view.show_where(where)
        finally:
            tracking.close()
            view.close()
    if stopped_by == "interrupted":
        return INTERRUPTED
    return DONE if stopped_by is None and study.best is not None else SEARCH_FAILED


def first_points(plan: Plan, storage: BaseStorage, warm_start_from: str | None) -> list[tuple[HyperParameters, str]]:
    """List what is tried before the sampler's own points: the best of an earlier study, then the published best."""
    earlier = top_points(storage, warm_start_from, WARM_START_POINTS) if warm_start_from else []
    points = [(point, f"from {warm_start_from}") for point in earlier if plan.space.contains(point)]
    return points + [(point, "published best") for point in plan.space.first_points()]


def describe_search(
    plan: Plan, study: Study, resources: TrialResources, time_budget_s: float | None, max_concurrent: int
) -> SearchInfo:
    return SearchInfo(
        name=plan.name,
        setting=plan.setting.name,
        optimizer=plan.optimizer,
        study_name=study.name,
        trials=plan.trials,
        epochs=plan.setting.epochs,
        max_epochs_spent=plan.max_epochs_spent,
        max_concurrent=max_concurrent,
        time_budget_s=time_budget_s,
        space=plan.space.to_json(),
        tags=provenance_tags(plan, place=plan.place(resources), cluster=describe_cluster(), resources=str(resources)),
        key=study.key,
        restored=list(study.trials.values()),
    )


def export_best(plan: Plan, study: Study, best: TrialRecord, tracking: Tracking) -> str:
    """Merge the best configuration into the exported module. Returns where it stands there, or why it does not."""
    entry = Entry(
        dataset=plan.setting.dataset,
        model=plan.setting.model,
        optimizer=plan.optimizer,
        hyper_parameters=best.hyper_parameters,
        provenance=export_comments(plan, study, best, run_id=tracking.run_id),
    )
    place = f"{plan.export}  ['{entry.dataset}']['{entry.model}']['{entry.optimizer}']"
    if not merge_entry(plan.export, entry, may_replace=plan.may_replace):
        return f"not exported: a reduced run does not replace {place}; --export FILE exports it"
    tracking.add_artifact(plan.export)
    return place


def resume_command(study_name: str) -> str:
    """The command that goes on with this study: the one that was typed, with the study's name."""
    typed = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if "--study" not in typed:
        typed += ["--study", study_name]
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", "tune_adamsrt.search", *typed])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
