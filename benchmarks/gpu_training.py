"""The trainings that `benchmarks.gpu` measures: images of the size of CIFAR-10, and every way to take a step on them.

An epoch is 47,500 images to train on in batches of 128, and 2,500 to validate. The images are noise around a pattern
per class, so that losses fall as they do on real ones.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamsrt.dataloaders.images import ImageLoader, ImageSet, build_image_loaders, normalization_table
from adamsrt.dataloaders.loader import Loaders
from adamsrt.epoch import Step, TrainStep
from adamsrt.graph import GraphedStep
from adamsrt.models import MODELS, ConvNet, ModelEntry, build_model
from adamsrt.models.base import conv_bn
from adamsrt.optimizers import build_optimizer
from adamsrt.precision import best_memory_format
from adamsrt.training import TrainingSpec, evaluation_batch_size

TRAINING_IMAGES, VALIDATION_IMAGES, BATCH_SIZE = 47_500, 2_500, 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
HYPER_PARAMETERS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4}
EPOCHS_OF_A_TRIAL = 405
CLOCK = ("seconds", "train_images_per_second")  # what differs between equal epochs


@dataclass(frozen=True)
class Arm:
    """One way to train; memory_format None is the one that `Training` takes."""

    precision: str
    graph: bool
    optimizer: str = "adamsrt"
    memory_format: torch.memory_format | None = None
    tries_algorithms: bool = False
    fused_norms: bool = True  # in bf16 with a graph

    def __str__(self) -> str:
        own_format = "" if self.memory_format is None else f", {str(self.memory_format).removeprefix('torch.')}"
        tried = ", cudnn.benchmark" if self.tries_algorithms else ""
        norms = "" if self.fused_norms else ", torch's BatchNorm"
        return f"{self.optimizer}, {self.precision}{own_format}{tried}{', graph' if self.graph else ''}{norms}"


@functools.lru_cache(maxsize=2)
def images_like_cifar(n: int) -> ImageSet:
    """Draw images uint8 (n, 3, 32, 32) of ten classes; their noise is cut out of one long row of random numbers."""
    generator = torch.Generator().manual_seed(1)
    patterns = functional.interpolate(torch.randn(10, 3, 4, 4, generator=generator), size=32, mode="bilinear")
    noise = 60 * torch.randn(1 << 22, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    places = torch.randint(len(noise) - 3072, (n,), generator=generator)
    images = torch.empty(n, 3, 32, 32, dtype=torch.uint8)
    for first in range(0, n, 5_000):
        part = slice(first, first + 5_000)
        of_part = noise.unfold(0, 3072, 1).index_select(0, places[part]).view(-1, 3, 32, 32)
        images[part] = of_part.add_(125).add_(12 * patterns[labels[part]]).clamp_(0, 255)
    return ImageSet(images, labels)


def loaders_of(image_set: ImageSet, spec: TrainingSpec) -> Loaders:
    """Build loaders as those of CIFAR-10, on the device of the spec: 5 % of the images are for validation."""
    return build_image_loaders(
        image_set,
        ImageSet(image_set.images[:BATCH_SIZE], image_set.labels[:BATCH_SIZE]),
        normalization_table(MEAN, STD),
        padding=4,
        flip=True,
        valid_split=0.05,
        train_batch_size=spec.batch_size,
        test_batch_size=evaluation_batch_size(spec.device, spec.batch_size, 32),
        seed=spec.seed,
        split_seed=spec.split_seed,
        limit_train_examples=spec.limit_train_examples,
        device=spec.device,
    )


def spec_of(model: str, device: str, **options: Any) -> TrainingSpec:
    """Give the spec of a training that would last long enough, in bf16 and with a graph where not said otherwise."""
    optimizer = options.pop("optimizer", "adamsrt")
    hyper_parameters = options.pop("hyper_parameters", HYPER_PARAMETERS)
    usual: dict[str, Any] = {
        "epochs": EPOCHS_OF_A_TRIAL,
        "precision": "bf16",
        "cuda_graph": True,
        "batch_size": BATCH_SIZE,
    }
    return TrainingSpec("cifar10", model, optimizer, hyper_parameters, device=device, **usual | options)


def build_step(model_name: str, arm: Arm, device: str, **hyper_parameters: Any) -> tuple[TrainStep, Step]:
    """Give the step of an arm without and with its graph, if it has one; the initial weights are always the same."""
    torch.manual_seed(0)
    model = build_model(model_name, num_classes=10, in_channels=3, image_size=32)
    memory_format = arm.memory_format or best_memory_format(device, arm.precision)
    model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = build_optimizer(arm.optimizer, model, **hyper_parameters)
    with_graph = arm.graph and torch.device(device).type == "cuda"
    step = TrainStep(
        model,
        optimizer,
        precision=arm.precision,
        memory_format=memory_format,
        fused_norms=with_graph and arm.fused_norms,
    )
    return step, GraphedStep(step, BATCH_SIZE) if with_graph else step


def is_replayed(step: Step) -> bool:
    """Tell whether a step replays full batches from now on."""
    return isinstance(step, GraphedStep) and BATCH_SIZE in step.replayed_sizes


def training_loader(image_set: ImageSet, device: str) -> ImageLoader:
    """Build a loader that shuffles and augments all images."""
    table = normalization_table(MEAN, STD)
    return ImageLoader(image_set, table, batch_size=BATCH_SIZE, shuffle=True, padding=4, flip=True, device=device)


def validation_loader(image_set: ImageSet, device: str) -> ImageLoader:
    """Build a loader for evaluation, in the batches that `Training` takes for it."""
    batch_size = evaluation_batch_size(device, BATCH_SIZE, 32)
    return ImageLoader(image_set, normalization_table(MEAN, STD), batch_size=batch_size, device=device)


class SmallNet(ConvNet):
    """Two convolutions: stands in for the real models where nothing is measured."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv_bn(in_channels, 4, 3, stride=4), nn.ReLU(), conv_bn(4, 8, 3, stride=4))
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(images).mean((2, 3)))
        return logits


@contextlib.contextmanager
def small_models(wanted: bool) -> Iterator[None]:
    """Build a small network under every model's name while this is open."""
    entries = MODELS._entries
    before = dict(entries)
    if wanted:
        entries |= dict.fromkeys(before, ModelEntry(SmallNet, min_image_size=16))
    try:
        yield
    finally:
        entries |= before


def largest_difference(values: Iterable[float], expected: Iterable[float]) -> float:
    """Give the largest difference relative to what was expected; infinite where that is 0: nothing was computed."""
    pairs = zip(values, expected, strict=True)
    return max(abs(value - other) / abs(other) if other else math.inf for value, other in pairs)


def without_clock(result: dict[str, Any]) -> dict[str, Any]:
    """Give what an epoch computed, without the time that it took."""
    return {name: value for name, value in result.items() if name not in CLOCK}
