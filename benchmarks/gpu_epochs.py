"""Whole epochs on a GPU, for `benchmarks.gpu`: as `Training` takes them, what they do not do, and what bf16 costs."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from adamsrt.dataloaders.images import ImageSet
from adamsrt.epoch import train_epoch
from adamsrt.training import Training
from benchmarks.gpu_aims import EPOCH_AIMS_S, MODELS
from benchmarks.gpu_aims import OPTIMIZERS as OPTIMIZER_NAMES
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_training import (
    BATCH_SIZE,
    TRAINING_IMAGES,
    VALIDATION_IMAGES,
    Arm,
    build_step,
    images_like_cifar,
    is_replayed,
    largest_difference,
    loaders_of,
    spec_of,
    training_loader,
)

EPOCHS, ALLOWED_OF_BF16 = 7, 0.05
COLUMNS = ("model", "seconds per epoch", "aim", "n", "training alone", "images / s in training", "GiB at most")


def number_of_images(bench: Bench) -> int:
    return 300 if bench.small else TRAINING_IMAGES + VALIDATION_IMAGES


def time_training(model: str, bench: Bench) -> None:
    """Time the epochs of a `Training` in bf16 with a graph, after a first one."""
    spec = spec_of(model, bench.device)
    device = Device(bench.device)
    device.forget_peak()
    training = Training(spec, loaders=loaders_of(images_like_cifar(number_of_images(bench)), spec))
    training.run_epoch()
    results = [training.run_epoch() for _ in range(2 if bench.small else EPOCHS)]
    seconds, rates = [each.seconds for each in results], [each.train_images_per_second for each in results]
    training_alone = training._train.num_examples / statistics.median(rates)
    peak, _ = device.peak_bytes()
    bench.table("Epochs of `Training`, AdamSRT in bf16 with a graph: median [smallest, largest]", *COLUMNS)
    bench.row(
        MODELS[model],
        render_spread(seconds),
        f"{EPOCH_AIMS_S[model]}",
        f"{len(seconds)}",
        f"{training_alone:.3f}",
        f"{statistics.median(rates):,.0f}",
        f"{peak / 2**30:.2f}",
        seconds=seconds,
        images_per_second=rates,
    )
    bench.figure(f"epoch/{model}", seconds)


def check_waits(bench: Bench) -> None:
    """Train a second epoch, in which torch raises wherever it would wait for the GPU between first and last batch."""
    device = Device(bench.device)
    batches = training_loader(images_like_cifar((2 if bench.small else 45) * BATCH_SIZE + 50), bench.device)
    seen = []
    for graph in (True, False):
        for name in OPTIMIZER_NAMES:
            momentum = {"momentum": 0.9} if name.startswith("sgd") else {}
            plain, step = build_step("resnet20", Arm("bf16", graph, name), bench.device, lr=1e-3, **momentum)

            def watch(done: int, of: int) -> None:
                if done in (1, of):
                    device.raise_at_waits(done < of)

            try:
                for on_batch in (None, watch):
                    train_epoch(plain.model, plain.optimizer, batches, on_batch, step=step)
            except RuntimeError as error:
                seen.append(f"{name}{', graph' if graph else ''}: {str(error).partition(chr(10))[0]}")
            finally:
                device.raise_at_waits(False)
    said = "; ".join(seen) or f"{len(OPTIMIZER_NAMES)} optimizers, with and without a graph"
    bench.check("epoch/waits", not seen, said)


def check_last_batch(bench: Bench) -> None:
    """Count the steps of an epoch that its batches do not divide, and the images of its last batch."""
    images = images_like_cifar((2 if bench.small else 12) * BATCH_SIZE + 50)
    batches = training_loader(images, bench.device)
    sizes = [len(labels) for _, labels in batches]
    plain, step = build_step("resnet20", Arm("bf16", graph=True), bench.device, lr=1e-3)
    for _ in range(2):
        train_epoch(plain.model, plain.optimizer, batches, step=step)
    steps = {float(state["step"]) for state in plain.optimizer.state.values()}
    holds = steps == {2.0 * len(sizes)} and sum(sizes) == len(images.labels) and sizes[-1] == 50
    bench.check("epoch/last batch", holds, f"{sizes[-1]} images in the last of {len(sizes)} batches, steps {steps}")
    if bench.device == "cuda":
        bench.check("epoch/last batch", is_replayed(step), "the others are replayed")


def compare_precisions(bench: Bench) -> None:
    """Train with the same seeds in every precision."""
    epochs, images = (1, images_like_cifar(number_of_images(bench))) if bench.data_root is None else (3, None)
    source = "images of our own" if images is not None else "CIFAR-10"
    bench.table(
        f"ResNet20, AdamSRT, {source}, {epochs} epochs, with a graph",
        *("precision", "seed", "training loss of the first epoch", "and of the last", "validation loss", "accuracy"),
    )
    first_losses: dict[tuple[str, int], float] = {}
    for seed in range(1 if bench.small else 3):
        for precision in ("fp32", "bf16", "tf32"):
            if bench.is_late:
                bench.note("no time for the rest")
                return
            results = train_in(precision, seed, epochs, images, bench)
            first_losses[precision, seed] = results[0].train_loss
            bench.row(
                precision,
                f"{seed}",
                *(f"{value:.4f}" for value in (results[0].train_loss, results[-1].train_loss, results[-1].valid_loss)),
                f"{100 * results[-1].valid_accuracy:.2f} %",
                results=[vars(each) for each in results],
            )
        difference = largest_difference([first_losses["bf16", seed]], [first_losses["fp32", seed]])
        bench.check("epoch/bf16", difference <= ALLOWED_OF_BF16, f"seed {seed}: {100 * difference:.2f} %")


def train_in(precision: str, seed: int, epochs: int, images: ImageSet | None, bench: Bench) -> list[Any]:
    """Give the results of some epochs."""
    place = {} if bench.data_root is None else {"data_root": bench.data_root}
    spec = spec_of("resnet20", bench.device, precision=precision, seed=seed, **place)
    training = Training(spec, loaders=None if images is None else loaders_of(images, spec))
    return [training.run_epoch() for _ in range(epochs)]


def part(model: str) -> Part:
    run: Callable[[Bench], None] = partial(time_training, model)
    return Part(MODELS[model], run, 40.0)


PARTS = (
    *(part(model) for model in EPOCH_AIMS_S),
    Part("waits", check_waits, 60.0),
    Part("last batch", check_last_batch, 30.0),
    Part("precisions", compare_precisions, 60.0),
)
