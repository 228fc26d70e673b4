"""AdamS and AdamSRT: Adam on the spheres of scale-invariant weights.

Source: "Spherical Perspective on Learning with Normalization Layers", arXiv:2006.13382; AdamSRT is its Algorithm 1.
Other libraries use the name AdamS for different methods.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamsrt.geometry import group_size, inner, inner_after_step, rescale_, transport_, zeros_per_group
from adamsrt.optimizers.base import GroupedOptimizer, dims_of


def adam_state(state: dict[str, Any], x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, float]:
    """Count a step and give (m, v, step); make the state at the first step. v holds one value per group."""
    if not state:
        # As torch's own: the step counter stays on the CPU, where reading it waits for no device.
        state["step"] = torch.tensor(0.0, dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(x, memory_format=torch.preserve_format)
        is_split = group_size(x, dims) > 1
        state["exp_avg_sq"] = zeros_per_group(x, dims) if is_split else torch.zeros_like(state["exp_avg"])
    state["step"] += 1
    return state["exp_avg"], state["exp_avg_sq"], float(state["step"])


def adam_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Take one step of Adam on x, with one group per element; x and both averages (of its shape) change in place."""
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    x.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))


def adam_srt_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    dims: tuple[int, ...],
    step: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    rt: bool,
) -> None:
    """Take one step of AdamS, and with rt=True of AdamSRT; x and both averages change in place.

    Args:
        x, grad, exp_avg: of one shape; exp_avg is the paper's m.
        exp_avg_sq: the paper's v, one value per group: the shape of x with `dims` reduced to 1.
        dims: the dims that sums run over; every group must have more than one element.
        step: 1 at the first step.
    Source: arXiv:2006.13382, Algorithm 1.
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).add_(inner(grad, grad, dims), alpha=1 - beta2)
    # sqrt(d), because v sums over the d elements of a group
    step_size = lr * math.sqrt(group_size(x, dims)) / (1 - beta1**step)
    a = step_size / (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    if not rt:
        x.addcmul_(exp_avg, a, value=-1)
        return
    A = inner(x, x, dims)
    M, N = inner_after_step(A, inner(exp_avg, x, dims), inner(exp_avg, exp_avg, dims), a)
    x.addcmul_(exp_avg, a, value=-1)
    rescale_(exp_avg_sq, A, N, eps)
    transport_(exp_avg, x, M, N, eps)


class AdamSRT(GroupedOptimizer):
    """Adam on the spheres of scale-invariant weights, with rescaling and transport (arXiv:2006.13382, Algorithm 1).

    After every step v is rescaled to the new radius, and the momentum is rescaled and transported to the tangent space
    at the new weights. With one group per element, the default, it is Adam with L2 regularization. Not for weights
    without a normalization layer behind them, other than with that default; `param_groups` finds those that have one.

    Args:
        weight_decay: coupled L2, as in torch.optim.Adam.
        channel_wise: True for weights whose output channels (dim 0) a normalization layer makes scale invariant.
        channel_dims: the dims that tell the groups apart, [] for the whole tensor; wins over channel_wise.
        rt: False leaves rescaling and transport out, which gives AdamS.
        These options may also be given per parameter group.
    Errors:
        ValueError for an option out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        channel_wise: bool = False,
        channel_dims: Sequence[int] | None = None,
        rt: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "channel_wise": channel_wise,
            "channel_dims": channel_dims,
            "rt": rt,
        }
        super().__init__(params, defaults)

    def update(self, x: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        dims = dims_of(x, group)
        exp_avg, exp_avg_sq, step = adam_state(state, x, dims)
        if group["weight_decay"] != 0:
            grad = grad.add(x, alpha=group["weight_decay"])
        lr, betas, eps = float(group["lr"]), group["betas"], group["eps"]
        if group_size(x, dims) == 1:
            adam_step_(x, grad, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps)
        else:
            adam_srt_step_(
                x, grad, exp_avg, exp_avg_sq, dims=dims, step=step, lr=lr, betas=betas, eps=eps, rt=group["rt"]
            )


class AdamS(AdamSRT):
    """AdamSRT without rescaling and transport: Adam with one second moment per group of weights (arXiv:2006.13382).

    Args and errors: as for AdamSRT. Other libraries use the name AdamS for different methods.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        channel_wise: bool = False,
        channel_dims: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, channel_wise=channel_wise, channel_dims=channel_dims, rt=False
        )
