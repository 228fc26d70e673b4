"""BatchNorm, what is added to it and ReLU as fused kernels: against float64, and against torch's own as a graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adamsrt.fused_norm import norm, norm_as_torch, why_not_fused
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench
from benchmarks.optimizer_step import render_quartiles

# Images (N, C, H, W): those of ResNet18, then of ResNet20, with a batch of 128; an odd one.
SHAPES = [
    *((128, 64 << k, 32 >> k, 32 >> k) for k in range(4)),
    *((128, 16 << k, 32 >> k, 32 >> k) for k in range(3)),
    (50, 24, 7, 9),
]
SMALL_SHAPES = [(2, 16, 3, 5)]
KINDS = {"with ReLU": (False, True), "with addition and ReLU": (True, True), "alone": (False, False)}
# Relative to the largest value: a rounding to bfloat16 is up to 4e-3, sums are in float32.
ALLOWED, ALLOWED_OF_SUMS = 1e-2, 1e-4
ROUNDS, STEPS_PER_ROUND, MOMENTUM, EPS = 9, 20, 0.1, 1e-5


class Case:
    """Inputs in bfloat16, and passes over them."""

    def __init__(self, shape: tuple[int, ...], kind: str, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        channels, (adds, self.relu) = shape[1], KINDS[kind]
        x, other, grad = (
            torch.randn(shape, generator=generator).to(device, torch.bfloat16).to(memory_format=torch.channels_last)
            for _ in range(3)
        )
        weight, bias = (torch.randn(channels, generator=generator).to(device) for _ in range(2))
        self.inputs: list[Tensor | None] = [x, other if adds else None, weight, bias]
        self.grad = grad

    def passes(self, way: Callable[..., Tensor], dtype: torch.dtype | None = None) -> Callable[[], list[Tensor]]:
        """Give what takes a forward and a backward pass; its output, gradients and running statistics."""
        inputs: list[Any] = [None if each is None else each.to(dtype or each.dtype).detach() for each in self.inputs]
        wanted = [each.requires_grad_() for each in inputs if each is not None]
        like = inputs[2].detach()
        running = torch.zeros_like(like), torch.ones_like(like)
        grad = self.grad.to(dtype or self.grad.dtype)

        def take() -> list[Tensor]:
            y = way(*inputs, *running, MOMENTUM, EPS, self.relu)
            return [y.detach(), *torch.autograd.grad(y, wanted, grad), *running]

        return take


def compare(bench: Bench) -> None:
    """Compare every kind with float64, and with itself."""
    device = torch.device("cuda", 0) if bench.device == "cuda" else torch.device("cpu")
    reason = why_not_fused(device)
    bench.table("BatchNorm in bf16: largest errors, relative to the largest value", "images", "kind", "images", "sums")
    if reason is not None:
        bench.row("all", f"not taken: {reason}", "", "")
        bench.check("formulas/norm", False, reason)
        return
    for shape in SMALL_SHAPES if bench.small else SHAPES:
        for kind in KINDS:
            case = Case(shape, kind, bench.device)
            given, again = case.passes(norm)(), case.passes(norm)()
            expected = case.passes(norm_as_torch, torch.float64)()
            errors = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(given, expected, strict=True)]
            images = max(error for error, each in zip(errors, given, strict=True) if each.ndim == 4)
            sums = max(error for error, each in zip(errors, given, strict=True) if each.ndim == 1)
            is_same = all(torch.equal(a, b) for a, b in zip(given, again, strict=True))
            bench.row(str(shape), kind, f"{images:.1e}", f"{sums:.1e}", errors=errors)
            holds = images <= ALLOWED and sums <= ALLOWED_OF_SUMS and is_same
            seen = f"{shape} {kind}: {images:.1e}, {sums:.1e}{'' if is_same else ', other bits the second time'}"
            bench.check("formulas/norm", holds, seen)


def time_passes(bench: Bench) -> None:
    """Time both passes as graphs, in turns with torch's own."""
    device = Device(bench.device)
    bench.table(
        f"BatchNorm in bf16, forward and backward as a graph, n = {ROUNDS} rounds of {STEPS_PER_ROUND}",
        *("images", "kind", "microseconds", "torch's own", "ratio, median [quartiles]"),
    )
    for shape in SMALL_SHAPES if bench.small else SHAPES:
        for kind in KINDS:
            case = Case(shape, kind, bench.device)
            arms = [device.captured(case.passes(way)) for way in (norm, _in_place)]
            times: list[list[float]] = [[], []]
            for _ in range(2 if bench.small else ROUNDS):
                for arm, seconds in zip(arms, times, strict=True):
                    seconds.append(device.seconds_per_step(arm, 1 if bench.small else STEPS_PER_ROUND)[0])
            ratios = [a / b for a, b in zip(*times, strict=True)]
            cells = [render_spread([1e6 * each for each in seconds], 4) for seconds in times]
            bench.row(str(shape), kind, *cells, render_quartiles(ratios), seconds=times)
            if bench.device == "cuda" and kind == "with addition and ReLU" and shape[1] != 24:
                bench.figure(f"norm/{shape[1]}x{shape[2]}", ratios)


def _in_place(*arguments: Any) -> Tensor:
    """Do it as the models do without these kernels."""
    x, other, weight, bias, running_mean, running_var, momentum, eps, relu = arguments
    y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    y = y if other is None else y.add_(other)
    return y.relu_() if relu else y
