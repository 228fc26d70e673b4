"""The search: `python -m tune_adamsrt.search --setting resnet20-digits`.

    arguments -> Plan (setting, space) -> Study -> Ray Tune (searcher, scheduler, trainable) -> best candidates
         -> confirm (fresh seeds, then one test) -> export, MLflow model

Everything that a user can get wrong is checked before the first Ray process starts.
"""

import os
import signal

if __name__ == "__main__":
    # The imports below take seconds: Ctrl-C meanwhile ends the process without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import contextlib
import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from rich.console import Console

from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.budget import Budget
from tune_adamsrt.campaign import check_campaign, epochs_to_do, goes_on, is_done, with_equal_epochs
from tune_adamsrt.candidates import describe_failures
from tune_adamsrt.cluster.job import DEFAULT_OUTPUT, is_elsewhere, place, run_quietly, search_elsewhere
from tune_adamsrt.cluster.watching import check_cluster, watched
from tune_adamsrt.command_line import leave, without_options
from tune_adamsrt.confirm import confirm
from tune_adamsrt.engine.plan import check_trials_per_gpu, describe_resources, engine_resources, with_slots
from tune_adamsrt.export import ExportError, check_exportable
from tune_adamsrt.head_job import bring_home
from tune_adamsrt.journal import Journal
from tune_adamsrt.mlflow.undelivered import Undelivered
from tune_adamsrt.mlflow.uri import check_tracking_uri, mask_secrets, resolve_tracking_uri, ui_command
from tune_adamsrt.paths import short_path, this_python
from tune_adamsrt.plan import Plan, local_folder, make_plans, prepare_data, render_plan
from tune_adamsrt.provenance import provenance_tags
from tune_adamsrt.publish import export_best, publish_model, report_on
from tune_adamsrt.records import HyperParameters, SearchInfo, SearchSummary, TrialState
from tune_adamsrt.resources import TrialResources, choose_trial_resources, connect, count_slots, describe_cluster
from tune_adamsrt.running import check_output, run_trials
from tune_adamsrt.searcher import hopeless_reason
from tune_adamsrt.settings import known_settings, load_setting
from tune_adamsrt.storage import StorageLostError, StudyError, locked, open_storage
from tune_adamsrt.studies import describe_studies, newest_study_name, top_points
from tune_adamsrt.study import Study
from tune_adamsrt.terminal import TerminalView
from tune_adamsrt.tracking import Tracking

