"""Adam-G: Adam on a product of unit spheres.

Source: "Riemannian approach to batch normalization" (Cho & Lee), arXiv:1709.09603. Other libraries use the name AdamG
for different methods.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamsrt.geometry import follow_geodesic_, inner
from adamsrt.optimizers.adam import AdamLike
from adamsrt.optimizers.base import Number
from adamsrt.optimizers.blocks import Block
from adamsrt.optimizers.update import Update


def adam_g_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    dims: tuple[int, ...],
    step: Number,
    lr: Number,
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
    norm, factor = _norm_and_factor(inner(x, x, dims).sqrt_())
    x.mul_(factor)
    along = inner(x, grad, dims).div_(norm).div_(norm)
    h = grad.addcmul(x, along.to(x.dtype), value=-1)  # the part of grad that is tangent at x
    exp_avg.lerp_(h, 1 - beta1)
    exp_avg_sq.mul_(beta2).add_(inner(h, h, dims), alpha=1 - beta2)
    scale = lr / (1 - beta1**step) / (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    follow_geodesic_(x, exp_avg, scale, dims, norm)


def adam_g_block_step_(block: Block, *, step: Number, lr: Number, betas: tuple[float, float], eps: float) -> None:
    """Take the same step on a block of rows at once, in place and without temporaries of its size."""
    beta1, beta2 = betas
    xs, ms, grads, split = block.xs, block.ms, block.grads(), block.split
    tiny = torch.finfo(xs[0].dtype).tiny
    norm, factor = _norm_and_factor(block.norms(xs))
    if not factor.is_cpu or not bool((factor == 1).all()):  # after the first step, a pass saved
        torch._foreach_mul_(xs, split(factor))
    along = split(block.products(xs, grads).div_(norm).div_(norm))
    for grad, x, inner_product, scratch in zip(grads, xs, along, block.scratch, strict=True):
        torch.addcmul(grad, x, inner_product, value=-1, out=scratch)  # the part of grad that is tangent at x
    torch._foreach_lerp_(ms, block.scratch, 1 - beta1)
    length_of_tangent = block.norms(block.scratch)
    v = block.v.mul_(beta2).addcmul_(length_of_tangent, length_of_tangent, value=1 - beta2)
    length = block.norms(ms)
    angle = (length / (v / (1 - beta2**step)).sqrt_().add_(eps)).mul_(lr / (1 - beta1**step))
    cos, sin = torch.cos(angle), torch.sin(angle)
    # The new momentum goes to the scratch, and how x moves, which is of the size of the step, to the place of the old
    # one, so that x is rounded once.
    for m, x, shrink, turn, scratch in zip(ms, xs, split(cos), split(length * sin / norm), block.scratch, strict=True):
        torch.mul(m, shrink, out=scratch).addcmul_(x, turn)
    torch._foreach_mul_(ms, split(sin.div_(length.clamp_min_(tiny)).neg_()))
    torch._foreach_addcmul_(ms, xs, split(cos / norm - 1))
    torch._foreach_add_(xs, ms)
    torch._foreach_copy_(ms, block.scratch)


def _norm_and_factor(norm: Tensor) -> tuple[Tensor, Tensor]:
    """Give what brings weights of these norms near the unit sphere, and their norms there, from which a step corrects.

    The factor is exactly 1 near the sphere, where weights are after their first step: they are not rounded by it.
    """
    # Norms below the bound are those of zeros, as smaller squares underflow; a quotient by it does not overflow.
    norm = norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
    factor = torch.where((norm - 1).abs() < 1e-3, 1.0, 1 / norm)
    return norm * factor, factor


class AdamG(AdamLike):
    """Adam along the geodesics of the unit sphere of every group of weights (arXiv:1709.09603).

    In parameter groups with channel_wise=True or channel_dims every group of weights is scaled to norm 1 at its first
    step and stays there; weight_decay does nothing there. Everything else, and groups of a single element, takes steps
    of Adam with L2 regularization. Not for weights whose norm matters.

    Args:
        weight_decay: coupled L2 where the step is Adam's.
        channel_wise: True for weights whose output channels (dim 0) a normalization layer makes scale invariant.
        channel_dims: the dims that tell the groups apart, [] for the whole tensor; wins over channel_wise.
        foreach, fused, capturable: how the step is computed; see `GroupedOptimizer`.
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
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "channel_wise": channel_wise,
            "channel_dims": channel_dims,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    KERNEL = "adam_g"
    DECAYS_ROWS = False

    def update_rows(self, update: Update, grad: Tensor, step: Number, lr: Number) -> None:
        state, group = update.state, update.group
        adam_g_step_(
            update.x,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            dims=update.dims,
            step=step,
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
        )

    def update_block(self, block: Block, group: dict[str, Any], step: Number, lr: Number) -> None:
        adam_g_block_step_(block, step=step, lr=lr, betas=group["betas"], eps=group["eps"])
