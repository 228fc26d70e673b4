"""The published loop on this GPU: PIL transforms, one worker, AdamSRT operation by operation, two `.item()` a step.

Written for this comparison. An epoch is computed from the time of some batches; ours is measured beside it.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from adamsrt.models import build_model
from adamsrt.training import Training
from benchmarks.gpu_aims import MODELS
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_training import (
    BATCH_SIZE,
    HYPER_PARAMETERS,
    TRAINING_IMAGES,
    VALIDATION_IMAGES,
    images_like_cifar,
    loaders_of,
    spec_of,
)

EVALUATION_BATCH_SIZE = 512
ROUNDS, BATCHES_PER_ROUND, BATCHES_UNSEEN = 5, 6, 6


def compare(name: str, bench: Bench) -> None:
    """Measure both loops for one model."""
    rounds, batches = (2, 1) if bench.small else (ROUNDS, BATCHES_PER_ROUND)
    training_s = seconds_per_batch(name, bench, rounds, batches)
    images = images_like_cifar(300 if bench.small else TRAINING_IMAGES + VALIDATION_IMAGES)
    rows = {"published loop": training_s}
    for precision, graph in (("fp32", False), ("bf16", True)):
        spec = spec_of(name, bench.device, precision=precision, cuda_graph=graph)
        training = Training(spec, loaders=loaders_of(images, spec))
        training.run_epoch()
        arm = f"`Training`, {precision}{', graph' if graph else ''}"
        rows[arm] = [training.run_epoch().seconds for _ in range(2 if bench.small else 3)]
    bench.table(
        f"{MODELS[name]}, AdamSRT: median [smallest, largest]", *("loop", "seconds per epoch", "times as fast", "n")
    )
    published_s = statistics.median(training_s)
    for arm, seconds in rows.items():
        as_fast = f"{published_s / statistics.median(seconds):.1f}"
        bench.row(arm, render_spread(seconds), as_fast, f"{len(seconds)}", seconds=seconds)


def seconds_per_batch(name: str, bench: Bench, rounds: int, batches: int) -> list[float]:
    """Give the seconds of an epoch, one value per round, computed from its batches."""
    from benchmarks.data_loading import PILImages
    from benchmarks.epoch import PlainAdamSRT

    torch.manual_seed(0)
    model: Any = build_model(name, num_classes=10, in_channels=3, image_size=32).to(bench.device)
    groups = [{"params": model.conv_params(), "channel_wise": True}, {"params": model.other_params()}]
    optimizer = PlainAdamSRT(groups, **HYPER_PARAMETERS)
    # Batches that are worked on elsewhere while these are timed: the worker is always two ahead.
    images = images_like_cifar((rounds * batches + BATCHES_UNSEEN + 4) * (8 if bench.small else BATCH_SIZE))
    pictures = PILImages(np.ascontiguousarray(images.images.permute(0, 2, 3, 1).numpy()))
    workers = 0 if bench.small else 1
    batch_size = 8 if bench.small else BATCH_SIZE

    def train(pair: tuple[Tensor, Tensor]) -> None:
        inputs, labels = (each.to(bench.device) for each in pair)
        model.train()
        optimizer.zero_grad()
        logits = model(inputs)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
        (logits.argmax(1) == labels).sum().item()

    waiting = iter(DataLoader(pictures, batch_size=batch_size, shuffle=True, num_workers=workers))
    for _ in range(BATCHES_UNSEEN):
        train(next(waiting))
    seconds = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        for _ in range(batches):
            train(next(waiting))
        Device(bench.device).synchronize()
        seconds.append((time.perf_counter() - start_s) / batches / batch_size)
    per_image_of_evaluation_s = evaluate(model, pictures, bench)
    return [TRAINING_IMAGES * each + VALIDATION_IMAGES * per_image_of_evaluation_s for each in seconds]


@torch.no_grad()
def evaluate(model: Any, pictures: Any, bench: Bench) -> float:
    """Give the seconds per image of evaluation."""
    model.eval()
    batches = DataLoader(pictures, batch_size=EVALUATION_BATCH_SIZE, num_workers=0 if bench.small else 1)
    start_s, count = time.perf_counter(), 0
    for inputs, labels in batches:
        logits, labels = model(inputs.to(bench.device)), labels.to(bench.device)
        functional.cross_entropy(logits, labels).item()
        (logits.argmax(1) == labels).sum().item()
        count += len(labels)
    return (time.perf_counter() - start_s) / count


def part(name: str) -> Part:
    run: Callable[[Bench], None] = partial(compare, name)
    return Part(MODELS[name], run, 60.0)


PARTS = (part("resnet18"), part("resnet20"))
