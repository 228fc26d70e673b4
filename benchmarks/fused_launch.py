"""What Python needs for a fused step, measured without a GPU: with one it is most of the step of a small network.

    .venv/bin/python -m benchmarks.fused_launch          # seconds

Ours is a step on the weights of a model, torch's fused Adam one on as many tensors of two elements, both on the CPU and
without what would be launched: ours two kernels, or three for optimizers that count steps; for Adam the counting of the
steps and the kernels of its step. Arms take turns in every round; median [quartiles].
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.optim import Adam

from adamsrt.optimizers import build_optimizer, launch, ways
from benchmarks.optimizer_step import MODELS, OURS, model_with_gradients, render_quartiles, render_row

WARM_UP_STEPS, STEPS_PER_TURN = 5, 50


@contextmanager
def without_gpu() -> Iterator[None]:
    """Take fused steps on the CPU, ours and torch's, but for their launches."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(ways, "why_not_fused", lambda kernel, device: None))
        for name in ("count", "update"):
            stack.enter_context(mock.patch.object(launch, name, lambda *tables, **options: None))
        for name in ("_fused_adam_", "_foreach_add_"):
            stack.enter_context(mock.patch.object(torch, name, lambda *tensors, **options: None))
        yield


def ours(model: str, name: str) -> Callable[[], Any]:
    momentum = {"momentum": 0.9} if name == "sgdmrt" else {}
    optimizer = build_optimizer(name, model_with_gradients(model), **momentum)
    for group in optimizer.param_groups:
        group["fused"] = True
    return optimizer.step


def peer(model: str) -> Callable[[], Any]:
    xs = [nn.Parameter(torch.zeros(2)) for _ in model_with_gradients(model).parameters()]
    for x in xs:
        x.grad = torch.zeros_like(x)
    return Adam(xs, fused=True).step


def microseconds(step: Callable[[], Any]) -> float:
    start_s = time.thread_time()
    for _ in range(STEPS_PER_TURN):
        step()
    return 1e6 * (time.thread_time() - start_s) / STEPS_PER_TURN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, n = {rounds} rounds of {STEPS_PER_TURN} steps, median [quartiles]\n")
    print(render_row(["model", "optimizer", "microseconds", "relative to torch's fused Adam"]))
    print("|---" * 4 + "|")
    with without_gpu():
        for model in MODELS:
            steps = {"Adam": peer(model), **{name: ours(model, name) for name in OURS}}
            for step in steps.values():
                for _ in range(WARM_UP_STEPS):
                    step()
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    times[name].append(microseconds(step))
            for name, values in times.items():
                ratios = [a / b for a, b in zip(values, times["Adam"], strict=True)]
                print(
                    render_row([model, name, f"{statistics.median(values):.0f}", render_quartiles(ratios)]), flush=True
                )


if __name__ == "__main__":
    main()
