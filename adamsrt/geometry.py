"""Groups of weights and the geometry of their spheres: pure tensor functions.

A parameter tensor that a normalization layer makes scale invariant is split into groups, each with a sphere of its own.
`channel_dims` tells the groups apart; sums run over all other dims, here called `dims`. A value per group has the shape
of the tensor with `dims` reduced to 1, so that it broadcasts. A trailing underscore marks a function that writes into
its first argument(s). Source of the formulas: arXiv:2006.13382.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def summed_dims(ndim: int, *, channel_dims: Sequence[int] | None, channel_wise: bool) -> tuple[int, ...]:
    """Give the dims that an inner product sums over, in increasing order.

    Args:
        ndim: number of dims of the tensor.
        channel_dims: the dims that tell the groups apart; [] makes the whole tensor one group, negative dims count from
            the end. When given it wins over channel_wise.
        channel_wise: without channel_dims, True means channel_dims=[0] and False one group per element.
    Errors:
        ValueError where channel_dims is no list of distinct dims of the tensor.
    """
    if channel_dims is None:
        # A tensor with no dims is a single element, which channel_wise cannot split any further.
        kept = {0} if channel_wise and ndim > 0 else set(range(ndim))
        return tuple(dim for dim in range(ndim) if dim not in kept)
    if not isinstance(channel_dims, list | tuple) or not all(type(dim) is int for dim in channel_dims):
        raise ValueError(f"channel_dims must be None or a list of integers, got {channel_dims!r}")
    if not all(-ndim <= dim < ndim for dim in channel_dims):
        raise ValueError(
            f"channel_dims must be dims of every parameter of the group, got {channel_dims!r} for one with {ndim} dims"
        )
    kept = {dim % ndim for dim in channel_dims}
    if len(kept) != len(channel_dims):
        raise ValueError(f"channel_dims must not repeat a dim, got {channel_dims!r} for a parameter with {ndim} dims")
    return tuple(dim for dim in range(ndim) if dim not in kept)


def group_size(x: Tensor, dims: tuple[int, ...]) -> int:
    """Give d, the number of elements in one group."""
    size = 1
    for dim in dims:
        size *= x.shape[dim]
    return size


def group_dtype(x: Tensor) -> torch.dtype:
    """Give the dtype for values per group: at least float32, since sums and decaying averages stall in bfloat16."""
    return torch.promote_types(x.dtype, torch.float32)


def zeros_per_group(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Make one zero per group: the shape of x with `dims` reduced to 1."""
    shape = [1 if dim in dims else size for dim, size in enumerate(x.shape)]
    return torch.zeros(shape, dtype=group_dtype(x), device=x.device)


def inner(x: Tensor, y: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Compute <x, y> per group: a new tensor with `dims` reduced to 1, in at least float32."""
    dtype = group_dtype(x)
    product = x.to(dtype) * y.to(dtype)
    return product.sum(dims, keepdim=True) if dims else product  # torch takes an empty tuple for "all dims"


def inner_after_step(A: Tensor, B: Tensor, C: Tensor, a: Tensor | float) -> tuple[Tensor, Tensor]:
    """Compute M = <m, x'> and N = <x', x'> for x' = x - a m, without x' and without a copy of x.

    Args:
        A, B, C: <x, x>, <m, x> and <m, m>, one value per group.
        a: step size, a number or one value per group.
    Returns:
        (M, N), one value per group. N has lost about log10(A / N) digits where the step almost cancels the weights.
    """
    M = B - a * C
    N = A - a * B - a * M
    return M, N.clamp_min_(0)  # rounding can push a squared norm below zero


def rescale_(v: Tensor, A: Tensor, N: Tensor, eps: float) -> None:
    """Rescale the second moment to the new radius: v <- v A / (N + eps), with A = <x, x> and N = <x', x'>."""
    v.mul_(A / (N + eps))


def transport_(m: Tensor, x_new: Tensor, M: Tensor, N: Tensor, eps: float = 0.0) -> None:
    """Rescale a momentum and transport it to the tangent space at the new weights.

    In place, m <- (N m - M x') / (N + eps). This equals (<x, x'> m - <m, x'> x) / (<x', x'> + eps) for x' = x - a m,
    and leaves <m, x'> = 0 in every group.

    Args:
        m, x_new: momentum and weights after the step, of one shape.
        M, N: <m, x'> and <x', x'>, one value per group.
    Source: arXiv:2006.13382, Algorithm 1.
    """
    # With eps = 0 a group of zeros would give 0 / 0; it has no tangent space, and keeps a momentum of zero.
    denominator = (N + eps).clamp_min_(torch.finfo(N.dtype).tiny)
    m.mul_(N / denominator).addcmul_(x_new, M / denominator, value=-1)


def follow_geodesic_(x: Tensor, m: Tensor, scale: Tensor, dims: tuple[int, ...], norm: Tensor | float = 1.0) -> None:
    """Move y = x / norm by D = -scale m along the unit sphere, and m with it, both in place.

    The exponential map y cos|D| + (D / |D|) sin|D| and the exact parallel transport of m along D. As D is parallel to
    m, the transport turns m in the plane of y and m: m cos|D| + |m| y sin|D|.

    Args:
        x, m: point and tangent vector (<x, m> = 0) per group, of one shape; x lies on the unit sphere afterwards.
        scale: one non-negative value per group.
        norm: |x|, one value per group.
    Source: arXiv:1709.09603.
    """
    length = inner(m, m, dims).sqrt_()
    cos, sin = torch.cos(scale * length), torch.sin(scale * length)
    turned = x * (length * sin / norm)
    move = x * (cos / norm - 1)  # of the size of the step: x itself is rounded once, when it is added
    move.addcmul_(m, sin / length.clamp_min(torch.finfo(length.dtype).tiny), value=-1)
    x.add_(move)
    m.mul_(cos).add_(turned)
