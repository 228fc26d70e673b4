"""Images per second of the in-memory loader relative to the published pipeline, per core.

    .venv/bin/python -m benchmarks.data_loading                # about 2 minutes
    .venv/bin/python -m benchmarks.data_loading --rounds 3

The published pipeline: torchvision's RandomCrop(32, 4), RandomHorizontalFlip, ToTensor and Normalize on PIL images, in
a DataLoader with one worker process, batches of 128. Both work on random images of the size of CIFAR-10 and take turns
in every round. Time is CPU time of all processes of an arm, so that a rate is one per core; a ratio is that of two arms
in the same round.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from adamsrt.dataloaders.images import ImageLoader, ImageSet, normalization_table
from benchmarks.optimizer_step import render_quartiles, render_row

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NUM_IMAGES, NUM_IMAGES_OF_PIL = 50_000, 4096
BATCH_SIZE = 128


class PILImages(Dataset[Any]):
    """The published pipeline on (N, 32, 32, 3) images."""

    def __init__(self, images: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        self._images = images
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        return self._transform(Image.fromarray(self._images[index])), 0


def cpu_seconds() -> float:
    """Give the CPU time of this process and of all that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def rate(epoch: Callable[[], Any]) -> tuple[float, float]:
    """Run one epoch; give images per CPU second and per second on the clock."""
    start_s, start_clock_s, count = cpu_seconds(), time.perf_counter(), 0
    for images, _ in epoch():
        count += len(images)
    return count / (cpu_seconds() - start_s), count / (time.perf_counter() - start_clock_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(256, size=(NUM_IMAGES, 3, 32, 32), dtype=np.uint8)
    pictures = PILImages(np.ascontiguousarray(pixels[:NUM_IMAGES_OF_PIL].transpose(0, 2, 3, 1)))
    image_set = ImageSet(torch.from_numpy(pixels), torch.zeros(NUM_IMAGES, dtype=torch.int64))
    table = normalization_table(MEAN, STD)
    options = {"batch_size": BATCH_SIZE, "shuffle": True}
    arms: dict[str, Callable[[], Any]] = {
        "published pipeline, one worker": lambda: DataLoader(pictures, num_workers=1, **options),
        "published pipeline, no worker": lambda: DataLoader(pictures, num_workers=0, **options),
        "adamsrt, training": lambda: ImageLoader(image_set, table, padding=4, flip=True, **options),
        "adamsrt, evaluation": lambda: ImageLoader(image_set, table, batch_size=BATCH_SIZE),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for first in (True, *[False] * arguments.rounds):
        for name, arm in arms.items():
            result = rate(arm)
            if not first:
                rates[name].append(result)
    print(f"torch {torch.__version__}, one thread, n = {arguments.rounds} rounds, median [quartiles]\n")
    peers = list(arms)[:2]
    print(render_row(["loader", "images / s per core", "images / s", *(f"relative to {peer}" for peer in peers)]))
    print("|---" * (3 + len(peers)) + "|")
    for name, values in rates.items():
        medians = [f"{statistics.median(column):,.0f}" for column in zip(*values, strict=True)]
        ratios = [[a / b for (a, _), (b, _) in zip(values, rates[peer], strict=True)] for peer in peers]
        print(render_row([name, *medians, *map(render_quartiles, ratios)]))


if __name__ == "__main__":
    main()
