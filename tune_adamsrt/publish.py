"""What becomes of the best of a search: the exported module, the report, the model in MLflow."""

import contextlib

from optuna.storages import BaseStorage
from rich.console import Console

from tune_adamsrt.confirm import confirmed_model
from tune_adamsrt.export import Entry, merge_entry
from tune_adamsrt.head_job import bring_home
from tune_adamsrt.mlflow.model import log_model
from tune_adamsrt.mlflow.undelivered import Undelivered
from tune_adamsrt.mlflow.uri import mask_secrets
from tune_adamsrt.paths import short_path
from tune_adamsrt.plan import Plan
from tune_adamsrt.provenance import export_comments
from tune_adamsrt.records import Confirmation, TrialRecord
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.study import Study
from tune_adamsrt.terminal import TerminalView
from tune_adamsrt.tracking import Tracking


def export_best(
    plan: Plan,
    study: Study,
    best: TrialRecord,
    confirmation: Confirmation | None,
    resources: TrialResources,
    tracking: Tracking,
) -> str:
    """Merge the best configuration into the exported module. Returns where it stands there, or why it does not."""
    entry = Entry(
        dataset=plan.setting.dataset,
        model=plan.setting.model,
        optimizer=plan.optimizer,
        hyper_parameters=best.hyper_parameters,
        provenance=export_comments(plan, study, best, confirmation, cpus=resources.cpus, run_id=tracking.run_id),
    )
    place = f"{short_path(plan.export)}  ['{entry.dataset}']['{entry.model}']['{entry.optimizer}']"
    if not merge_entry(plan.export, entry, may_replace=plan.may_replace):
        return f"not exported: a reduced run does not replace {place}; --export FILE exports it"
    tracking.add_artifact(plan.export)
    return place


def report_on(plan: Plan, storage: BaseStorage, tracking: Tracking, view: TerminalView) -> list[tuple[str, str]]:
    """Write the report's page, figures and tables, and hand the main ones to MLflow. Its trouble ends no search."""
    folder = plan.local_output / "report" / plan.study_name
    try:
        with Console().status("drawing the report"):
            from tune_adamsrt.report import write_search_report  # matplotlib, which nothing before it needs

            page, kept = write_search_report(folder, storage, plan.study_name)
    except Exception as error:
        view.warn(f"the report could not be written: {' '.join(str(error).split())[:200]}")
        return []
    for path in kept:
        tracking.add_artifact(path)
    bring_home(folder, root=plan.local_output)
    return [("report", str(short_path(page)))]


def publish_model(
    plan: Plan,
    study: Study,
    confirmation: Confirmation,
    tracking: Tracking,
    undelivered: Undelivered,
    view: TerminalView,
) -> list[tuple[str, str]]:
    """Log the confirmed model. Where MLflow does not take it, it waits in a file, and the user learns what sends it."""
    name = f"{plan.setting.name}-{plan.optimizer}"
    item = confirmed_model(plan, study, confirmation)
    arguments = {key: value for key, value in item.items() if key != "kind"}
    with contextlib.suppress(OSError):
        undelivered.add(item)  # before it is tried: whoever kills us now loses nothing
    try:
        with Console().status("logging the model"):
            version = log_model(uri=tracking.uri, run_id=tracking.run_id, **arguments)
    except Exception as error:  # whatever a store, a driver or a plugin raises, the search has ended well
        reason = mask_secrets(" ".join(str(error).split()))[:200]
        view.warn(f"the model was not logged: {reason}; to send it later: {undelivered.command}")
        return []
    with contextlib.suppress(OSError):
        undelivered.items.remove(item)
        if undelivered.items or undelivered.missing:
            undelivered.write()
        else:
            undelivered.remove()
    return [("model", f"models:/{name}/{version}")]
