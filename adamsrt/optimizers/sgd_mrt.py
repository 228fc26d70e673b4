"""SGD-MRT: SGD whose momentum is rescaled and transported on the spheres of scale-invariant weights.

Source: "Spherical Perspective on Learning with Normalization Layers", arXiv:2006.13382.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamsrt.geometry import group_size, inner, inner_after_step, transport_
from adamsrt.optimizers.base import GroupedOptimizer, dims_of


def sgd_mrt_step_(x: Tensor, momentum_buffer: Tensor, *, dims: tuple[int, ...], lr: float) -> None:
    """Move the weights along the momentum and transport the momentum there, both in place.

    Args:
        x, momentum_buffer: of one shape; the buffer (b) already holds the new gradient.
        dims: the dims that sums run over; every group must have more than one element.
    Source: arXiv:2006.13382.
    """
    b = momentum_buffer
    M, N = inner_after_step(inner(x, x, dims), inner(b, x, dims), inner(b, b, dims), lr)
    x.add_(b, alpha=-lr)
    transport_(b, x, M, N)


class SGDMRT(GroupedOptimizer):
    """SGD with a momentum that is rescaled and transported to the new weights after every step (arXiv:2006.13382).

    With one group per element, the default, it is SGD with momentum and L2 regularization.

    Args:
        momentum, dampening: b = momentum * b + (1 - dampening) * grad. b starts at zero, so that dampening acts from
            the first step on; torch.optim.SGD starts b at the first gradient instead, and ignores dampening without
            momentum.
        weight_decay: coupled L2, as in torch.optim.SGD.
        channel_wise: True for weights whose output channels (dim 0) a normalization layer makes scale invariant.
        channel_dims: the dims that tell the groups apart, [] for the whole tensor; wins over channel_wise.
        These options may also be given per parameter group.
    Errors:
        ValueError for an option out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-1,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        *,
        channel_wise: bool = False,
        channel_dims: Sequence[int] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "channel_wise": channel_wise,
            "channel_dims": channel_dims,
        }
        super().__init__(params, defaults)

    def update(self, x: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(x, memory_format=torch.preserve_format)
        if group["weight_decay"] != 0:
            grad = grad.add(x, alpha=group["weight_decay"])
        b, lr, dims = state["momentum_buffer"], float(group["lr"]), dims_of(x, group)
        b.mul_(group["momentum"]).add_(grad, alpha=1 - group["dampening"])
        if group_size(x, dims) == 1:
            x.add_(b, alpha=-lr)
        else:
            sgd_mrt_step_(x, b, dims=dims, lr=lr)
