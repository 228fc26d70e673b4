"""What only a GPU can show, in under 8 minutes: kernels against the reference, equal bits of the loader, times.

    python -m benchmarks.gpu              # prints Markdown; without a GPU one line

Times of steps are those of CUDA events around ten steps, arms taking turns in every round. "As a graph" is the replay
of a captured step: what the GPU needs, without the time that Python needs to launch it.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from adamsrt.models import build_model
from adamsrt.optimizers import OPTIMIZERS, build_optimizer
from benchmarks.optimizer_step import render_quartiles, render_row

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the formulas in float64

TENSORS = [
    ((64, 64, 3, 3), {"channel_wise": True}),
    ((512, 512, 3, 3), {"channel_wise": True, "weight_decay": 0.05}),
    ((16, 3, 3, 3), {"channel_wise": True}),
    ((10, 9001), {"channel_wise": True}),
    ((300, 500), {"channel_dims": []}),
    ((8, 6, 5), {"channel_dims": [0, 1]}),
    ((1000,), {"weight_decay": 0.05}),
]
MODELS, ROUNDS, STEPS_PER_ROUND = ("resnet18", "resnet20", "vgg16"), 15, 10
TIME_LIMITS_S, WARM_UP_STEPS = {"epochs": 300, "slots": 430}, 2


def draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x.to(memory_format=torch.channels_last) if len(shape) == 4 else x).cuda()


def largest_error(name: str) -> float:
    """Take 50 fused steps on tensors of every kind; give the largest error relative to the largest value."""
    from optimizer_steps import REFERENCES
    from reference import axes_of

    formula, plain = REFERENCES[name]
    xs = [draw(seed, shape).requires_grad_() for seed, (shape, _) in enumerate(TENSORS)]
    groups = [{"params": [x], **own} for x, (_, own) in zip(xs, TENSORS, strict=True)]
    optimizer = OPTIMIZERS[name].build(groups, fused=True, **plain)
    expected, states = [x.detach().double().cpu().numpy() for x in xs], [{} for _ in xs]
    for k in range(50):
        for i, (x, (shape, own)) in enumerate(zip(xs, TENSORS, strict=True)):
            x.grad = draw(100 + k * len(xs) + i, shape)
            axes = axes_of(x.ndim, own.get("channel_dims"), own.get("channel_wise", False))
            options = {**plain, "weight_decay": own.get("weight_decay", 0), "axes": axes}
            expected[i], states[i] = formula(expected[i], x.grad.double().cpu().numpy(), states[i], **options)
        optimizer.step()
    results = [x.detach().double().cpu().numpy() for x in xs]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(results, expected, strict=True))


def graph_difference(name: str) -> float:
    """Replay a captured step while lr changes; give the largest difference to steps without a graph."""

    def run(as_graph: bool) -> Tensor:
        x = draw(1, (64, 64, 3, 3)).requires_grad_()
        lr = torch.tensor(0.01, device="cuda")
        groups = [{"params": [x], "channel_wise": True}, {"params": [y := draw(2, (100,)).requires_grad_()]}]
        optimizer = OPTIMIZERS[name].build(groups, lr=lr, capturable=True)
        x.grad, y.grad = draw(3, tuple(x.shape)), draw(4, tuple(y.shape))
        if as_graph:
            take: Callable[[], Any] = captured(optimizer)
        else:
            take = optimizer.step
            for _ in range(WARM_UP_STEPS):
                take()
        for k in range(5):
            lr.fill_(0.01 / (k + 1))
            x.grad.copy_(draw(10 + k, tuple(x.shape)))
            take()
        return torch.cat([x.detach().flatten(), y.detach()])

    return float((run(True) - run(False)).abs().max())


def captured(optimizer: Optimizer) -> Callable[[], None]:
    """Capture a step, after some that warm up on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def model_on_gpu(name: str, *, channels_last: bool = False) -> nn.Module:
    model = build_model(name, num_classes=10, in_channels=3, image_size=32).cuda()
    return model.to(memory_format=torch.channels_last) if channels_last else model


