"""`--trials-per-gpu`: what a user asked for becomes the slots of a plan, and what its trials ask of Ray."""

import argparse
import dataclasses
import math
from collections.abc import Sequence

import ray
from ray.exceptions import RayError, RayTaskError

from tune_adamsrt.cluster.nodes import look_at_cluster
from tune_adamsrt.engine.auto import measured_slots
from tune_adamsrt.plan import Plan
from tune_adamsrt.resources import TrialResources, choose_trial_resources

MAX_TRIALS_PER_GPU = 24  # `adamsrt` has streams for so many
PART = 10_000  # Ray counts parts of a GPU in ten-thousandths


def check_trials_per_gpu(plans: Sequence[Plan], arguments: argparse.Namespace) -> None:
    """Check what needs no cluster. Raises ValueError."""
    wanted = arguments.trials_per_gpu
    if wanted is None:
        return
    if isinstance(wanted, int) and wanted > MAX_TRIALS_PER_GPU:
        raise ValueError(f"--trials-per-gpu must be at most {MAX_TRIALS_PER_GPU}, got {wanted}; choose fewer, or auto")
    if arguments.gpus_per_trial is not None:
        raise ValueError(
            f"--trials-per-gpu must go without --gpus-per-trial, got {arguments.gpus_per_trial:g}; leave one out"
        )
    for plan in plans:
        if plan.setting.dataset == "imagenet":
            raise ValueError(
                f"--trials-per-gpu must go with data that fits into memory, got {plan.setting.name}; leave it out, or "
                "share a GPU with --gpus-per-trial 0.5"
            )


def with_slots(plans: Sequence[Plan], wanted: int | str | None) -> list[Plan]:
    """Give the plans with the slots of their engines, measured where `auto` is wanted.

    Raises ValueError where the cluster has no GPU, or the measurement fails.
    """
    if wanted is None:
        return list(plans)
    if not look_at_cluster().has("GPU"):
        raise ValueError(f"--trials-per-gpu must have a GPU in the cluster, got {wanted} and none; leave it out")
    if isinstance(wanted, int):
        return [dataclasses.replace(plan, engine_slots=wanted) for plan in plans]
    measured: dict[str, int] = {}
    for plan in plans:
        if plan.setting.name not in measured:
            measured[plan.setting.name] = _measure(plan)
    return [dataclasses.replace(plan, engine_slots=measured[plan.setting.name]) for plan in plans]


def engine_resources(plan: Plan, cpus: float | None) -> TrialResources:
    """Choose what a proxy asks for: its part of a GPU, and of the CPUs that one trial would have.

    Args:
        cpus: per trial, where the user says so.
    Raises:
        ValueError: no node of the cluster could ever hold such a trial.
    """
    assert plan.engine_slots is not None
    return choose_trial_resources(
        cpus=cpus,
        gpus=_part(1.0, plan.engine_slots),
        default_cpus=_part(plan.setting.cpus_per_trial, plan.engine_slots),
        default_gpus=0.0,
    )


def describe_resources(plan: Plan, arguments: argparse.Namespace) -> str:
    """Say what a trial takes, before there is a cluster to ask: what `auto` comes to is not known by then."""
    setting, wanted = plan.setting, arguments.trials_per_gpu
    cpus: float = arguments.cpus_per_trial or setting.cpus_per_trial
    if wanted is None:
        gpus = setting.gpus_per_trial if arguments.gpus_per_trial is None else arguments.gpus_per_trial
        spare = " where there are GPUs" if arguments.gpus_per_trial is None else ""
        return f"{cpus:g} CPU" + (f", {gpus:g} GPU{spare}" if gpus else "") + " per trial"
    if isinstance(wanted, int):
        cpus = arguments.cpus_per_trial or _part(setting.cpus_per_trial, wanted)
        return f"{cpus:g} CPU, {_part(1.0, wanted):g} GPU per trial, {wanted} in one process"
    each = "" if arguments.cpus_per_trial is None else " per trial"
    return f"{cpus:g} CPU{each}, 1 GPU for as many trials as train fastest on it, measured when the search starts"


def _part(whole: float, slots: int) -> float:
    """Give a part of which `slots` make no more than the whole, in the steps that Ray counts in."""
    return math.floor(PART * whole / slots + 1e-9) / PART


def _measure(plan: Plan) -> int:
    """Measure on one of the cluster's GPUs. Raises ValueError with the reason where that fails."""
    place = plan.place(TrialResources(cpus=1.0, gpus=1.0))
    task = ray.remote(num_cpus=1, num_gpus=1, max_retries=0)(measured_slots)
    try:
        slots: int = ray.get(task.remote(plan.setting.name, plan.protocol, place, MAX_TRIALS_PER_GPU))
        return slots
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ValueError(f"--trials-per-gpu auto must measure on a GPU, got {reason}; give a number") from None
