"""The options of the optimizers with groups, and their checks."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from adamsrt.geometry import summed_dims

# How a step is computed, and on which spheres: what is no hyper-parameter.
FIXED = ("channel_wise", "channel_dims", "foreach", "fused", "capturable")


def dims_of(x: Tensor, group: dict[str, Any]) -> tuple[int, ...]:
    """Give the dims of x that sums run over, under the options of its parameter group."""
    return summed_dims(x.ndim, channel_dims=group["channel_dims"], channel_wise=group["channel_wise"])


def lr_of(group: dict[str, Any]) -> float | Tensor:
    """Give the learning rate: a number, or in capturable mode, where it is a tensor, a 0-dim tensor on its device."""
    lr = group["lr"]
    if group["capturable"] and isinstance(lr, Tensor):
        return lr.double().reshape(())
    return float(lr)


def hyper_parameters_of(optimizer: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give all hyper-parameters of an optimizer's constructor: those given, and its defaults for the others.

    Errors:
        ValueError for a name that is none.
    """
    parameters = inspect.signature(optimizer).parameters
    defaults = {name: each.default for name, each in parameters.items() if name not in ("params", *FIXED)}
    if unknown := sorted(given.keys() - defaults.keys()):
        raise ValueError(f"hyper-parameters must be among {', '.join(defaults)}, got {', '.join(unknown)}")
    return {**defaults, **given}


def own_options(param_group: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a parameter group says of its own, beside its parameters."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in param_group.items()
        if name not in ("params", "param_names")
    }


def restart_group(
    group: dict[str, Any], fresh: Mapping[str, Any], own: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    """Give a parameter group fresh hyper-parameters, where it has none of its own, and drop what is not known."""
    for name in group.keys() - known.keys() - own.keys() - {"params", "param_names"}:
        del group[name]  # "initial_lr": the next scheduler would take it for its own
    for name in fresh:
        value = own.get(name, fresh[name])
        if isinstance(group[name], Tensor):
            group[name].fill_(float(value))  # a captured step may read this very tensor
        else:
            group[name] = value.clone() if isinstance(value, Tensor) and name in own else value


def check_parameter(x: Tensor, group: dict[str, Any]) -> None:
    if not x.is_floating_point():
        raise ValueError(f"parameters must be real floating-point tensors, got {x.dtype}")
    dims_of(x, group)


def check_options(options: dict[str, Any]) -> None:
    """Check all but channel_dims, whose range depends on the parameter."""
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must have one element, got a tensor of shape {tuple(lr.shape)}")
    _check_range("lr", lr, "finite and >= 0", lambda value: 0 <= value < float("inf"))
    _check_range("weight_decay", options["weight_decay"], "finite and >= 0", lambda value: 0 <= value < float("inf"))
    if "betas" in options:
        betas = options["betas"]
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ValueError(f"betas must be a pair of numbers in [0, 1), got {betas!r}")
        for index, beta in enumerate(betas):
            _check_range(f"betas[{index}]", beta, "in [0, 1)", lambda value: 0 <= value < 1)
        _check_range("eps", options["eps"], "finite and >= 0", lambda value: 0 <= value < float("inf"))
    if "momentum" in options:
        _check_range("momentum", options["momentum"], "in [0, 1)", lambda value: 0 <= value < 1)
        _check_range("dampening", options["dampening"], "in [0, 1]", lambda value: 0 <= value <= 1)
    if not isinstance(options["channel_wise"], bool):
        raise ValueError(f"channel_wise must be True or False, got {options['channel_wise']!r}")
    for name in ("foreach", "fused"):
        if options[name] is not None and not isinstance(options[name], bool):
            raise ValueError(f"{name} must be None, True or False, got {options[name]!r}")
    if options["foreach"] and options["fused"]:
        raise ValueError("foreach and fused must not both be True; leave one of them out")
    if not isinstance(options["capturable"], bool):
        raise ValueError(f"capturable must be True or False, got {options['capturable']!r}")


def _check_range(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number {rule}, got {value!r}") from None
    if isinstance(value, str) or not holds(number):
        raise ValueError(f"{name} must be {rule}, got {value}")
