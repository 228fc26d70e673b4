"""Tiny datasets on disk, in the layouts that the loaders read, for tests that train a step or two."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PARQUET_SETS = {"cifar10": ("img", "label", 10), "cifar100": ("img", "fine_label", 100), "svhn": ("image", "label", 10)}


def write_tiny_datasets(root: Path, *, train: int = 40, test: int = 8) -> None:
    """Write CIFAR-10, CIFAR-100 and SVHN as Parquet and ImageNet as folders, with random images."""
    generator = np.random.default_rng(0)
    for dataset, (image_column, label_column, classes) in PARQUET_SETS.items():
        (root / dataset).mkdir(parents=True)
        for part, count in (("train", train), ("test", test)):
            images = [{"bytes": _png(generator, 32), "path": None} for _ in range(count)]
            labels = generator.integers(0, classes, count).tolist()
            table = pa.table({image_column: images, label_column: labels})
            pq.write_table(table, root / dataset / f"{part}.parquet")
    for part, count in (("train", 4), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            folder = root / "imagenet" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                _image(generator, 64).save(folder / f"{index}.JPEG")


def _image(generator: np.random.Generator, size: int) -> Image.Image:
    return Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8))


def _png(generator: np.random.Generator, size: int) -> bytes:
    buffer = io.BytesIO()
    _image(generator, size).save(buffer, format="PNG")
    return buffer.getvalue()
