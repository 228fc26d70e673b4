"""CIFAR-10 and CIFAR-100: random crop with padding 4, horizontal flip, per-channel normalization."""

from pathlib import Path

import torch

from adamsrt.dataloaders.cache import load_image_sets
from adamsrt.dataloaders.images import build_image_loaders, normalization_table
from adamsrt.dataloaders.loader import Loaders, check_arguments
from adamsrt.dataloaders.sources import CifarLayout, Download, cifar_files

CIFAR10 = cifar_files(
    "cifar10",
    10,
    CifarLayout(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta"),
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
        ),
    ),
    ("label",),
)
CIFAR100 = cifar_files(
    "cifar100",
    100,
    CifarLayout(
        "CIFAR100",
        "cifar-100-python",
        ("train", "test", "meta"),
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    ("fine_label", "label"),
)
PADDING = 4


def get_dataloader_cifar10(
    valid_split: float = 0.05,
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
    """Build the (train, validation, test) loaders of CIFAR-10: 3x32x32 images, 10 classes.

    Args:
        valid_split: fraction of the training set held out for validation, in (0, 1).
        dataset_root_path: the data root; see the package's docstring for the files that are looked for.
        num_workers: accepted for all datasets; the images are in memory, so no worker processes are needed.
        seed: keys shuffling and augmentation. split_seed: keys the train/validation split.
        limit_train_examples: keep the first n training examples; validation and test stay whole.
    Raises:
        DataNotFoundError, DataCorruptError: the data is missing, or a file is wrong.
        ValueError: an argument is out of range.
    Source: arXiv:2006.13382, appendix on training.
    """
    check_arguments(valid_split, train_batch_size, test_batch_size, num_workers, limit_train_examples)
    train, test = load_image_sets(CIFAR10, dataset_root_path)
    return build_image_loaders(
        train,
        test,
        normalization_table((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        padding=PADDING,
        flip=True,
        valid_split=valid_split,
        train_batch_size=train_batch_size,
        test_batch_size=test_batch_size,
        seed=seed,
        split_seed=split_seed,
        limit_train_examples=limit_train_examples,
        device=device,
    )


def get_dataloader_cifar100(
    valid_split: float = 0.05,
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
    """Build the (train, validation, test) loaders of CIFAR-100: 3x32x32 images, 100 (fine) classes.

    Arguments and errors as for `get_dataloader_cifar10`.
    """
    check_arguments(valid_split, train_batch_size, test_batch_size, num_workers, limit_train_examples)
    train, test = load_image_sets(CIFAR100, dataset_root_path)
    return build_image_loaders(
        train,
        test,
        normalization_table((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        padding=PADDING,
        flip=True,
        valid_split=valid_split,
        train_batch_size=train_batch_size,
        test_batch_size=test_batch_size,
        seed=seed,
        split_seed=split_seed,
        limit_train_examples=limit_train_examples,
        device=device,
    )
