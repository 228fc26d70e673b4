"""Adam-G: Adam on a product of unit spheres.

Source: "Riemannian approach to batch normalization" (Cho & Lee), arXiv:1709.09603. Other libraries use the name AdamG
for different methods.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamsrt.geometry import follow_geodesic_, group_size, inner, project_to_sphere_
from adamsrt.optimizers.adam_srt import adam_state, adam_step_
from adamsrt.optimizers.base import GroupedOptimizer, dims_of


def adam_g_step_(
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
) -> None:
    """Take one step of Adam-G: x, on the unit sphere afterwards, and both averages change in place.

    Args:
        x, grad, exp_avg: of one shape; exp_avg is m.
        exp_avg_sq: v, one value per group: the shape of x with `dims` reduced to 1.
        dims: the dims that sums run over; every group must have more than one element.
        step: 1 at the first step.
    Source: arXiv:1709.09603.
    """
    beta1, beta2 = betas
    project_to_sphere_(x, dims)
    h = grad.addcmul(x, inner(x, grad, dims).to(x.dtype), value=-1)  # the part of grad that is tangent at x
    exp_avg.lerp_(h, 1 - beta1)
    exp_avg_sq.mul_(beta2).add_(inner(h, h, dims), alpha=1 - beta2)
    scale = lr / (1 - beta1**step) / (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    follow_geodesic_(x, exp_avg, scale, dims)


class AdamG(GroupedOptimizer):
    """Adam along the geodesics of the unit sphere of every group of weights (arXiv:1709.09603).

    In parameter groups with channel_wise=True or channel_dims every group of weights is scaled to norm 1 at its first
    step and stays there; weight_decay does nothing there. Everything else, and groups of a single element, takes steps
    of Adam with L2 regularization. Not for weights whose norm matters.

    Args:
        weight_decay: coupled L2 where the step is Adam's.
        channel_wise: True for weights whose output channels (dim 0) a normalization layer makes scale invariant.
        channel_dims: the dims that tell the groups apart, [] for the whole tensor; wins over channel_wise.
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
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "channel_wise": channel_wise,
            "channel_dims": channel_dims,
        }
        super().__init__(params, defaults)

    def update(self, x: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        dims = dims_of(x, group)
        exp_avg, exp_avg_sq, step = adam_state(state, x, dims)
        lr, betas, eps = float(group["lr"]), group["betas"], group["eps"]
        if group_size(x, dims) == 1:
            if group["weight_decay"] != 0:
                grad = grad.add(x, alpha=group["weight_decay"])
            adam_step_(x, grad, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps)
        else:
            adam_g_step_(x, grad, exp_avg, exp_avg_sq, dims=dims, step=step, lr=lr, betas=betas, eps=eps)
