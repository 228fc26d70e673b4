"""Cells of a comparison, made up for tests."""

from typing import Any

from tune_adamsrt.reports.comparison import Cell
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space

SETTING = "resnet18-cifar10"


def make_cell(optimizer: str, *test: float, **changes: Any) -> Cell:
    """A cell with accuracies (in percent) on the seeds 1, 2, ..."""
    accuracies = {seed: value / 100 for seed, value in enumerate(test, start=1)}
    setting = load_setting(changes.get("setting", SETTING))
    is_sgd = optimizer.startswith("sgd")
    values: dict[str, Any] = {
        "setting": setting.name,
        "optimizer": optimizer,
        "test": accuracies,
        "valid": accuracies,
        "hyper_parameters": {"lr": 0.1 if is_sgd else 0.002, "weight_decay": 0.0}
        | ({"momentum": 0.9} if is_sgd else {"betas": (0.9, 0.99)}),
        "space": build_search_space(setting, optimizer).to_json(),
        "epochs": 405,
        "trials": 64,
        "search_epochs_spent": 10_000,
        "search_epochs_allowed": 64 * 405,
        "confirm_epochs_spent": 9 * 405,
        "protocol": {"dataset": "cifar10", "epochs": 405, "limit_train_examples": None},
        "method": {"sampler": "tpe", "scheduler": "asha"},
        "versions": {"version.torch": "2.15.0", "git_revision": "abc"},
        "study": f"{optimizer}-study",
        "trial": 3,
    }
    return Cell(**(values | changes))
