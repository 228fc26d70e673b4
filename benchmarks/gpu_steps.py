"""What a step of every optimizer takes on the weights of real models, against torch's fused Adam.

"As a graph" is the replay of a captured step: what the GPU needs, without the time that Python needs to launch it.
Arms take turns in every round; a ratio is that of two arms in one round.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from adamsrt.models import build_model
from adamsrt.optimizers import build_optimizer
from benchmarks.gpu_aims import GROUPED, MODELS
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part
from benchmarks.optimizer_step import render_quartiles

ROUNDS, STEPS_PER_ROUND, ROUNDS_UNSEEN = 15, 10, 2
AS_GRAPH = ", as a graph"
# Bytes that a step has to move per parameter in float32: reading x, g, m (and v), writing x, m (and v).
BYTES_WITH_V, BYTES_WITHOUT_V = 28, 20


def model_on(device: str, name: str, *, channels_last: bool = False) -> nn.Module:
    """Build a model with a random gradient for every parameter."""
    model = build_model(name, num_classes=10, in_channels=3, image_size=32).to(device)
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-2
    return model


def peer(device: str, model: str, **options: Any) -> Optimizer:
    return Adam(model_on(device, model).parameters(), **options)


def ours(device: str, model: str, name: str, *, channels_last: bool = False, **options: Any) -> Optimizer:
    momentum = {"momentum": 0.9} if name == "sgdmrt" else {}
    optimizer = build_optimizer(name, model_on(device, model, channels_last=channels_last), **momentum)
    for group in optimizer.param_groups:
        group.update(options)
    return optimizer


def as_published(device: str, model: str) -> Optimizer:
    """Build AdamSRT as its formulas read, one tensor and one operation after another."""
    from benchmarks.epoch import PlainAdamSRT

    built: Any = model_on(device, model)
    groups = [{"params": built.conv_params(), "channel_wise": True}, {"params": built.other_params()}]
    return PlainAdamSRT(groups, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)


def arms_of(device: str, model: str) -> dict[str, Callable[[], Optimizer]]:
    """Give what builds the optimizer of every arm, each on weights of its own; the first is the one to compare with."""
    capturable = {
        "Adam, fused": lambda: peer(device, model, fused=True, capturable=True),
        **{
            text: lambda name=name: ours(device, model, name, capturable=True)  # type: ignore[misc]
            for name, text in GROUPED.items()
        },
        "AdamSRT, channels_last": lambda: ours(device, model, "adamsrt", channels_last=True, capturable=True),
    }
    return {
        "Adam, fused": lambda: peer(device, model, fused=True),
        "Adam, foreach": lambda: peer(device, model, foreach=True),
        **{text: lambda name=name: ours(device, model, name) for name, text in GROUPED.items()},  # type: ignore[misc]
        "AdamSRT, channels_last": lambda: ours(device, model, "adamsrt", channels_last=True),
        "AdamSRT, foreach": lambda: ours(device, model, "adamsrt", foreach=True),
        "AdamSRT, as published": lambda: as_published(device, model),
        **{name + AS_GRAPH: build for name, build in capturable.items()},
    }


def bytes_per_step(model: str, arm: str) -> int:
    """Give the bytes that a step cannot do without."""
    built: Any = build_model(model, num_classes=10, in_channels=3, image_size=32)
    in_groups: int = sum(each.numel() for each in built.conv_params())
    others: int = sum(each.numel() for each in built.other_params())
    of_groups = BYTES_WITH_V if arm.startswith("Adam,") else BYTES_WITHOUT_V
    return of_groups * in_groups + (BYTES_WITHOUT_V if arm.startswith("SGD") else BYTES_WITH_V) * others


def time_steps(model: str, bench: Bench) -> None:
    """Time every arm that works."""
    device = Device(bench.device)
    steps: dict[str, Callable[[], Any]] = {}
    for arm, build in arms_of(bench.device, model).items():
        try:
            step: Callable[[], Any] = build().step
            steps[arm] = device.captured(step) if arm.endswith(AS_GRAPH) else step
            steps[arm]()
        except Exception as error:  # the others still count
            device.synchronize()
            steps.pop(arm, None)
            bench.note(f"NOT MEASURED: {arm}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    launching: dict[str, list[float]] = {arm: [] for arm in steps}
    rounds = 2 if bench.small else ROUNDS + ROUNDS_UNSEEN
    for k in range(rounds):
        for arm, step in steps.items():
            of_gpu_s, of_python_s = device.seconds_per_step(step, 1 if bench.small else STEPS_PER_ROUND)
            if bench.small or k >= ROUNDS_UNSEEN:
                seconds[arm].append(of_gpu_s)
                launching[arm].append(of_python_s)
    bench.table(
        f"{MODELS[model]}: a step, n = {len(next(iter(seconds.values())))} rounds of {STEPS_PER_ROUND} steps",
        *("step", "microseconds", "of fused Adam's, median [quartiles]", "microseconds to launch", "TB/s at least"),
    )
    for arm, values in seconds.items():
        is_graph = arm.endswith(AS_GRAPH)
        peers = seconds.get("Adam, fused" + (AS_GRAPH if is_graph else ""))
        ratios = [a / b for a, b in zip(values, peers, strict=True)] if peers else []
        terabytes_per_s = bytes_per_step(model, arm) / statistics.median(values) / 1e12
        bench.row(
            arm,
            render_spread([1e6 * value for value in values], 4),
            render_quartiles(ratios) if ratios else "",
            f"{1e6 * statistics.median(launching[arm]):.1f}",
            f"{terabytes_per_s:.2f}",
            seconds=values,
            launching=launching[arm],
        )
        if arm.removesuffix(AS_GRAPH) == "AdamSRT" and ratios:
            bench.figure(f"step{' as a graph' if is_graph else ''}/{model}", ratios)


def count_launches(bench: Bench) -> None:
    """Count the kernels of one step."""
    from torch.profiler import ProfilerActivity, profile

    device = Device(bench.device)
    activity = ProfilerActivity.CUDA if device.is_gpu else ProfilerActivity.CPU
    bench.table("Kernels, copies and fills that one step of ResNet18 launches", "step", "launches", "the most frequent")
    for arm, build in arms_of(bench.device, "resnet18").items():
        if arm.endswith(AS_GRAPH):
            continue
        optimizer = build()
        for _ in range(2):
            optimizer.step()
        device.synchronize()
        with profile(activities=[activity]) as profiled:
            optimizer.step()
            device.synchronize()
        on_gpu = [event for event in profiled.events() if str(event.device_type).endswith("CUDA")]
        names = [event.name for event in (on_gpu if device.is_gpu else profiled.events())]
        counts = sorted(((names.count(name), name) for name in set(names)), reverse=True)
        most = ", ".join(f"{count} x {name[:40]}" for count, name in counts[:3])
        bench.row(arm, f"{len(names)}", most, launches=counts)


def part(model: str) -> Part:
    run: Callable[[Bench], None] = partial(time_steps, model)
    return Part(MODELS[model], run, 40.0)


PARTS = (*(part(model) for model in MODELS), Part("launches", count_launches, 40.0))
