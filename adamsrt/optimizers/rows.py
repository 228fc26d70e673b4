"""Weights as rows, one row per group, without a copy."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adamsrt.geometry import group_size


@dataclass(slots=True)
class Rows:
    """The rows of one parameter: views (r, d) of weights and momentum, and (r, 1) of v."""

    x: Tensor
    m: Tensor
    v: Tensor | None


@functools.lru_cache(maxsize=4096)
def memory_order(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...] | None:
    """Give the dims of more than one element from the outermost in memory to the innermost; None if not dense."""
    order = sorted((dim for dim, size in enumerate(shape) if size > 1), key=lambda dim: -stride[dim])
    expected = 1
    for dim in reversed(order):
        if stride[dim] != expected:
            return None
        expected *= shape[dim]
    return tuple(order)


@functools.lru_cache(maxsize=4096)
def has_rows(shape: tuple[int, ...], stride: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    """Tell whether every group lies in one piece in memory, and the groups in the order of their values."""
    order = memory_order(shape, stride)
    if order is None:
        return False
    kept = tuple(dim for dim, size in enumerate(shape) if size > 1 and dim not in dims)
    return order[: len(kept)] == kept


def rows_of(
    x: Tensor, grad: Tensor, state: dict[str, Any], dims: tuple[int, ...], momentum: str, second_moment: str | None
) -> Rows | None:
    """View a parameter and its state as rows, single elements as rows of one; None where that fails.

    State in another memory format than its parameter is copied, once.
    """
    shape, d = x.shape, group_size(x, dims)
    order = memory_order(shape, x.stride())
    if order is None or not _is_plain(x, grad) or not (d == 1 or has_rows(shape, x.stride(), dims)):
        return None
    for name in (momentum, second_moment):
        if name is not None and state[name].shape == shape and memory_order(shape, state[name].stride()) != order:
            state[name] = torch.empty_like(x, dtype=state[name].dtype).copy_(state[name])
    count = x.numel() // d
    v = state[second_moment] if second_moment is not None else None
    if v is not None:
        if v.numel() != count or (d > 1 and not v.is_contiguous()):
            return None
        v = v.as_strided((count, 1), (1, 1))
    m = state[momentum].as_strided((count, d), (d, 1))
    return Rows(x.as_strided((count, d), (d, 1)), m, v)


def gradient_rows(grad: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """View a gradient in the shape of the rows of x; a copy where its memory format is not that of x."""
    if grad.stride() != x.stride() and memory_order(x.shape, grad.stride()) != memory_order(x.shape, x.stride()):
        grad = torch.empty_like(x).copy_(grad)
    return grad.as_strided(rows.shape, rows.stride())


def _is_plain(x: Tensor, grad: Tensor) -> bool:
    """Tell whether a parameter may be viewed in another shape: no subclass, some elements, the gradient's dtype."""
    return (
        type(x) in (nn.Parameter, Tensor)
        and type(grad) is Tensor
        and x.device.type in ("cpu", "cuda")
        and x.dtype == grad.dtype
        and x.numel() > 0
    )
