"""SGD-MRT: SGD whose momentum is rescaled and transported on the spheres of scale-invariant weights.

Source: "Spherical Perspective on Learning with Normalization Layers", arXiv:2006.13382.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamsrt.geometry import inner, inner_after_step, transport_
from adamsrt.optimizers.base import GroupedOptimizer, Number
from adamsrt.optimizers.blocks import Block
from adamsrt.optimizers.update import Update


def descend_(x: Tensor, b: Tensor, lr: Number) -> None:
    """x <- x - lr b in place, for a number or a 0-dim tensor."""
    if isinstance(lr, Tensor):
        x.sub_(b * lr)
    else:
        x.add_(b, alpha=-lr)


def sgd_mrt_step_(x: Tensor, momentum_buffer: Tensor, *, dims: tuple[int, ...], lr: Number) -> None:
    """Move the weights along the momentum and transport the momentum there, both in place.

    Args:
        x, momentum_buffer: of one shape; the buffer (b) already holds the new gradient.
        dims: the dims that sums run over; every group must have more than one element.
    Source: arXiv:2006.13382.
    """
    b = momentum_buffer
    M, N = inner_after_step(inner(x, x, dims), inner(b, x, dims), inner(b, b, dims), lr)
    descend_(x, b, lr)
    transport_(b, x, M, N)


def sgd_block_step_(
    block: Block, *, lr: Number, momentum: float, dampening: float, weight_decay: float, transport: bool
) -> None:
    """Take one step of SGD-MRT on a block of rows at once, in place and without temporaries of its size.

    Args:
        transport: False for groups of a single element, where it is SGD.
    """
    xs, bs = block.xs, block.ms
    torch._foreach_mul_(bs, momentum)
    torch._foreach_add_(bs, block.decayed_grads(weight_decay), alpha=1 - dampening)
    if transport:
        M, N = inner_after_step(block.squares(xs), block.products(bs, xs), block.squares(bs), lr)
    if isinstance(lr, Tensor):
        torch._foreach_copy_(block.scratch, bs)
        torch._foreach_mul_(block.scratch, lr)
        torch._foreach_sub_(xs, block.scratch)
    else:
        torch._foreach_add_(xs, bs, alpha=-lr)
    if transport:
        block.transport(M, N, N)


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
        foreach, fused, capturable: how the step is computed; see `GroupedOptimizer`.
        These options may also be given per parameter group.
    Errors:
        ValueError for an option out of range.
    """

    MOMENTUM = "momentum_buffer"
    KERNEL = "sgd_mrt"
    KERNEL_OF_ELEMENTS = "sgd"

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
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "channel_wise": channel_wise,
            "channel_dims": channel_dims,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def init_state(self, x: Tensor, dims: tuple[int, ...], state: dict[str, Any]) -> None:
        state["momentum_buffer"] = self._neighbours.zeros_like(x, "momentum_buffer")

    def update_element(self, update: Update, grad: Tensor, step: Number, lr: Number) -> None:
        descend_(update.x, self._buffer(update, grad), lr)

    def update_rows(self, update: Update, grad: Tensor, step: Number, lr: Number) -> None:
        sgd_mrt_step_(update.x, self._buffer(update, grad), dims=update.dims, lr=lr)

    def _buffer(self, update: Update, grad: Tensor) -> Tensor:
        """Give the momentum with the new gradient in it."""
        b: Tensor = update.state["momentum_buffer"]
        return b.mul_(update.group["momentum"]).add_(grad, alpha=1 - update.group["dampening"])

    def update_block(self, block: Block, group: dict[str, Any], step: Number, lr: Number) -> None:
        self._update_block(block, group, lr, transport=True)

    def update_elements(self, block: Block, group: dict[str, Any], step: Number, lr: Number) -> None:
        self._update_block(block, group, lr, transport=False)

    def _update_block(self, block: Block, group: dict[str, Any], lr: Number, *, transport: bool) -> None:
        sgd_block_step_(
            block,
            lr=lr,
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            transport=transport,
        )

    @staticmethod
    def numbers_of(group: dict[str, Any]) -> list[float]:
        return [float(group["momentum"]), 1 - float(group["dampening"]), float(group["weight_decay"])]
