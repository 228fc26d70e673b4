"""Sends to MLflow what it lacks of earlier searches: `python -m tune_adamsrt.sync`.

The study has every epoch; only what MLflow does not hold is sent, so that a second call sends nothing. Exit codes: 0
all is there, 2 it is not (the server is still away, or a user's mistake); the reason is on stderr.
"""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from tune_adamsrt.arguments import DEFAULT_OUTPUT
from tune_adamsrt.command_line import leave
from tune_adamsrt.mlflow.undelivered import STORAGE_FILE, Undelivered, load_undelivered, undelivered_studies
from tune_adamsrt.mlflow.uri import check_tracking_uri, mask_secrets, resolve_tracking_uri
from tune_adamsrt.plan import local_folder
from tune_adamsrt.records import SearchSummary, TrialState, best_of
from tune_adamsrt.storage import StudyError, locked, open_storage
from tune_adamsrt.studies import StoredSearch, confirmations_of, load_confirmation, load_search
from tune_adamsrt.tracking import Tracking

DELIVERED, NOT_DELIVERED, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    arguments = parse_arguments(argv)
    output = local_folder(arguments.output)
    names = [arguments.study] if arguments.study else undelivered_studies(output)
    if not names:
        print(f"{output}: MLflow lacks nothing that is known; --study NAME checks one study in full")
        return DELIVERED
    exit_code = DELIVERED
    silent: set[str] = set()  # trackers that did not answer: nobody waits for them twice
    for name in names:
        try:
            undelivered = load_undelivered(output, name) or Undelivered(output, name, str(output / STORAGE_FILE), "")
            undelivered.study_storage = choose_storage(arguments.study_storage, undelivered)
            undelivered.tracking_uri = choose_uri(arguments.tracking_uri, undelivered)
            if undelivered.tracking_uri in silent:
                print(f"{name}: not sent, it waits for the same MLflow", file=sys.stderr)
                continue
            with locked(name, output):
                is_delivered = sync(undelivered)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            exit_code = NOT_DELIVERED
            continue
        except KeyboardInterrupt:
            return INTERRUPTED
        if not is_delivered:
            silent.add(undelivered.tracking_uri)
            exit_code = NOT_DELIVERED
    return exit_code


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tune_adamsrt.sync",
        description="Send to MLflow what it lacks of earlier searches: of all that are known to be incomplete there, "
        "or of one study.",
    )
    parser.add_argument("--study", metavar="NAME", help="one study, also where nothing is known to be missing")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, metavar="DIR", help="as for the search (default: runs)")
    parser.add_argument(
        "--study-storage", metavar="URL", help="journal file or database (default: OUTPUT/optuna.journal)"
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow (default: the search's own, else as for the search)"
    )
    return parser.parse_args(argv)


def choose_storage(option: str | None, undelivered: Undelivered) -> str:
    """The study storage: the option, else the search's own. Raises ValueError where its password is not kept."""
    if option is None and "***" in undelivered.study_storage:
        raise ValueError(
            f"study {undelivered.study_name} is in {undelivered.study_storage}, whose password is not kept; name it "
            f"with --study-storage"
        )
    return option or undelivered.study_storage


def choose_uri(option: str | None, undelivered: Undelivered) -> str:
    """The tracking URI: the option, else the search's own, else as for a search. Raises ValueError.

    A search's own URI is kept without its password; that can be in MLFLOW_TRACKING_URI.
    """
    kept = undelivered.tracking_uri
    uri = resolve_tracking_uri(option or (kept if kept and "***" not in kept else None))
    if option is None and "***" in kept and mask_secrets(uri) != kept:
        raise ValueError(
            f"study {undelivered.study_name} goes to {kept}, whose password is not kept; name it with --tracking-uri "
            f"or MLFLOW_TRACKING_URI"
        )
    check_tracking_uri(uri)
    return uri


def sync(undelivered: Undelivered) -> bool:
    """Bring MLflow up to date with one study, and say what was sent. Returns whether all is there.

    Raises:
        StudyError: the storage cannot be read, the study is unknown or none of tune_adamsrt.
    """
    name, uri = undelivered.study_name, undelivered.tracking_uri
    storage = open_storage(undelivered.study_storage, must_exist=True)
    search = load_search(storage, name)
    if search.confirms is not None:
        raise StudyError(f"--study must name a search, got {name}, which confirms {search.confirms}; name that one")
    confirmations = confirmations_of(storage, name)
    tracking = Tracking(uri, on_warning=lambda line: print(f"{name}: {line}", file=sys.stderr), undelivered=undelivered)
    summary = summarize(search, confirmations)
    if summary is not None:
        summary = dataclasses.replace(summary, confirmation=load_confirmation(storage, name))
    tracking.search_told(
        search.info,
        summary,
        ended_at=max(filter(None, [one.ended_at for one in (search, *confirmations)]), default=None),
        confirmations=[confirmation.info for confirmation in confirmations],
    )
    if tracking.deliver(timeout_s=None):
        return False  # on_warning has said why
    models = [item for item in undelivered.items if item["kind"] == "model"]
    for item in models:
        if not send_model(undelivered, item, run_id=tracking.run_id):
            return False
    sent = ", ".join(filter(None, [str(tracking.sent), f"{len(models)} model" if models else ""]))
    state = "" if summary else "; the search has not ended: go on with it, with --resume"
    print(f"{name}: {f'sent {sent}' if sent else 'nothing was missing'} ({mask_secrets(uri)}){state}")
    return True


def summarize(search: StoredSearch, confirmations: Sequence[StoredSearch] = ()) -> SearchSummary | None:
    """How a search ended, from its study and those that confirm it; None where it did not."""
    ended_by = search.ended_by
    since = [one for one in confirmations if (one.started_at or 0.0) >= (search.started_at or 0.0)]
    if ended_by is not None and since and not (since[-1].ended_by or "").startswith("all "):
        ended_by = since[-1].ended_by  # what cut the confirmation short ended the search; None: its driver was lost
    if ended_by is None:
        return None
    candidates = [trial for trial in search.trials if trial.state is TrialState.COMPLETE]
    ended_at, started_at = search.ended_at or 0.0, search.started_at or 0.0
    return SearchSummary(
        best=best_of(candidates),
        candidates=len(candidates),
        trials=search.trials,
        epochs_spent=sum(trial.epochs_spent for trial in search.trials),
        seconds=ended_at - started_at if ended_at and started_at else 0.0,
        ended_by=ended_by,
    )


def send_model(undelivered: Undelivered, item: dict[str, Any], *, run_id: str | None) -> bool:
    """Send a model that is noted as undelivered; it stays so where that fails."""
    fields = {key: value for key, value in item.items() if key != "kind"}
    try:
        log_model = importlib.import_module("tune_adamsrt.mlflow.model").log_model
        log_model(uri=undelivered.tracking_uri, run_id=run_id, **fields)
    except Exception as error:  # whatever a store or a plugin raises
        reason = " ".join(str(error).split())[:300]
        print(f"{undelivered.study_name}: the model was not sent: {mask_secrets(reason)}", file=sys.stderr)
        return False
    undelivered.items.remove(item)
    if undelivered.items:
        undelivered.write()
    else:
        undelivered.remove()
    return True


if __name__ == "__main__":
    leave(main())
