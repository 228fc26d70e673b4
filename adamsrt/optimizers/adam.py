"""Adam itself, for groups of a single element, and the state (m, v, step) of the optimizers built on it."""

import math
from typing import Any

import torch
from torch import Tensor

from adamsrt.geometry import group_size, zeros_per_group
from adamsrt.optimizers.base import GroupedOptimizer, Number
from adamsrt.optimizers.blocks import Block
from adamsrt.optimizers.update import Update


def adam_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: Number,
    lr: Number,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Take one step of Adam on x, with one group per element; x and both averages (of its shape) change in place.

    Args:
        step, lr: 0-dim tensors on the device of x where a graph is captured.
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    step_size = lr / (1 - beta1**step)
    if isinstance(step_size, Tensor):
        x.sub_(exp_avg.div(denominator).mul_(step_size))
    else:
        x.addcdiv_(exp_avg, denominator, value=-step_size)


def adam_block_step_(
    block: Block, *, step: Number, lr: Number, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    """Take the same step on a block of elements (n, 1), equal to it bit for bit, without temporaries of its size."""
    beta1, beta2 = betas
    grads = block.decayed_grads(weight_decay)
    for x, grad, m, v, scratch in zip(block.xs, grads, block.ms, block.vs, block.scratch, strict=True):
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = torch.sqrt(v, out=scratch).div_((1 - beta2**step) ** 0.5).add_(eps)
        step_size = lr / (1 - beta1**step)
        if isinstance(step_size, Tensor):
            x.sub_(torch.div(m, denominator, out=scratch).mul_(step_size))
        else:
            x.addcdiv_(m, denominator, value=-step_size)


class AdamLike(GroupedOptimizer):
    """An optimizer whose groups of a single element take steps of Adam."""

    MOMENTUM = "exp_avg"
    SECOND_MOMENT = "exp_avg_sq"
    KERNEL_OF_ELEMENTS = "adam"

    def init_state(self, x: Tensor, dims: tuple[int, ...], state: dict[str, Any]) -> None:
        # As torch's own: the step counter stays on the CPU, where reading it waits for no device.
        state["step"] = torch.tensor(0.0, dtype=torch.float32)
        state["exp_avg"] = self._neighbours.zeros_like(x, "exp_avg")
        is_split = group_size(x, dims) > 1
        state["exp_avg_sq"] = zeros_per_group(x, dims) if is_split else self._neighbours.zeros_like(x, "exp_avg_sq")

    def update_element(self, update: Update, grad: Tensor, step: Number, lr: Number) -> None:
        state, group = update.state, update.group
        adam_step_(
            update.x,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=step,
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
        )

    def update_elements(self, block: Block, group: dict[str, Any], step: Number, lr: Number) -> None:
        adam_block_step_(
            block,
            step=step,
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    @staticmethod
    def numbers_of(group: dict[str, Any]) -> list[float]:
        beta1, beta2 = map(float, group["betas"])
        logarithms = [math.log2(beta) if beta > 0 else -math.inf for beta in (beta1, beta2)]
        others = float(group["eps"]), float(group["weight_decay"]), float(group.get("rt", False))
        return [1 - beta1, beta2, 1 - beta2, *logarithms, *others]
