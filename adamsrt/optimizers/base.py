"""What the optimizers with groups share: options and their checks, the walk over the parameters, state dicts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from adamsrt.geometry import group_dtype, summed_dims


@dataclass(frozen=True)
class OptimizerEntry:
    """One optimizer that can be chosen by name.

    Args:
        build: makes the optimizer: build(params, **hyper_parameters).
        hyper_parameters: the names that may be tuned, as in best_hyper_parameters.py.
        uses_groups: True where it takes channel_wise and channel_dims.
    """

    build: Callable[..., Optimizer]
    hyper_parameters: tuple[str, ...]
    uses_groups: bool


class GroupedOptimizer(Optimizer):
    """A torch optimizer whose parameters are split into groups of weights; a subclass defines `update`.

    Errors:
        ValueError for an option out of range, TypeError as torch raises it.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        _check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add and check a parameter group. The given dict stays as it is, so that it can serve another optimizer."""
        super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
        try:
            _check_options(self.param_groups[-1])
            for x in self.param_groups[-1]["params"]:
                _check_parameter(x, self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)  # a state dict saved before this option existed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave, from any device."""
        super().load_state_dict(state_dict)
        # torch has cast all state to the dtype of the parameter, but values per group are float32 at least.
        saved_ids = (saved_id for group in state_dict["param_groups"] for saved_id in group["params"])
        params = (x for group in self.param_groups for x in group["params"])
        for saved_id, x in zip(saved_ids, params, strict=True):
            for name, value in state_dict["state"].get(saved_id, {}).items():
                if name != "step" and isinstance(value, Tensor) and value.shape != x.shape:
                    self.state[x][name] = value.to(dtype=group_dtype(x), device=x.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step and give the closure's loss. Parameters without a gradient are skipped.

        Errors:
            RuntimeError for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                if x.grad.layout is not torch.strided:
                    name = type(self).__name__
                    raise RuntimeError(f"{name} needs dense gradients, got a sparse one; use torch.optim.SparseAdam")
                self.update(x, x.grad, self.state[x], group)
        return loss

    def update(self, x: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Update one parameter and its state in place; grad is read only."""
        raise NotImplementedError


def dims_of(x: Tensor, group: dict[str, Any]) -> tuple[int, ...]:
    """Give the dims of x that sums run over, under the options of its parameter group."""
    return summed_dims(x.ndim, channel_dims=group["channel_dims"], channel_wise=group["channel_wise"])


def _check_parameter(x: Tensor, group: dict[str, Any]) -> None:
    if not x.is_floating_point():
        raise ValueError(f"parameters must be real floating-point tensors, got {x.dtype}")
    dims_of(x, group)


def _check_options(options: dict[str, Any]) -> None:
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


def _check_range(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number {rule}, got {value!r}") from None
    if isinstance(value, str) or not holds(number):
        raise ValueError(f"{name} must be {rule}, got {value}")
