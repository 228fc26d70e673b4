"""scikit-learn's 1,797 handwritten digits, 1x8x8: embedded in the package, so it needs no network and no data root."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from adamsrt.dataloaders import cache
from adamsrt.dataloaders.images import ImageSet, build_image_loaders, normalization_table
from adamsrt.dataloaders.loader import Loaders, check_arguments
from adamsrt.dataloaders.sources import DatasetFiles, Source

MAX_VALUE = 16
NUM_TEST = 360
# Of the 1,437 images outside the test set, after scaling to [0, 1].
MEAN, STD = 0.3054, 0.3761


def get_dataloader_digits(
    valid_split: float = 0.2,
    train_batch_size: int = 128,
    test_batch_size: int = 512,
    dataset_root_path: str | Path = "data",
    num_workers: int = 0,
    *,
    seed: int = 0,
    split_seed: int = 0,
    limit_train_examples: int | None = None,
    device: str | torch.device = "cpu",
) -> Loaders:
    """Build the (train, validation, test) loaders of the digits: 1x8x8 images, 10 classes, no augmentation.

    The test set is fixed: 360 images, stratified by class. `dataset_root_path` and `num_workers` are not used; other
    arguments and errors as for `get_dataloader_cifar10`.
    """
    check_arguments(valid_split, train_batch_size, test_batch_size, num_workers, limit_train_examples)
    train, test = load_image_sets()
    return build_image_loaders(
        train,
        test,
        normalization_table((MEAN,), (STD,), scale=MAX_VALUE),
        padding=0,
        flip=False,
        valid_split=valid_split,
        train_batch_size=train_batch_size,
        test_batch_size=test_batch_size,
        seed=seed,
        split_seed=split_seed,
        limit_train_examples=limit_train_examples,
        device=device,
    )


def load_image_sets() -> tuple[ImageSet, ImageSet]:
    """Give the fixed (training, test) images, 1,437 and 360; the values are 0..16. Do not write to them."""
    return cache.load_image_sets(DIGITS, _package())


def _package() -> Path:
    """Where scikit-learn is installed, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _read() -> tuple[ImageSet, ImageSet]:
    # Once per node: scikit-learn takes a second to import, which every worker would pay.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.uint8)[:, None])
    labels = torch.from_numpy(digits.target.astype(np.int64))
    parts = train_test_split(np.arange(len(labels)), test_size=NUM_TEST, stratify=digits.target, random_state=0)
    train, test = (ImageSet(images[np.sort(part)], labels[np.sort(part)]) for part in parts)
    return train, test


DIGITS = DatasetFiles(
    name="digits",
    num_classes=10,
    image_shape=(1, 8, 8),
    label_columns=(),
    layout="datasets/data/digits.csv.gz",
    entries=("datasets/data/digits.csv.gz",),
    find_layout=lambda package: Source((package / "datasets" / "data" / "digits.csv.gz",), _read),
    downloads=(),
)
