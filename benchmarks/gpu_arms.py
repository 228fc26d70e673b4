"""Epochs in every precision, memory format and with other optimizers, with and without a graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from adamsrt.dataloaders.images import ImageSet
from adamsrt.epoch import evaluate, train_epoch
from benchmarks.gpu_aims import EPOCH_AIMS_S, MODELS
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_training import (
    BATCH_SIZE,
    TRAINING_IMAGES,
    VALIDATION_IMAGES,
    Arm,
    build_step,
    images_like_cifar,
    training_loader,
    validation_loader,
)

EPOCHS = 3
# The first ones matter most: time may end before the last.
ARMS = (
    Arm("bf16", graph=True),
    Arm("bf16", graph=True, fused_norms=False),
    Arm("bf16", graph=False),
    Arm("bf16", graph=True, tries_algorithms=True),
    Arm("tf32", graph=True),
    Arm("fp32", graph=True),
    Arm("bf16", graph=True, optimizer="adam"),
    Arm("bf16", graph=True, memory_format=torch.contiguous_format),
    Arm("fp32", graph=False),
    Arm("fp32", graph=True, memory_format=torch.channels_last),
    Arm("tf32", graph=True, memory_format=torch.contiguous_format),
)


def time_epochs(arm: Arm, bench: Bench) -> None:
    """Time an arm for every model, after a tenth of an epoch."""
    device = Device(bench.device)
    n = 100 if bench.small else TRAINING_IMAGES
    images = images_like_cifar(n)
    loader, in_order = (training_loader(images, bench.device), validation_loader(cut(images, n // 19), bench.device))
    short = training_loader(cut(images, max(n // 10, 1)), bench.device)
    bench.table(
        f"Epochs of {TRAINING_IMAGES:,} images and evaluation of {VALIDATION_IMAGES:,}, batches of {BATCH_SIZE}, "
        f"n = {EPOCHS}: median [smallest, largest]",
        *("arm", "model", "seconds per epoch", "training", "evaluation", "aim"),
    )
    for model in ("resnet20",) if bench.small else EPOCH_AIMS_S:
        if bench.is_late:
            bench.note("no time for the rest of this arm")
            return
        with device.tried_algorithms(arm.tries_algorithms):
            plain, step = build_step(model, arm, bench.device, lr=1e-3)
            training, evaluation = [], []
            for k, batches in enumerate((short, *[loader] * (1 if bench.small else EPOCHS))):
                train: Callable[[], object] = partial(train_epoch, plain.model, plain.optimizer, batches, step=step)
                options: Any = {"precision": plain.precision, "memory_format": plain.memory_format}
                times = device.seconds(train), device.seconds(partial(evaluate, plain.model, in_order, **options))
                if k > 0:
                    training.append(times[0])
                    evaluation.append(times[1])
        seconds = [sum(each) for each in zip(training, evaluation, strict=True)]
        spreads = [render_spread(each) for each in (seconds, training, evaluation)]
        bench.row(str(arm), MODELS[model], *spreads, f"{EPOCH_AIMS_S[model]}", training=training, evaluation=evaluation)
        del plain, step
        device.clean_up()


def cut(images: ImageSet, n: int) -> ImageSet:
    return ImageSet(images.images[:n], images.labels[:n])


def part(arm: Arm) -> Part:
    run: Callable[[Bench], None] = partial(time_epochs, arm)
    return Part(str(arm), run, 60.0)


PARTS = tuple(part(arm) for arm in ARMS)
