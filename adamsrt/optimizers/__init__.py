"""The optimizers by class and by name, and the one way to build them for a model."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from adamsrt.optimizers import baselines
from adamsrt.optimizers.adam_g import AdamG
from adamsrt.optimizers.adam_srt import AdamS, AdamSRT
from adamsrt.optimizers.base import OptimizerEntry
from adamsrt.optimizers.eager import leave_dynamo_out
from adamsrt.optimizers.param_groups import param_groups
from adamsrt.optimizers.sgd_mrt import SGDMRT
from adamsrt.registry import Registry

__all__ = ["OPTIMIZERS", "SGDMRT", "AdamG", "AdamS", "AdamSRT", "OptimizerEntry", "build_optimizer", "param_groups"]

OPTIMIZERS: Registry[OptimizerEntry] = Registry("optimizer")
OPTIMIZERS.add("adams", OptimizerEntry(AdamS, ("lr", "betas", "weight_decay"), uses_groups=True))
OPTIMIZERS.add("adamsrt", OptimizerEntry(AdamSRT, ("lr", "betas", "weight_decay"), uses_groups=True))
OPTIMIZERS.add("adamw", baselines.ADAMW)
OPTIMIZERS.add("adam", baselines.ADAM)
OPTIMIZERS.add("adamg", OptimizerEntry(AdamG, ("lr", "betas", "weight_decay"), uses_groups=True))
OPTIMIZERS.add("sgd", baselines.SGD_WITH_MOMENTUM)
OPTIMIZERS.add("sgdmrt", OptimizerEntry(SGDMRT, ("lr", "momentum", "weight_decay"), uses_groups=True))


def build_optimizer(name: str, model: nn.Module, **hyper_parameters: Any) -> Optimizer:
    """Build the optimizer of that name for a model.

    An optimizer with groups gets model.conv_params() channel-wise and model.other_params() per element where the model
    has these methods, otherwise what `param_groups` finds.

    Args:
        hyper_parameters: those that the entry names, such as lr, betas (a pair, list or tuple), weight_decay; the
            others keep the defaults of the optimizer.
    Errors:
        ValueError for an unknown optimizer or hyper-parameter, a value out of range, or a model that `param_groups`
        cannot trace.
    """
    entry = OPTIMIZERS[name]
    unknown = sorted(set(hyper_parameters) - set(entry.hyper_parameters))
    if unknown:
        valid = ", ".join(entry.hyper_parameters)
        raise ValueError(f"hyper-parameters of {name} must be among {valid}, got {', '.join(unknown)}")
    if isinstance(hyper_parameters.get("betas"), list | tuple):
        hyper_parameters["betas"] = tuple(hyper_parameters["betas"])  # JSON and YAML have lists only
    leave_dynamo_out()
    return entry.build(_params_of(model) if entry.uses_groups else model.parameters(), **hyper_parameters)


def _params_of(model: Any) -> list[dict[str, Any]]:
    if hasattr(model, "conv_params") and hasattr(model, "other_params"):
        return [{"params": model.conv_params(), "channel_wise": True}, {"params": model.other_params()}]
    return param_groups(model)
