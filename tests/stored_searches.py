"""Searches as a storage holds them, made up for tests of tables, figures and reports."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from search_records import make_info

from tune_adamsrt.records import EpochReport, TrialRecord, TrialState
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.studies import StoredSearch

STARTED = 1_767_225_600.0  # 2026-01-01 00:00 UTC


def make_epochs(values: Iterable[float], *, times: Sequence[float] | None = None, **changes: Any) -> list[EpochReport]:
    """One report per value, from epoch 1; a NaN value is an epoch that diverged."""
    return [
        EpochReport(
            **{
                "epoch": epoch,
                "value": value,
                "train_loss": math.nan if math.isnan(value) else 0.5,
                "train_accuracy": 0.75,
                "valid_loss": math.nan if math.isnan(value) else 1 - value,
                "valid_accuracy": value,
                "lr": 0.001,
                "seconds": 2.0,
                "train_images_per_second": 500.0,
                "reported_at": 0.0 if times is None else STARTED + times[epoch - 1],
            }
            | changes
        )
        for epoch, value in enumerate(values, start=1)
    ]


def make_stored_trial(
    number: int, state: TrialState, values: Iterable[float], *, times: Sequence[float] | None = None, **changes: Any
) -> TrialRecord:
    point = {"lr": 0.001 * (1 + number), "betas": (0.9, 0.99), "weight_decay": 1e-4}
    known = {"hyper_parameters": point, "seed": 100 + number, "origin": "sampled by tpe", "started_at": STARTED}
    return TrialRecord(number=number, state=state, epochs=make_epochs(values, times=times), **(known | changes))


def make_stored(
    *trials: TrialRecord, optimizer: str = "adamsrt", epochs: int = 4, rungs: str | None = "2", **changes: Any
) -> StoredSearch:
    """A search of resnet20-digits that has ended; `changes` are of its SearchInfo."""
    name = f"resnet20-digits/{optimizer}"
    info = make_info(
        **{
            "name": name,
            "optimizer": optimizer,
            "study_name": f"resnet20-digits-{optimizer}",
            "trials": len(trials),
            "epochs": epochs,
            "max_epochs_spent": len(trials) * epochs,
            "space": build_search_space(load_setting("resnet20-digits"), optimizer).to_json(),
            "tags": {"scheduler": "asha", "version.torch": "2.15.0"} | ({} if rungs is None else {"rungs": rungs}),
            "restored": list(trials),
        }
        | changes
    )
    protocol = {"dataset": "digits", "model": "resnet20", "epochs": epochs, "batch_size": 32, "selection": "best"}
    return StoredSearch(
        info=info,
        protocol=protocol,
        sampler="tpe",
        seed=7,
        started_at=STARTED,
        ended_at=STARTED + 65,
        ended_by="all trials done",
    )
