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

from adamsrt.geometry import group_size, inner, inner_after_step, rescale_, transport_
from adamsrt.optimizers.adam import AdamLike
from adamsrt.optimizers.base import Number
from adamsrt.optimizers.blocks import Block
from adamsrt.optimizers.update import Update


def adam_srt_step_(
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
    rt: bool,
) -> None:
    """Take one step of AdamS, and with rt=True of AdamSRT; x and both averages change in place.

    Args:
        x, grad, exp_avg: of one shape; exp_avg is the paper's m.
        exp_avg_sq: the paper's v, one value per group: the shape of x with `dims` reduced to 1.
        dims: the dims that sums run over; every group must have more than one element.
        step: 1 at the first step. step, lr: 0-dim tensors on the device of x where a graph is captured.
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


def adam_srt_block_step_(
    block: Block,
    *,
    step: Number,
    lr: Number,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    rt: bool,
) -> None:
    """Take the same step on a block of rows at once, in place and without temporaries of its size."""
    beta1, beta2 = betas
    grads = block.decayed_grads(weight_decay)
    torch._foreach_lerp_(block.ms, grads, 1 - beta1)
    v = block.v.mul_(beta2).add_(block.squares(grads), alpha=1 - beta2)
    denominator = v.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
    a = block.root_sizes * (lr / (1 - beta1**step)) / denominator
    if rt:
        A = block.squares(block.xs)
        M, N = inner_after_step(A, block.products(block.ms, block.xs), block.squares(block.ms), a)
        N_and_eps = N + eps if eps > 0 else N
        v.mul_(A / N_and_eps)  # geometry.rescale_
    torch._foreach_addcmul_(block.xs, block.ms, block.split(a), value=-1)
    if rt:
        block.transport(M, N, N_and_eps)


class AdamSRT(AdamLike):
    """Adam on the spheres of scale-invariant weights, with rescaling and transport (arXiv:2006.13382, Algorithm 1).

    After every step v is rescaled to the new radius, and the momentum is rescaled and transported to the tangent space
    at the new weights. With one group per element, the default, it is Adam with L2 regularization. Not for weights
    without a normalization layer behind them, other than with that default; `param_groups` finds those that have one.

    Args:
        weight_decay: coupled L2, as in torch.optim.Adam.
        channel_wise: True for weights whose output channels (dim 0) a normalization layer makes scale invariant.
        channel_dims: the dims that tell the groups apart, [] for the whole tensor; wins over channel_wise.
        rt: False leaves rescaling and transport out, which gives AdamS.
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
        rt: bool = True,
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
            "rt": rt,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    KERNEL = "adam_srt"

    def update_rows(self, update: Update, grad: Tensor, step: Number, lr: Number) -> None:
        state, group = update.state, update.group
        adam_srt_step_(
            update.x,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            dims=update.dims,
            step=step,
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
            rt=group["rt"],
        )

    def update_block(self, block: Block, group: dict[str, Any], step: Number, lr: Number) -> None:
        adam_srt_block_step_(
            block,
            step=step,
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            rt=group["rt"],
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
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            channel_wise=channel_wise,
            channel_dims=channel_dims,
            rt=False,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )
