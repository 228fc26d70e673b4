"""Whole epochs on a GPU, for `benchmarks.gpu`: in every precision, with and without a graph, and that they agree.

An epoch is 47,500 images of the size of CIFAR-10 to train on in batches of 128, and 2,500 to validate.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adamsrt.dataloaders.images import ImageLoader, ImageSet, normalization_table
from adamsrt.epoch import Step, TrainStep, evaluate, train_epoch
from adamsrt.graph import GraphedStep
from adamsrt.models import build_model
from adamsrt.optimizers import OPTIMIZERS, build_optimizer
from adamsrt.precision import best_memory_format
from adamsrt.training import Training, TrainingSpec, evaluation_batch_size
from benchmarks.optimizer_step import render_row

TRAINING_IMAGES, VALIDATION_IMAGES, BATCH_SIZE, EPOCHS = 47_500, 2_500, 128, 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
AIMS_S = {"resnet18": 0.7, "vgg16": 0.4, "resnet20": 0.25}


@dataclass(frozen=True)
class Arm:
    """One way to train; memory_format None is the one that `Training` takes."""

    precision: str
    graph: bool
    optimizer: str = "adamsrt"
    memory_format: torch.memory_format | None = None
    cudnn_benchmark: bool = False

    def __str__(self) -> str:
        own_format = "" if self.memory_format is None else f", {str(self.memory_format).removeprefix('torch.')}"
        tried = ", cudnn.benchmark" if self.cudnn_benchmark else ""
        return f"{self.optimizer}, {self.precision}{own_format}{tried}{', graph' if self.graph else ''}"


# The first ones matter most: time may end before the last.
ARMS = (
    Arm("bf16", graph=True),
    Arm("bf16", graph=False),
    Arm("fp32", graph=True),
    Arm("fp32", graph=False),
    Arm("tf32", graph=True),
    Arm("bf16", graph=True, cudnn_benchmark=True),
    Arm("bf16", graph=True, optimizer="adam"),
    Arm("fp32", graph=True, memory_format=torch.channels_last),
    Arm("bf16", graph=True, memory_format=torch.contiguous_format),
    Arm("tf32", graph=True, memory_format=torch.contiguous_format),
)


def random_images(n: int) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.randint(10, (n,), generator=generator))


def compare_bits() -> str:
    """Compare two epochs of the loader on CPU and GPU bit for bit."""
    table = normalization_table(MEAN, STD)
    options: dict[str, Any] = {"batch_size": 1000, "shuffle": True, "padding": 4, "flip": True, "seed": 5}
    on_cpu, on_gpu = (ImageLoader(random_images(10_000), table, device=device, **options) for device in ("cpu", "cuda"))
    batches = [pair for _ in range(2) for pair in zip(on_cpu, on_gpu, strict=True)]
    same = all(torch.equal(a, c.cpu()) and torch.equal(b, d.cpu()) for (a, b), (c, d) in batches)
    return "the same bits" if same else "DIFFERENT BITS"


def build_step(model_name: str, arm: Arm, **hyper_parameters: Any) -> tuple[TrainStep, Step]:
    """Give the step of an arm without and with its graph, if it has one; the initial weights are always the same."""
    torch.manual_seed(0)
    model = build_model(model_name, num_classes=10, in_channels=3, image_size=32)
    memory_format = arm.memory_format or best_memory_format("cuda", arm.precision)
    model.to(device="cuda", memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = build_optimizer(arm.optimizer, model, **hyper_parameters)
    step = TrainStep(model, optimizer, precision=arm.precision, memory_format=memory_format)
    return step, GraphedStep(step, BATCH_SIZE) if arm.graph else step


def graph_differences() -> Iterator[str]:
    """Take 24 steps with and without a graph, the learning rate dropping half way; give the rows of a table."""
    torch.backends.cudnn.deterministic = True
    table = normalization_table(MEAN, STD)
    batches = ImageLoader(random_images(12 * BATCH_SIZE + 50), table, batch_size=BATCH_SIZE, device="cuda")
    for name in OPTIMIZERS:
        for precision in ("fp32", "bf16"):
            weights = [weights_after(name, precision, graph, batches) for graph in (False, False, True)]
            unit = float(weights[0].abs().max())
            again, graphed = (float((each - weights[0]).abs().max()) / unit for each in weights[1:])
            yield render_row([name, precision, f"{graphed:.1e}", f"{again:.1e}"])
    torch.backends.cudnn.deterministic = False


def weights_after(optimizer: str, precision: str, graph: bool, batches: ImageLoader) -> Tensor:
    """Train two epochs at two learning rates; give all weights, flat."""
    momentum = {"momentum": 0.9} if optimizer.startswith("sgd") else {}
    plain, step = build_step("resnet20", Arm(precision, graph, optimizer), lr=1e-3, **momentum)
    for lr in (1e-3, 1e-4):
        for group in plain.optimizer.param_groups:
            group["lr"] = lr
        batches.set_epoch(0)
        train_epoch(plain.model, plain.optimizer, batches, step=step)
    if isinstance(step, GraphedStep) and not step._works:
        raise RuntimeError("the step was not captured")
    return torch.cat([each.detach().flatten() for each in plain.model.parameters()])


def epoch_times(deadline_s: float) -> Iterator[str]:
    """Time the epochs of every arm after a tenth of one; give the rows of a table."""
    table = normalization_table(MEAN, STD)
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "shuffle": True, "padding": 4, "flip": True, "device": "cuda"}
    loader = ImageLoader(random_images(TRAINING_IMAGES), table, **options)
    short = ImageLoader(random_images(TRAINING_IMAGES // 10), table, **options)
    in_order = ImageLoader(
        random_images(VALIDATION_IMAGES),
        table,
        batch_size=evaluation_batch_size("cuda", BATCH_SIZE, 32),
        device="cuda",
    )
    seconds = [timed(lambda: sum(len(images) for images, _ in loader)) for _ in range(EPOCHS)]
    yield render_row(["loader alone", "", render_seconds(seconds), ""])
    for name, aim_s in AIMS_S.items():
        for arm in ARMS:
            if time.perf_counter() > deadline_s:
                yield render_row(["no time for the rest", "", "", ""])
                return
            try:
                seconds = times_of(name, arm, short, loader, in_order)
            except Exception as error:  # the other arms still count
                yield render_row([name, str(arm), f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", ""])
                continue
            yield render_row([name, str(arm), render_seconds(seconds), f"{aim_s}"])


def times_of(name: str, arm: Arm, short: ImageLoader, loader: ImageLoader, in_order: ImageLoader) -> list[float]:
    torch.backends.cudnn.benchmark = arm.cudnn_benchmark
    try:
        plain, step = build_step(name, arm, lr=1e-3)

        def epoch(batches: ImageLoader) -> None:
            train_epoch(plain.model, plain.optimizer, batches, step=step)
            evaluate(plain.model, in_order, precision=plain.precision, memory_format=plain.memory_format)

        epoch(short)
        return [timed(lambda: epoch(loader)) for _ in range(EPOCHS)]
    finally:
        torch.backends.cudnn.benchmark = False


def timed(take: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    take()
    torch.cuda.synchronize()
    return time.perf_counter() - start_s


def render_seconds(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} [{min(seconds):.3f}, {max(seconds):.3f}]"


def check_training() -> str:
    """Train the digits with a graph, interrupted and resumed; say how far that is from a training without."""
    losses = []
    for graph in (False, True):
        hyper_parameters = {"lr": 1e-3, "betas": (0.9, 0.99)}
        spec = TrainingSpec(
            "digits", "resnet20", "adamsrt", hyper_parameters, epochs=3, device="cuda", batch_size=32, cuda_graph=graph
        )
        first, resumed = Training(spec), Training(spec)
        first.run_epoch()
        resumed.load_state_dict(first.state_dict())
        losses.append([resumed.run_epoch().train_loss for _ in range(2)])
    largest = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    return f"Training, resumed, with a graph: losses within {largest:.1e} of those without."
