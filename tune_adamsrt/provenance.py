"""Where a result comes from: tags for MLflow and comments for the exported entry."""

import datetime
import importlib.metadata
import platform
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adamsrt
from tune_adamsrt.formats import format_percent, format_seeds, format_spread
from tune_adamsrt.plan import Plan
from tune_adamsrt.records import Confirmation, TrialRecord, TrialState
from tune_adamsrt.study import Study

COMMENT_WIDTH = 106  # an entry's comment stands 14 columns in, in lines of 120


def git_revision() -> str | None:
    """The revision of the checkout that this code runs from, with `-dirty` where files differ; None elsewhere."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(adamsrt.__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def provenance_tags(plan: Plan, *, place: dict[str, Any], cluster: str, resources: str) -> dict[str, str]:
    """Everything beside the hyper-parameters that a later reader may ask for."""
    packages = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy")
    tags = {f"version.{name}": importlib.metadata.version(name) for name in packages}
    tags |= {
        "version.tune_adamsrt": adamsrt.__version__,
        "version.python": platform.python_version(),
        "setting": plan.setting.name,
        "sampler": plan.sampler,
        "scheduler": plan.scheduler,
        "rungs": ", ".join(str(epoch) for epoch in plan.rungs),
        "seed": str(plan.seed),
        "first_points": str(len(plan.first_points)),
        "cluster": cluster,
        "resources": f"{resources} per trial",
        "host": platform.node(),
    }
    if revision := git_revision():
        tags["git_revision"] = revision
    if plan.campaign is not None:
        tags["campaign"] = plan.campaign
    return tags | {name: str(value) for name, value in (plan.protocol | place).items() if value is not None}


def export_comments(
    plan: Plan, study: Study, best: TrialRecord, confirmation: Confirmation | None, *, cpus: float, run_id: str | None
) -> tuple[str, ...]:
    """The comment lines above an exported entry.

    Args:
        best: what is exported: the confirmed candidate, or the search's best where nothing was confirmed.
        cpus: per trial; with another number of threads a CPU gives other last bits.
    """
    assert best.value is not None
    by = f"{datetime.date.today().isoformat()} by tune_adamsrt {adamsrt.__version__}"
    states = {state: len(study.in_state(state)) for state in TrialState}
    data = f", {plan.limit_train_examples} training examples only" if plan.limit_train_examples is not None else ""
    where = f"study {study.name}, trial {best.number}" + (f", MLflow run {run_id}" if run_id else "")
    spent = f"{states[TrialState.COMPLETE]} candidates in {len(study.trials)} trials, {study.epochs_spent} epochs spent"
    if confirmation is None:
        return (
            f"tuned on {by}: validation accuracy {format_percent(best.value)}, one seed, not confirmed",
            f"{plan.setting.epochs} epochs{data}; best of {spent}",
            where,
        )
    valid, test = confirmation.valid_accuracy, confirmation.test_accuracy
    std = ", mean +- standard deviation" if valid.n > 1 else ""
    failed = dict.fromkeys(run.confirms for run in confirmation.runs if run.state is TrialState.FAILED)
    ruled_out = ", ".join(f"trial {number}" for number in failed)
    return (
        f"confirmed on {by} on {format_seeds(valid.n)}{std}:",
        f"validation accuracy {format_spread(valid)}, test accuracy {format_spread(test)}",
        f"{plan.setting.epochs} epochs{data}; {spent}",
        f"and {confirmation.epochs_spent} to confirm; of {confirmation.candidates} confirmed, the best by validation",
        *([f"ruled out, since a run failed: {ruled_out}"] if ruled_out else []),
        *([f"the test set was read for {confirmation.tested} candidates so far"] if confirmation.tested > 1 else []),
        where,
        f"seeds {', '.join(str(seed) for seed in confirmation.seeds)}; the first one again, on a CPU:",
        *wrapped_command(rerun_command(plan, confirmation.seeds[0], threads=max(1, int(cpus)))),
    )


def rerun_command(plan: Plan, seed: int, *, threads: int) -> list[str]:
    """The command that trains the exported configuration again as a confirmed run was trained."""
    protocol = plan.protocol
    options = {
        "dataloader": protocol["dataset"],
        "model": protocol["model"],
        "optimizer": plan.optimizer,
        "epochs": protocol["epochs"],
        "batch-size": protocol["batch_size"],
        "valid-split": protocol["valid_split"],
        "split-seed": protocol["split_seed"],
        "limit-train-examples": protocol["limit_train_examples"],
        "precision": protocol.get("precision"),
        "seed": seed,
        "threads": threads,
    }
    return [
        "python",
        "training_example.py",
        *(f"--{name}={value}" for name, value in options.items() if value is not None),
    ]


def wrapped_command(words: Sequence[str]) -> list[str]:
    """A shell command in lines that fit as comments; all but the last one end with a backslash."""
    lines = textwrap.wrap(" ".join(words), COMMENT_WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
