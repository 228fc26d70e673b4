"""What torch launches for each tensor of a model, done for all of them at once, with the same bits.

A small network on a GPU waits for launches more than for arithmetic. Of the 229 operations in a forward and backward
pass of ResNet20 in bf16, autocast's own casts of weights and of their gradients were 46, BatchNorm's counters 21.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adamsrt.models.base import ConvNet

COUNTER = "num_batches_tracked"


def weights_to_cast(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name the parameters that autocast casts in every pass of a model; none of a model that is not ours.

    Of our own it is known that convolutions and linear layers alone read them.
    """
    if not isinstance(model, ConvNet):
        return {}
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    }


def cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copy tensors into another dtype; gradients come back in their own."""
    copies = _Cast.apply(dtype, *weights.values()) if weights else ()
    return dict(zip(weights, copies, strict=True))


class _Cast(torch.autograd.Function):
    """Copies of tensors in another dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        return tuple(_copies(tensors, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        copies = iter(_copies([grad for grad in grads if grad is not None], ctx.dtype))
        return None, *(None if grad is None else next(copies) for grad in grads)


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]  # strides too: else a launch for each
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


def norms_to_count(model: nn.Module) -> list[nn.BatchNorm2d]:
    """List the BatchNorm layers that take part once in every pass, and compute the same whatever their count.

    None of a model that is not ours, of which that is not known.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return [norm for norm in norms if norm.momentum is not None] if isinstance(model, ConvNet) else []


@contextlib.contextmanager
def counted_together(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Take one forward pass while this is open, which those of these layers in train mode then count all at once.

    It is a part of every step: torch's own way to set a buffer takes longer than the counting.
    """
    counters = [(norm._buffers, norm._buffers[COUNTER]) for norm in norms if norm.training]
    counters = [(buffers, counter) for buffers, counter in counters if counter is not None]
    for buffers, _ in counters:
        buffers[COUNTER] = None
    try:
        yield
    finally:
        for buffers, counter in counters:
            buffers[COUNTER] = counter
    if counters:
        torch._foreach_add_([counter for _, counter in counters if counter is not None], 1)
