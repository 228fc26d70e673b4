"""Kernels on the GPU against the formulas in float64: steps of the optimizers, 50 of each way, and BatchNorm."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamsrt.optimizers import OPTIMIZERS
from adamsrt.optimizers.ways import why_not_fused
from benchmarks.gpu_aims import GROUPED
from benchmarks.gpu_norms import compare as compare_norms
from benchmarks.gpu_norms import time_passes
from benchmarks.gpu_section import Bench, Part

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the formulas

# Rows of every kind: short, long in registers, longer, not aligned, whole tensors, single elements.
TENSORS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((128, 64, 3, 3), {"channel_wise": True}),
    ((64, 512, 3, 3), {"channel_wise": True, "weight_decay": 0.05}),
    ((16, 3, 3, 3), {"channel_wise": True}),
    ((4, 12288), {"channel_wise": True}),
    ((10, 9001), {"channel_wise": True, "weight_decay": 0.05}),
    ((100, 500), {"channel_dims": []}),
    ((300, 500), {"channel_dims": []}),  # too long for the kernel, which leaves it to foreach
    ((8, 6, 5), {"channel_dims": [0, 1]}),
    ((1000,), {"weight_decay": 0.05}),
]
SMALL_TENSORS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 4, 2, 2), {"channel_wise": True}),
    ((1, 3, 9), {"channel_dims": []}),
    ((3, 2), {"weight_decay": 0.05}),
]
# Rounding stays below, in any order of summation; a mistake is far above. The aim for float32 is in `gpu_aims`.
ALLOWED = {torch.float32: 5e-6, torch.float64: 1e-10}
WAYS: dict[str, tuple[torch.dtype, dict[str, bool]]] = {
    "fused": (torch.float32, {"fused": True}),
    "fused, capturable": (torch.float32, {"fused": True, "capturable": True}),
    "fused, float64": (torch.float64, {"fused": True}),
    "foreach": (torch.float32, {"foreach": True}),
    "for-loop": (torch.float32, {"foreach": False}),
}


def draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def expected_values(name: str, tensors: list[tuple[tuple[int, ...], dict[str, Any]]], steps: int) -> list[Any]:
    """Give for each tensor the weights and the state after these steps, in NumPy float64."""
    from optimizer_steps import REFERENCES  # type: ignore[import-not-found]
    from reference import axes_of  # type: ignore[import-not-found]

    formula, plain = REFERENCES[name]
    values: list[Any] = [(draw(seed, shape).double().numpy(), {}) for seed, (shape, _) in enumerate(tensors)]
    for k in range(steps):
        for i, (shape, own) in enumerate(tensors):
            axes = axes_of(len(shape), own.get("channel_dims"), own.get("channel_wise", False))
            options = {**plain, "weight_decay": own.get("weight_decay", 0), "axes": axes}
            grad = draw(100 + k * len(tensors) + i, shape).double().numpy()
            values[i] = formula(values[i][0], grad, values[i][1], **options)
    return values


def largest_errors(
    name: str,
    tensors: list[tuple[tuple[int, ...], dict[str, Any]]],
    expected: list[Any],
    *,
    steps: int,
    device: str,
    dtype: torch.dtype,
    options: dict[str, bool],
) -> tuple[float, float]:
    """Take the same steps in one way; give the largest errors of weights and of state relative to the largest value."""
    from optimizer_steps import REFERENCES, STATE_NAMES

    plain = REFERENCES[name][1]
    xs = [draw(seed, shape).to(device, dtype).requires_grad_() for seed, (shape, _) in enumerate(tensors)]
    groups = [{"params": [x], **own} for x, (_, own) in zip(xs, tensors, strict=True)]
    optimizer = OPTIMIZERS[name].build(groups, **options, **plain)
    for k in range(steps):
        for i, (x, (shape, _)) in enumerate(zip(xs, tensors, strict=True)):
            x.grad = draw(100 + k * len(xs) + i, shape).to(device, dtype)
        optimizer.step()
    of_weights, of_state = [], []
    for x, (weights, state) in zip(xs, expected, strict=True):
        of_weights.append(relative_error(x, weights))
        values = {STATE_NAMES[key]: value for key, value in state.items() if key != "k"}
        of_state += [relative_error(optimizer.state[x][key], value) for key, value in values.items()]
    return max(of_weights), max(of_state)


def relative_error(result: Tensor, expected: Any) -> float:
    return float(np.abs(result.detach().double().cpu().numpy() - expected).max() / np.abs(expected).max())


def compare(name: str, bench: Bench) -> None:
    """Compare every way of one optimizer."""
    steps, tensors = (2, SMALL_TENSORS) if bench.small else (50, TENSORS)
    expected = expected_values(name, tensors, steps)
    kernel: Any = OPTIMIZERS[name].build
    device = torch.device("cuda", 0) if bench.device == "cuda" else torch.device("cpu")
    why_not = why_not_fused(kernel.KERNEL, device)
    bench.table(
        f"{GROUPED[name]}: largest error of {steps} steps, relative to the largest value",
        *("way", "weights", "state", "allowed"),
    )
    for way, (dtype, options) in WAYS.items():
        if options.get("fused") and why_not is not None:
            bench.row(way, f"not taken: {why_not}", "", "")
            continue
        errors = largest_errors(name, tensors, expected, steps=steps, device=bench.device, dtype=dtype, options=options)
        bench.row(way, *(f"{error:.1e}" for error in errors), f"{ALLOWED[dtype]:.0e}", errors=errors)
        bench.check(f"formulas/{name}", max(errors) <= ALLOWED[dtype], f"{way} {max(errors):.1e}")
        if way == "fused":
            bench.figure(f"error/{name}", [max(errors)])


def part(name: str) -> Part:
    run: Callable[[Bench], None] = partial(compare, name)
    return Part(GROUPED[name], run, 60.0)


PARTS = (
    *(part(name) for name in GROUPED),
    Part("BatchNorm", compare_norms, 60.0),
    Part("BatchNorm's time", time_passes, 40.0),
)
