"""Time per step of every optimizer relative to torch's Adam, on the weights of real models; and the size of its state.

    .venv/bin/python -m benchmarks.optimizer_step                       # about 5 minutes
    .venv/bin/python -m benchmarks.optimizer_step --models resnet20 --rounds 5

All arms take turns in every round, on one thread, on gradients that are there already. A ratio is that of two arms in
the same round; the tables show median [quartiles] over the rounds, in CPU time of the thread, which other processes
disturb less than the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from adamsrt.models import build_model
from adamsrt.optimizers import OPTIMIZERS, build_optimizer

MODELS = ("resnet18", "resnet20", "vgg16")
PEERS = ("fused", "foreach", "for-loop")
OURS = ("adamsrt", "adams", "sgdmrt", "adamg")
WARM_UP_STEPS = 2
TIME_PER_TURN_S = 0.05

Arms = dict[str, Callable[[], Optimizer]]


def model_with_gradients(name: str) -> nn.Module:
    """Build a model for 3x32x32 images with a random gradient for every parameter."""
    model = build_model(name, num_classes=10, in_channels=3, image_size=32)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-2
    return model


def arms_of(model: str) -> Arms:
    """Give what makes the optimizer of every arm, each on weights of its own."""

    def peer(**options: bool) -> Callable[[], Optimizer]:
        return lambda: Adam(model_with_gradients(model).parameters(), **options)

    def ours(name: str, **options: bool) -> Callable[[], Optimizer]:
        def build() -> Optimizer:
            momentum = {"momentum": 0.9} if name == "sgdmrt" else {}
            optimizer = build_optimizer(name, model_with_gradients(model), **momentum)
            for group in optimizer.param_groups:
                group.update(options)
            return optimizer

        return build

    arms: Arms = {
        "torch.optim.Adam, fused": peer(fused=True),
        "torch.optim.Adam, foreach": peer(foreach=True),
        "torch.optim.Adam, for-loop": peer(foreach=False),
    }
    arms |= {OPTIMIZERS[name].build.__name__: ours(name) for name in OURS}
    return arms | {"AdamSRT, for-loop": ours("adamsrt", foreach=False)}


def measure(arms: Arms, rounds: int) -> dict[str, list[float]]:
    """Give the seconds per step of every arm in every round."""
    optimizers = {name: build() for name, build in arms.items()}
    steps = {}
    for name, optimizer in optimizers.items():
        for _ in range(WARM_UP_STEPS):
            start_s = time.perf_counter()
            optimizer.step()
        steps[name] = max(1, round(TIME_PER_TURN_S / (time.perf_counter() - start_s)))
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            optimizer.step()  # the caches hold another arm's tensors
            start_s = time.thread_time()
            for _ in range(steps[name]):
                optimizer.step()
            seconds[name].append((time.thread_time() - start_s) / steps[name])
    return seconds


def state_bytes(optimizer: Optimizer) -> int:
    """Give the bytes of all state tensors."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


def render_quartiles(values: Sequence[float]) -> str:
    """Give median [quartiles]."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def render_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def render_times(seconds: dict[str, list[float]], peers: Sequence[str]) -> str:
    """Render a Markdown table: milliseconds per step, and the ratio to each of the peers."""
    lines = [
        render_row(["optimizer", "ms / step", *(f"relative to {peer}" for peer in peers)]),
        "|---" * (2 + len(peers)) + "|",
    ]
    for name, values in seconds.items():
        ratios = [[a / b for a, b in zip(values, seconds[peer], strict=True)] for peer in peers]
        milliseconds = statistics.median(values) * 1e3
        lines.append(render_row([name, f"{milliseconds:.3f}", *map(render_quartiles, ratios)]))
    return "\n".join(lines)


def render_state(model: str) -> str:
    """Render one line: the bytes of state of every optimizer relative to Adam's."""
    sizes = {}
    for name, build in arms_of(model).items():
        if "for-loop" in name or "foreach" in name:
            continue
        optimizer = build()
        optimizer.step()
        sizes[name] = state_bytes(optimizer)
    adam = sizes.pop("torch.optim.Adam, fused")
    return ", ".join(f"{name} {size / adam:.3f}" for name, size in sizes.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, n = {arguments.rounds} rounds, median [quartiles]")
    for model in arguments.models:
        seconds = measure(arms_of(model), arguments.rounds)
        peers = [f"torch.optim.Adam, {peer}" for peer in PEERS[:2]]
        print(
            f"\n{model}\n\n{render_times(seconds, peers)}\n\nBytes of state relative to Adam's: {render_state(model)}."
        )


if __name__ == "__main__":
    main()
