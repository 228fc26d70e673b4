"""Trials as a study's storage holds them, rebuilt as records: by a driver that goes on, and by whoever looks on."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from tune_adamsrt.records import EpochReport, TrialRecord, TrialState

STATES = {
    OptunaState.RUNNING: TrialState.RUNNING,
    OptunaState.COMPLETE: TrialState.COMPLETE,
    OptunaState.PRUNED: TrialState.STOPPED,
    OptunaState.FAIL: TrialState.FAILED,
}


def read_test_accuracies(attributes: Mapping[str, Any]) -> dict[int, list[float]]:
    """Read from a confirmation's study what the test set said, by the number of the search's trial."""
    return {int(number): list(values) for number, values in attributes.get("test_accuracies", {}).items()}


def load_records(trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
    """Rebuild the records of all trials that were asked for in full."""
    records = [load_record(trial) for trial in trials if trial.state in STATES]
    return [record for record in records if record.hyper_parameters]


def load_record(trial: FrozenTrial) -> TrialRecord:
    """Rebuild a trial's record from the storage; without hyper-parameters where its asking never ended."""
    attributes = trial.user_attrs
    kept = {"hyper_parameters": {}, "seed": 0, **attributes.get("trial", {}), **attributes.get("end", {})}
    reports = [EpochReport(**attributes[key]) for key in attributes if key.startswith("epoch:")]
    if "betas" in kept["hyper_parameters"]:  # JSON has lists only
        kept["hyper_parameters"]["betas"] = tuple(kept["hyper_parameters"]["betas"])
    return TrialRecord(
        **kept
        | {
            "number": trial.number,
            "state": STATES[trial.state],
            "epochs": sorted(reports, key=lambda report: report.epoch),
            "epochs_repeated": attributes.get("epochs_repeated", 0),
            "checkpoint": attributes.get("checkpoint"),
        }
    )