def with_gradients(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-2
    return model


def step_times(model: str) -> Iterator[str]:
    """Time every arm; give the rows of a table."""

    def peer(**options: bool) -> Optimizer:
        return Adam(with_gradients(model_on_gpu(model)).parameters(), **options)

    def ours(name: str, *, channels_last: bool = False, **options: bool) -> Optimizer:
        momentum = {"momentum": 0.9} if name == "sgdmrt" else {}
        optimizer = build_optimizer(name, with_gradients(model_on_gpu(model, channels_last=channels_last)), **momentum)
        for group in optimizer.param_groups:
            group.update(options)
        return optimizer

    arms: dict[str, Callable[[], Any]] = {
        "Adam, fused": peer(fused=True).step,
        "Adam, foreach": peer(foreach=True).step,
        "AdamSRT": ours("adamsrt").step,
        "AdamSRT, channels_last": ours("adamsrt", channels_last=True).step,
        "AdamSRT, foreach": ours("adamsrt", foreach=True).step,
        "AdamS": ours("adams").step,
        "SGDMRT": ours("sgdmrt").step,
        "AdamG": ours("adamg").step,
        "Adam, fused, as a graph": captured(peer(fused=True, capturable=True)),
        "AdamSRT, as a graph": captured(ours("adamsrt", capturable=True)),
        "AdamS, as a graph": captured(ours("adams", capturable=True)),
        "SGDMRT, as a graph": captured(ours("sgdmrt", capturable=True)),
        "AdamG, as a graph": captured(ours("adamg", capturable=True)),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for k in range(ROUNDS + 2):
        for name, step in arms.items():
            milliseconds = time_of(step)
            if k >= 2:
                times[name].append(milliseconds)
    for name, values in times.items():
        peer_name = "Adam, fused, as a graph" if "graph" in name else "Adam, fused"
        ratios = [a / b for a, b in zip(values, times[peer_name], strict=True)]
        yield render_row([model, name, f"{statistics.median(values) * 1e3:.1f}", render_quartiles(ratios)])


def time_of(step: Callable[[], Any]) -> float:
    """Give milliseconds per step, by CUDA events."""
    step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(STEPS_PER_ROUND):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / STEPS_PER_ROUND


def attempt(check: Callable[[], str]) -> str:
    """Give what a check says, or how it failed: there may be no second chance to see the rest."""
    try:
        return check()
    except Exception as error:
        return f"FAILED: {check.__name__}: {type(error).__name__}: {error}"


def say_rows(rows: Iterator[str]) -> None:
    try:
        for row in rows:
            say(row)
    except Exception as error:
        say(f"FAILED: {type(error).__name__}: {error}")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    if not torch.cuda.is_available():
        say("no GPU: nothing measured")
        return
    start_s = time.perf_counter()
    import triton

    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, {ROUNDS} rounds\n")
    say("| optimizer | largest error of 50 fused steps | largest difference of a graph |\n|---|---|---|")
    for name in ("adams", "adamsrt", "sgdmrt", "adamg"):
        errors = (
            attempt(lambda name=name, check=check: f"{check(name):.1e}") for check in (largest_error, graph_difference)
        )
        say(render_row([name, *errors]))
    say("\n| model | step | microseconds | relative to Adam, fused |\n|---|---|---|---|")
    for model in MODELS:
        say_rows(step_times(model))
    try:
        from benchmarks import gpu_epochs, gpu_slots
    except ImportError as error:
        say(f"\nNo loader and no epochs: {error}")
        return
    say(f"\nLoader, CPU and GPU: {attempt(gpu_epochs.compare_bits)}. {attempt(gpu_epochs.check_training)}")
    say("\n| optimizer | precision | largest difference of weights: with a graph | without, again |\n|---|---|---|---|")
    say_rows(gpu_epochs.graph_differences())
    say("\n| model | arm | seconds per epoch | aim |\n|---|---|---|---|")
    say_rows(gpu_epochs.epoch_times(start_s + TIME_LIMITS_S["epochs"]))
    say(f"\nSlots of one process: {attempt(gpu_slots.compare_with_alone)}")
    say("\n| model | trials at a time | epochs per second | trials of 405 epochs per hour | against one |")
    say("|---|---|---|---|---|")
    say_rows(gpu_slots.rates(start_s + TIME_LIMITS_S["slots"]))
    say(f"\n{time.perf_counter() - start_s:.0f} s in all.")


if __name__ == "__main__":
    main()
