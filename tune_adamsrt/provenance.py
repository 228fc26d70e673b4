"""Where a result comes from: tags for MLflow and comments for the exported entry."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import adamsrt
from tune_adamsrt.plan import Plan
from tune_adamsrt.records import TrialRecord, TrialState
from tune_adamsrt.study import Study


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
        "cluster": cluster,
        "resources": f"{resources} per trial",
        "host": platform.node(),
    }
    if revision := git_revision():
        tags["git_revision"] = revision
    return tags | {name: str(value) for name, value in (plan.protocol | place).items() if value is not None}


def export_comments(plan: Plan, study: Study, best: TrialRecord, *, run_id: str | None) -> tuple[str, ...]:
    """The comment lines above an exported entry."""
    assert best.value is not None
    states = {state: len(study.in_state(state)) for state in TrialState}
    data = f", {plan.limit_train_examples} training examples only" if plan.limit_train_examples is not None else ""
    return (
        f"tuned on {datetime.date.today().isoformat()} by tune_adamsrt {adamsrt.__version__}: "
        f"validation accuracy {100 * best.value:.2f} %, one seed, not confirmed",
        f"{plan.setting.epochs} epochs{data}; best of {states[TrialState.COMPLETE]} candidates in "
        f"{len(study.trials)} trials, {study.epochs_spent} epochs spent",
        f"study {study.name}, trial {best.number}" + (f", MLflow run {run_id}" if run_id else ""),
    )
