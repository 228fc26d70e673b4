"""What torch launches for each tensor of a model, done for all of them at once, with the same bits.

A small network on a GPU waits for launches more than for arithmetic. Of the 231 operations in a forward and backward
pass of ResNet20 in bf16, autocast's own casts of weights and of their gradients were 46, BatchNorm's counters 21.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adamsrt.models.base import ConvNet


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


@contextlib.contextmanager
def counted_together(model: nn.Module) -> Iterator[None]:
    """Take one forward pass of a model while this is open, whose BatchNorm layers then count it all at once.

    Of a model of ours, in which every layer takes part once; others count as ever.
    """
    norms: list[Any] = [module for module in model.modules() if _counts(module)] if isinstance(model, ConvNet) else []
    counters: list[Tensor] = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, counter in zip(norms, counters, strict=True):
            norm.num_batches_tracked = counter
    if counters:
        torch._foreach_add_(counters, 1)


def _counts(module: nn.Module) -> bool:
    """Tell whether a module is a BatchNorm layer that counts its batches, and computes the same whatever the count."""
    is_counted = isinstance(module, nn.BatchNorm2d) and module.training and module.num_batches_tracked is not None
    return is_counted and module.momentum is not None
