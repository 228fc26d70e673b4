"""The loader: the same bits on CPU and GPU, how fast it is there, and per core against the published pipeline."""

import statistics
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from adamsrt.dataloaders.images import ImageLoader, normalization_table
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_training import (
    BATCH_SIZE,
    MEAN,
    STD,
    TRAINING_IMAGES,
    images_like_cifar,
    training_loader,
    validation_loader,
)

ROUNDS, ROUNDS_OF_PIL = 9, 3


def compare_bits(bench: Bench) -> None:
    """Compare two epochs of a loader on CPU and GPU bit for bit."""
    images, table = images_like_cifar(300 if bench.small else 10_050), normalization_table(MEAN, STD)
    options: dict[str, Any] = {"batch_size": 1000, "shuffle": True, "padding": 4, "flip": True, "seed": 5}
    on_cpu, on_gpu = (ImageLoader(images, table, device=device, **options) for device in ("cpu", bench.device))
    batches = [pair for _ in range(2) for pair in zip(on_cpu, on_gpu, strict=True)]
    same = [torch.equal(a, c.cpu()) and torch.equal(b, d.cpu()) for (a, b), (c, d) in batches]
    is_there = all(images.device.type == torch.device(bench.device).type for _, (images, _) in batches)
    bench.check("data/bits", all(same) and is_there, f"{sum(same)} of {len(same)} batches")


def time_loader(bench: Bench) -> None:
    """Time whole epochs of the loader alone, and how long the first batch takes, which waits for most of it."""
    device = Device(bench.device)
    images = images_like_cifar(300 if bench.small else TRAINING_IMAGES)
    bench.table(
        "The loader alone: median [smallest, largest]",
        *("pass over 47,500 images", "seconds", "images / s", "until the first batch", "n"),
    )
    for name, loader in (
        ("training (crop, flip, normalize)", training_loader(images, bench.device)),
        ("evaluation", validation_loader(images, bench.device)),
    ):
        rounds = 2 if bench.small else ROUNDS
        seconds = [device.seconds(lambda loader=loader: exhaust(loader)) for _ in range(rounds + 1)][1:]  # type: ignore[misc]
        first = [device.seconds(lambda loader=loader: next(iter(loader))) for _ in range(rounds)]  # type: ignore[misc]
        rate = len(images.labels) / statistics.median(seconds)
        cells = name, render_spread(seconds), f"{rate:,.0f}", render_spread(first), f"{rounds}"
        bench.row(*cells, seconds=seconds, first_batch=first)


def compare_per_core(bench: Bench) -> None:
    """Compare CPU time with that of the published pipeline: PIL transforms in a DataLoader with one worker."""
    from benchmarks.data_loading import PILImages, cpu_seconds

    torch.set_num_threads(1)
    images = images_like_cifar(64 if bench.small else 20_000)
    pixels = np.ascontiguousarray(images.images[: 64 if bench.small else 4096].permute(0, 2, 3, 1).numpy())
    workers = 0 if bench.small else 1
    published = DataLoader(PILImages(pixels), batch_size=BATCH_SIZE, shuffle=True, num_workers=workers)
    ours, in_order = training_loader(images, "cpu"), validation_loader(images, "cpu")
    arms = {"published": published, "training": ours, "evaluation": in_order}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for first in (True, *[False] * ROUNDS_OF_PIL):
        for name, loader in arms.items():
            before_s = cpu_seconds()
            count = exhaust(loader)
            if not first:
                rates[name].append(count / max(cpu_seconds() - before_s, 1e-9))
    ratios = [a / b for a, b in zip(rates["training"], rates["published"], strict=True)]
    bench.table(
        f"Images per second and core of the CPU, n = {ROUNDS_OF_PIL}: median [smallest, largest]",
        *("loader", "images / s", "relative to the published pipeline"),
    )
    for name, values in rates.items():
        relative = [a / b for a, b in zip(values, rates["published"], strict=True)]
        bench.row(name, f"{statistics.median(values):,.0f}", render_spread(relative), rates=values)
    bench.figure("data/rate", ratios)


def exhaust(loader: Any) -> int:
    """Take a pass; give the number of images."""
    return sum(len(labels) for _, labels in loader)


# Per core before anything is on the GPU: a driver's threads would count.
PARTS = (
    Part("per core", compare_per_core, 40.0),
    Part("bits", compare_bits, 30.0),
    Part("on the GPU", time_loader, 30.0),
)
