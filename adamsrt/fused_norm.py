"""BatchNorm with what follows it, an addition and ReLU, as two launches forward and two backward, on a GPU.

Our models call `norm_and_what_follows`, which takes the layers one by one, or does `norm` where `norms_fused` is open.
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from adamsrt.optimizers.param_groups import has_hooks

# Elements in a tile: of `moments`, which has few programs and reads one tensor, and of the others.
TILE_OF_MOMENTS, TILE, MOST_COLUMNS = 8192, 4096, 32
HOW = {"num_warps": 8, "enable_fp_fusion": True}
# Pieces: every program of a second kernel reads the sums of all of them.
MOST_PIECES, TILES_IN_A_PIECE, PROGRAMS_OF_SUMS, PROGRAMS = 64, 2, 256, 512
LARGEST = 2**31  # elements: places are numbers of 32 bits
ALLOWED = 2e-2  # of the largest value in bfloat16, where a rounding is 4e-3; a mistake is far above

TENSORS = ("weight", "bias", "running_mean", "running_var")


class _Choice(threading.local):
    """Whether this thread has norms fused: another one may train another model."""

    fuses = False


_choice = _Choice()


@contextlib.contextmanager
def norms_fused() -> Iterator[None]:
    """While this is open, BatchNorm in train mode and what follows it is `norm` in our models, in this thread.

    Counters of batches stay as they are.
    """
    before, _choice.fuses = _choice.fuses, True
    try:
        yield
    finally:
        _choice.fuses = before


def norm_and_what_follows(layer: nn.BatchNorm2d, x: Tensor, other: Tensor | None, relu: nn.Module | None) -> Tensor:
    """Give relu(layer(x) + other), without what is None.

    Args:
        x: (N, C, H, W). other: what has its shape; None adds nothing. relu: an `nn.ReLU`, or None.
    """
    if _choice.fuses and _is_fusible(layer) and not (relu is not None and has_hooks(relu)):
        rest: list[Any] = [*(getattr(layer, name) for name in TENSORS), layer.momentum, layer.eps, relu is not None]
        return norm(x, other, *rest)
    y: Tensor = layer(x)
    y = y if other is None else y.add_(other)  # in place: a buffer less to fill
    return y if relu is None else relu(y)


def _is_fusible(layer: nn.BatchNorm2d) -> bool:
    has_all = all(getattr(layer, name) is not None for name in (*TENSORS, "momentum"))
    return type(layer) is nn.BatchNorm2d and has_all and layer.training and not has_hooks(layer)


def norm(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    """Give relu(batch_norm(x) + other) in train mode, rounded once, and update the running statistics.

    Args:
        x: (N, C, H, W) on a GPU, best in channels_last. other: of its shape and type; None adds nothing.
        weight, bias, running_mean, running_var: (C,), float32; all others as in `torch.nn.functional.batch_norm`.
        relu: must be taken where something is added.
    Errors:
        ValueError where there is one value per channel only, as in torch.
    """
    does: Any = norm_as_torch if x.numel() == x.shape[1] or x.numel() >= LARGEST else _Norm.apply
    y: Tensor = does(x, other, weight, bias, running_mean, running_var, momentum, eps, relu)
    return y


class _Norm(torch.autograd.Function):
    """The forward and the backward pass of `norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, *rest: Any) -> Tensor:
        from adamsrt import norm_kernels

        weight, bias, running_mean, running_var, momentum, eps, relu = rest
        device_of: Any = torch.cuda.device_of
        x = x.contiguous(memory_format=torch.channels_last)
        other = None if other is None else other.contiguous(memory_format=torch.channels_last)
        channels = x.shape[1]
        rows = x.numel() // channels
        sums, rest = _grids(rows, channels)
        y, partials, saved = torch.empty_like(x), _floats(x, sums[0], 2, channels), _floats(x, 2, channels)
        with device_of(x):  # Triton launches on the current one; a backward pass is there already
            norm_kernels.moments[sums](x, partials, rows, channels, **_tile(channels, TILE_OF_MOMENTS), **HOW)
            norm_kernels.normalize[rest](
                x, x if other is None else other, y, partials, weight, bias, running_mean, running_var, saved,
                rows, channels, sums[0], momentum, eps, **_tile(channels, TILE), PIECES=MOST_PIECES,
                LANES_OF_PIECES=_tile(channels, TILE_OF_MOMENTS)["LANES"], ADDS=other is not None, RELU=relu, **HOW,
            )  # fmt: skip
        ctx.options = other is not None, relu
        ctx.save_for_backward(x, x if other is None else y, weight, bias, saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        from adamsrt import norm_kernels

        x, y, weight, bias, saved = ctx.saved_tensors
        adds, relu = ctx.options
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        channels = x.shape[1]
        rows = x.numel() // channels
        sums, rest = _grids(rows, channels)
        partials, grad_x = _floats(x, sums[0], 2, channels), torch.empty_like(x)
        grad_other = torch.empty_like(x) if adds else grad_y
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
        options: Any = {**_tile(channels, TILE), "ADDS": adds, "RELU": relu, **HOW}
        norm_kernels.grad_sums[sums](grad_y, x, y, partials, weight, bias, saved, rows, channels, **options)
        norm_kernels.gradients[rest](
            grad_y, x, y, grad_x, grad_other, partials, weight, bias, grad_weight, grad_bias, saved,
            rows, channels, sums[0], PIECES=MOST_PIECES, **options,
        )  # fmt: skip
        return grad_x, grad_other if adds else None, grad_weight, grad_bias, None, None, None, None, None


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _tile(channels: int, elements: int) -> dict[str, int]:
    """Give rows and channels of a tile of so many elements."""
    columns = min(MOST_COLUMNS, 1 << (channels - 1).bit_length())
    return {"LANES": elements // columns, "COLUMNS": columns}


def _grids(rows: int, channels: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Give pieces of the rows, and of the channels, for the kernels that sum and for those that do the rest."""
    of_sums, of_rest = _tile(channels, TILE_OF_MOMENTS), _tile(channels, TILE)
    blocks = -(-channels // of_sums["COLUMNS"])
    at_most = min(rows // (of_sums["LANES"] * TILES_IN_A_PIECE), PROGRAMS_OF_SUMS // blocks, MOST_PIECES)
    pieces = max(1, at_most)
    tiles = -(-rows // of_rest["LANES"])
    return (pieces, blocks), (min(tiles, max(1, PROGRAMS // blocks)), blocks)


@functools.cache
def why_not_fused(device: torch.device) -> str | None:
    """Say why `norm` is not to be used on a device; None where it works. The first call compares it with torch's.

    Warns where there is a GPU whose speed is not used.
    """
    try:
        from adamsrt import norm_kernels
    except ImportError:
        reason = "no Triton"
    else:
        if device.type != "cuda" and not norm_kernels.INTERPRETED:
            return f"images on {device}"
        try:
            error = _error_of_a_trial(device)
        except (
            Exception
        ) as failure:  # Triton compiles here: without a C compiler or on an old GPU it fails in many ways
            reason = f"{type(failure).__name__} from Triton: {str(failure).strip().partition(chr(10))[0]}"
        else:
            if error <= ALLOWED:
                return None
            reason = f"they are off by {error:.1e} of the largest value"
    if device.type == "cuda":
        warnings.warn(f"BatchNorm takes torch's kernels instead of fused ones on {device} ({reason})", stacklevel=2)
    return reason


def _error_of_a_trial(device: torch.device) -> float:
    """Give the largest difference to torch's float32, relative to the largest value; of several pieces and blocks."""
    generator = torch.Generator().manual_seed(0)
    shape, channels = (4, 48, 16, 20), 48
    x, other, grad = (
        torch.randn(shape, generator=generator).to(device, torch.bfloat16, memory_format=torch.channels_last)
        for _ in range(3)
    )
    weight, bias = (torch.randn(channels, generator=generator).to(device) for _ in range(2))
    results = []
    ways: list[tuple[Any, torch.dtype]] = [(norm, torch.bfloat16), (norm_as_torch, torch.float32)]
    for function, dtype in ways:
        inputs = [tensor.detach().clone().requires_grad_() for tensor in (x.to(dtype), other.to(dtype), weight, bias)]
        running = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        with torch.enable_grad():
            y = function(*inputs, *running, 0.1, 1e-5, True)
        results.append([y.detach(), *torch.autograd.grad(y, inputs, grad.to(dtype)), *running])
    return max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def norm_as_torch(x: Tensor, other: Tensor | None, *rest: Any) -> Tensor:
    """Do the same as `norm`, one operation of torch after the other."""
    weight, bias, running_mean, running_var, momentum, eps, relu = rest
    y = functional.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    y = y if other is None else y + other
    return y.relu() if relu else y
