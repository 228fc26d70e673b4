"""Training with CUDA graphs against training without: the same epochs, for every optimizer.

In float64, where a difference in rounding stays small: what is left is a mistake. Batches are of several sizes, the
learning rate drops between the epochs, and sums of loss and accuracy begin anew.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adamsrt.epoch import Step, TrainStep, train_epoch
from adamsrt.graph import GraphedStep, make_capturable
from adamsrt.models import build_model
from adamsrt.optimizers import OPTIMIZERS, build_optimizer
from adamsrt.optimizers.base import GroupedOptimizer
from adamsrt.training import Training
from benchmarks.gpu_aims import OPTIMIZERS as NAMES
from benchmarks.gpu_device import Device
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_training import (
    BATCH_SIZE,
    images_like_cifar,
    largest_difference,
    loaders_of,
    spec_of,
    without_clock,
)

LRS = (2.0**-10, 2.0**-13)  # exact in float32, which torch's own captured steps read
# Full batches, a size that comes often enough for a graph of its own, and one that does not.
SIZES = [*[BATCH_SIZE] * 5, 50, BATCH_SIZE, 50, BATCH_SIZE, 50, BATCH_SIZE, 20, 50]
ALLOWED = 1e-6
ALLOWED_OF_TRAINING = 1e-2  # in float32, where rounding grows with every step


def compare_epochs(name: str, bench: Bench) -> None:
    """Train two epochs with and without a graph."""
    sizes = [*[4] * 5, 3] if bench.small else SIZES
    generator = torch.Generator().manual_seed(2)
    batches = [
        (
            torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64).to(bench.device),
            torch.randint(10, (size,), generator=generator).to(bench.device),
        )
        for size in sizes
    ]
    with Device(bench.device).deterministic():
        before, plain, expected = train(name, batches, bench, graph=False)
        _, graphed, results = train(name, batches, bench, graph=bench.device == "cuda")
    moved = float((graphed - plain).norm() / (plain - before).norm())
    losses = largest_difference((loss for loss, _ in results), (loss for loss, _ in expected))
    same_accuracy = all(a[1] == b[1] for a, b in zip(results, expected, strict=True))
    bench.table(
        f"Two epochs of {len(batches)} batches of ResNet20 in float64: difference of a graph",
        *("optimizer", "weights, relative to how far they moved", "losses, relative", "accuracies"),
    )
    bench.row(name, f"{moved:.1e}", f"{losses:.1e}", "the same" if same_accuracy else "others")
    holds = moved <= ALLOWED and losses <= ALLOWED and same_accuracy
    bench.check(f"graph/{name}", holds, f"weights {moved:.1e}, losses {losses:.1e}")


def train(
    name: str, batches: list[tuple[Tensor, Tensor]], bench: Bench, *, graph: bool
) -> tuple[Tensor, Tensor, list[tuple[float, float]]]:
    """Train an epoch at each learning rate; give the weights before and after, flat, and loss and accuracy of each."""
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10, in_channels=3, image_size=32).to(bench.device, torch.float64)
    momentum = {"momentum": 0.9} if "momentum" in OPTIMIZERS[name].hyper_parameters else {}
    # 1 - lr weight_decay is exact in float32, in which torch's captured AdamW computes it
    optimizer = build_optimizer(name, model, lr=LRS[0], weight_decay=2.0**-6, **momentum)
    if not isinstance(optimizer, GroupedOptimizer):  # those of torch round in another way where they are not
        make_capturable(optimizer)
    plain = TrainStep(model, optimizer)
    step: Step = GraphedStep(plain, len(batches[0][1])) if graph else plain
    before, results = weights_of(model), []
    for lr in LRS:
        for group in optimizer.param_groups:
            group["lr"] = lr
        results.append(train_epoch(model, optimizer, batches, step=step))
    if isinstance(step, GraphedStep) and len(batches[0][1]) not in step.replayed_sizes:
        raise RuntimeError("the step was not captured")
    return before, weights_of(model), results


def weights_of(model: torch.nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()]).clone()


def compare_resumed(bench: Bench) -> None:
    """Interrupt and resume a training with a graph; compare it with one without."""
    examples = 64 if bench.small else 400
    images, epochs = images_like_cifar(examples * 20 // 19), []
    with Device(bench.device).deterministic():
        for graph in (False, True):
            spec = spec_of("resnet20", bench.device, precision="fp32", cuda_graph=graph, batch_size=32, epochs=3)
            loaders = loaders_of(images, spec)
            first, resumed = Training(spec, loaders=loaders), Training(spec, loaders=loaders)
            first.run_epoch()
            resumed.load_state_dict(first.state_dict())
            epochs.append([vars(resumed.run_epoch()) for _ in range(2)])
    losses: list[Any] = [[without_clock(result)["train_loss"] for result in each] for each in epochs]
    largest = largest_difference(losses[1], losses[0])
    bench.check("graph/resumed", largest <= ALLOWED_OF_TRAINING, f"training losses within {largest:.1e}")


def part(name: str) -> Part:
    run: Callable[[Bench], None] = partial(compare_epochs, name)
    return Part(name, run, 40.0)


PARTS = (*(part(name) for name in NAMES), Part("a resumed training", compare_resumed, 40.0))
