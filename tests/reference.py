"""Every formula of the optimizers in NumPy float64, written from the papers and independent of the torch code.

All functions take and give new arrays. `axes` are the axes that sums run over; a value per group keeps them with
length 1, and axes=() means one group per element. Sources: arXiv:2006.13382 (Adam, AdamS, AdamSRT, SGD-MRT) and
arXiv:1709.09603 (Adam-G).
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
State = dict[str, Any]


def axes_of(ndim: int, channel_dims: list[int] | None, channel_wise: bool) -> tuple[int, ...]:
    """Give the axes that sums run over: all that do not tell the groups apart."""
    if channel_dims is None:
        channel_dims = [0] if channel_wise else list(range(ndim))
    positive = [dim + ndim if dim < 0 else dim for dim in channel_dims]
    return tuple(axis for axis in range(ndim) if axis not in positive)


def dot(x: Array, y: Array, axes: tuple[int, ...]) -> Array:
    """Compute <x, y> per group."""
    return np.sum(x * y, axis=axes, keepdims=True)


def size_of_group(x: Array, axes: tuple[int, ...]) -> int:
    """Count the elements of one group."""
    return int(np.prod([x.shape[axis] for axis in axes]))


def adam_srt(
    x: Array,
    grad: Array,
    state: State,
    *,
    axes: tuple[int, ...],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    rt: bool = True,
) -> tuple[Array, State]:
    """Take one step of AdamSRT; rt=False gives AdamS, and one group per element Adam."""
    b1, b2 = betas
    d, k = size_of_group(x, axes), state.get("k", 0) + 1
    g = grad + weight_decay * x
    m = b1 * state.get("m", 0) + (1 - b1) * g
    v = b2 * state.get("v", 0) + (1 - b2) * dot(g, g, axes)
    x_new = x - lr * np.sqrt(d) * (m / (1 - b1**k)) / (np.sqrt(v) / np.sqrt(1 - b2**k) + eps)
    if rt and d > 1:
        v = v * dot(x, x, axes) / (dot(x_new, x_new, axes) + eps)
        m = (dot(x, x_new, axes) * m - dot(m, x_new, axes) * x) / (dot(x_new, x_new, axes) + eps)
    return x_new, {"k": k, "m": m, "v": v}


def sgd_mrt(
    x: Array,
    grad: Array,
    state: State,
    *,
    axes: tuple[int, ...],
    lr: float = 1e-1,
    momentum: float = 0,
    dampening: float = 0,
    weight_decay: float = 0,
) -> tuple[Array, State]:
    """Take one step of SGD-MRT; one group per element gives SGD."""
    g = grad + weight_decay * x
    b = momentum * state.get("b", 0) + (1 - dampening) * g
    x_new = x - lr * b
    if size_of_group(x, axes) > 1:
        b = (dot(x, x_new, axes) * b - dot(b, x_new, axes) * x) / dot(x_new, x_new, axes)
    return x_new, {"b": b}


def adam_g(
    x: Array,
    grad: Array,
    state: State,
    *,
    axes: tuple[int, ...],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
) -> tuple[Array, State]:
    """Take one step of Adam-G; groups of a single element take a step of Adam."""
    if size_of_group(x, axes) == 1:
        hyper_parameters = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        return adam_srt(x, grad, state, axes=axes, rt=False, **hyper_parameters)
    b1, b2 = betas
    k = state.get("k", 0) + 1
    y = x / np.sqrt(dot(x, x, axes))
    h = grad - dot(y, grad, axes) * y
    m = b1 * state.get("m", 0) + (1 - b1) * h
    v = b2 * state.get("v", 0) + (1 - b2) * dot(h, h, axes)
    D = -lr * (m / (1 - b1**k)) / (np.sqrt(v / (1 - b2**k)) + eps)
    length = np.sqrt(dot(D, D, axes))
    u = D / length
    x_new = y * np.cos(length) + u * np.sin(length)
    m = m - dot(m, u, axes) * (u * (1 - np.cos(length)) + y * np.sin(length))
    return x_new, {"k": k, "m": m, "v": v}