WARM_START_POINTS = 5
DONE, SEARCH_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, 1 (the search failed), 2 (a user's mistake), 130 (interrupted)."""
    arguments = parse_arguments(argv)
    try:
        if arguments.list_settings:
            return list_settings()
        if arguments.list_studies:
            return list_studies_there(arguments) if is_elsewhere(arguments) else list_studies(arguments)
        plans = make_plans(arguments)
        check_trials_per_gpu(plans, arguments)
        if plans[0].campaign is not None:
            check_campaign(arguments)
            plans = [with_equal_epochs(plan) for plan in plans]
        if arguments.dry_run:
            return dry_run(plans, arguments)
        if is_elsewhere(arguments):
            return search_elsewhere(arguments, plans, sys.argv[1:] if argv is None else argv)
        tracking_uri = resolve_tracking_uri(arguments.tracking_uri)
        check_tracking_uri(tracking_uri)
        for plan in plans:
            check_exportable(plan.export)
        with Console().status("preparing the data"):
            prepare_data(plans)
        check_output(plans[0].output)
        with Console().status("starting Ray"):
            connect(arguments.address)
        if arguments.trials_per_gpu is not None:
            with Console().status("looking how many trials share a GPU"):
                plans = with_slots(plans, arguments.trials_per_gpu)
        resources = [trial_resources(plan, arguments) for plan in plans]
        for per_trial in dict.fromkeys(resources):
            check_cluster(per_trial, arguments.max_on_demand_cost)
    except BrokenPipeError:  # whoever reads the plan has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it exits
        return DONE
    except (ValueError, ConnectionError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        if plans[0].campaign is not None:
            return run_campaign(plans, resources, arguments, tracking_uri)
        return run_search(plans[0], resources[0], arguments, tracking_uri)
    except (StudyError, ExportError, StorageLostError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        return INTERRUPTED


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


def list_studies_there(arguments: argparse.Namespace) -> int:
    """Print what --list-studies prints on a cluster's head. Returns its exit code."""
    address = arguments.address or (None if arguments.cluster else os.environ.get("RAY_ADDRESS"))
    options = ["--output", arguments.output] if arguments.output != DEFAULT_OUTPUT else []
    options += ["--study-storage", arguments.study_storage] if arguments.study_storage else []
    if any(mask_secrets(word) != word for word in options):
        raise ValueError("--study-storage must hold no password with --cluster, since Ray shows it; leave it out")
    with place(arguments.cluster, address, export=None, output=arguments.output) as at:
        command = ["python", "-m", "tune_adamsrt.head_job", "studies", *options]
        code, text = run_quietly(at.jobs, command, of="studies")
    print(text, end="")
    return code


def storage_location(arguments: argparse.Namespace) -> str:
    """The Journal file or database that holds the studies."""
    return str(arguments.study_storage or local_folder(arguments.output) / "optuna.journal")


def shown_storage(arguments: argparse.Namespace) -> str:
    location = storage_location(arguments)
    return mask_secrets(location) if "://" in location else str(short_path(Path(location)))


def dry_run(plans: Sequence[Plan], arguments: argparse.Namespace) -> int:
    for plan in plans:
        print(render_plan(plan, resources=describe_resources(plan, arguments)))
    if len(plans) > 1:
        print(f"{len(plans)} searches, at most {sum(plan.max_epochs_spent for plan in plans)} epochs in total")
    return DONE


def trial_resources(plan: Plan, arguments: argparse.Namespace) -> TrialResources:
    if plan.engine_slots is not None:
        return engine_resources(plan, arguments.cpus_per_trial)
    return choose_trial_resources(
        cpus=arguments.cpus_per_trial,
        gpus=arguments.gpus_per_trial,
        default_cpus=plan.setting.cpus_per_trial,
        default_gpus=plan.setting.gpus_per_trial,
    )


def run_campaign(
    plans: Sequence[Plan], resources: Sequence[TrialResources], arguments: argparse.Namespace, tracking_uri: str
) -> int:
    """Run what a campaign has left to do, one search after the other, then compare them. Returns the exit code."""
    storage = open_storage(storage_location(arguments))
    if arguments.resume and arguments.campaign is None:
        plans = goes_on(plans, storage)
    exit_code = DONE
    for index, (plan, per_trial) in enumerate(zip(plans, resources, strict=True)):
        position = f"search {index + 1} of {len(plans)}"
        if is_done(storage, plan):
            print(f"{plan.name}   {position}   done before, in study {plan.study_name}")
            continue
        if index:
            print()
        epochs_after = plan.max_epochs_to_confirm + sum(epochs_to_do(storage, later) for later in plans[index + 1 :])
        exit_code = max(
            exit_code,
            run_search(plan, per_trial, arguments, tracking_uri, position=position, epochs_after=epochs_after),
        )
        if exit_code == INTERRUPTED:
            return INTERRUPTED
    if not arguments.no_report:
        compare(plans, storage)
    return exit_code


def compare(plans: Sequence[Plan], storage: BaseStorage) -> None:
    """Print the table of a campaign's searches and write it beside their reports. Its trouble ends no campaign."""
    folder = plans[0].local_output / "report" / str(plans[0].campaign)
    print()
    try:
        with Console().status("drawing the table"):
            from tune_adamsrt.report import write_table  # matplotlib, which nothing before it needs
        write_table(folder, storage, [plan.study_name for plan in plans])
        bring_home(folder, root=plans[0].local_output)
    except (ValueError, OSError) as error:
        print(f"warning: no table: {' '.join(str(error).split())}")


def run_search(
    plan: Plan,
    resources: TrialResources,
    arguments: argparse.Namespace,
    tracking_uri: str,
    *,
    position: str = "",
    epochs_after: int = 0,
) -> int:
    """Search one optimizer on one setting, confirm and export the best, and tell the user. Returns the exit code.

    Args:
        position, epochs_after: in a campaign, see SearchInfo.
    """
    storage = open_storage(storage_location(arguments))
    if arguments.resume and not arguments.study and plan.campaign is None:
        newest = newest_study_name(storage, prefix=f"{plan.setting.name}-{plan.optimizer}-")
        plan = dataclasses.replace(plan, study_name=newest)
    with locked(plan.study_name, plan.local_output):
        view = TerminalView()
        if isinstance(storage, Journal):
            storage.report_waits(view.note)
        undelivered = Undelivered(plan.local_output, plan.study_name, storage_location(arguments), tracking_uri)
        tracking = Tracking(tracking_uri, on_warning=view.warn, undelivered=undelivered)
        try:
            among = {"position": position, "epochs_after": epochs_after}
            with watched(
                resources,
                view.note,
                on_demand_after_s=arguments.on_demand_after,
                max_on_demand_cost=arguments.max_on_demand_cost,
                kept=plan.local_output / f"{plan.campaign or plan.study_name}.on-demand.json",
            ):
                return search_and_confirm(plan, storage, resources, arguments, view, tracking, undelivered, among)
        finally:
            tracking.close()
            view.close()


def search_and_confirm(
    plan: Plan,
    storage: BaseStorage,
    resources: TrialResources,
    arguments: argparse.Namespace,
    view: TerminalView,
    tracking: Tracking,
    undelivered: Undelivered,
    among: Mapping[str, Any],
) -> int:
    study = Study(
        plan.study_name,
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
        max_total_epochs=plan.max_total_epochs,
        lets_finish=arguments.let_finish,
        reserves=plan.campaign is not None,
    )
    slots = arguments.max_concurrent or count_slots(resources)
    slots_now = None if arguments.max_concurrent else functools.partial(count_slots, resources)
    info = dataclasses.replace(
        describe_search(plan, study, resources, arguments.time_budget, min(slots, plan.trials)), **among
    )
    study.note_start(info)
    for observer in (view, tracking):
        observer.search_started(info)
    started = time.monotonic()
    stopped_by = run_trials(
        plan,
        study,
        budget,
        resources=resources,
        max_concurrent=info.max_concurrent,
        slots=slots_now,
        note=view.note,
    )
    ended_by = stopped_by or hopeless_reason(study, plan.trials) or budget.reason_not_to_start() or "done"
    with contextlib.suppress(StorageLostError):  # it is what ended the search, or the next word to the study says so
        study.note_end(info, ended_by)
    confirmation = None
    if stopped_by is None and study.best is not None and plan.confirm_seeds:
        confirmation, stopped_by = confirm(
            plan,
            study,
            storage,
            info=info,
            resources=resources,
            max_concurrent=slots,
            slots=slots_now,
            view=view,
            tracking=tracking,
        )
    best = study.best if confirmation is None else confirmation.candidate
    where = []
    if stopped_by is None and best is not None:
        place = export_best(plan, study, best, confirmation, resources, tracking)
        where.append(("best values", place))
        where += [("at the edge", line) for line in plan.space.edges(best.hyper_parameters)]
    elif stopped_by is None and confirmation is not None:
        where.append(("not exported", f"nothing was confirmed: {describe_failures(confirmation.runs)}"))
    summary = SearchSummary(
        best=study.best,
        candidates=len(study.in_state(TrialState.COMPLETE)),
        trials=list(study.trials.values()),
        epochs_spent=study.epochs_spent,
        seconds=time.monotonic() - started,
        ended_by=stopped_by or ended_by,
        confirmation=confirmation,
    )
    if stopped_by is None and study.trials and not arguments.no_report:
        where += report_on(plan, storage, tracking, view)
    for observer in (view, tracking):
        observer.search_ended(summary)
    tracking.close()
    if confirmation is not None and confirmation.candidate is not None:
        where += publish_model(plan, study, confirmation, tracking, undelivered, view)
    where.append(("study", f"{study.name} in {shown_storage(arguments)}"))
    where.append(("MLflow", ui_command(tracking.uri)))
    if stopped_by is not None:
        where.append(("to go on", resume_command(plan)))
    view.show_where(where)
    if stopped_by == "interrupted":
        return INTERRUPTED
    return DONE if stopped_by is None and best is not None else SEARCH_FAILED


def first_points(plan: Plan, storage: BaseStorage, warm_start_from: str | None) -> list[tuple[HyperParameters, str]]:
    """List what is tried before the sampler's own points: the best of an earlier study, then the published best."""
    earlier = top_points(storage, warm_start_from, WARM_START_POINTS) if warm_start_from else []
    points = [(point, f"from {warm_start_from}") for point in earlier if plan.space.contains(point)]
    return points + [(point, "published best") for point in plan.first_points]


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
        tags={
            **provenance_tags(plan, place=plan.place(resources), cluster=describe_cluster(), resources=str(resources)),
            "command": mask_secrets(resume_command(plan)),
        },
        key=study.key,
        restored=list(study.trials.values()),
    )


def resume_command(plan: Plan) -> str:
    """The command that goes on: the one that was typed, narrowed down to its study, or with its campaign's name."""
    if plan.campaign is not None:
        typed = [word for word in without_options(sys.argv[1:], "--campaign") if word != "--resume"]
        return shlex.join([this_python(), "-m", "tune_adamsrt.search", *typed, "--campaign", plan.campaign])
    typed = without_options(sys.argv[1:], "--setting", "--optimizer", "--study")
    typed = [argument for argument in typed if argument != "--resume"]
    own = ["--setting", plan.typed_setting, "--optimizer", plan.optimizer, "--study", plan.study_name]
    return shlex.join([this_python(), "-m", "tune_adamsrt.search", *own, *typed])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    leave(main())
