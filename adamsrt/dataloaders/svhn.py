"""SVHN, the cropped house numbers: no augmentation, values scaled to [0, 1], no normalization."""

from functools import partial
from pathlib import Path

import torch

from adamsrt.dataloaders.cache import load_image_sets
from adamsrt.dataloaders.images import build_image_loaders, normalization_table
from adamsrt.dataloaders.loader import Loaders, check_arguments
from adamsrt.dataloaders.sources import DatasetFiles, Download, find_svhn

PARTS = (
    Download(
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        "train_32x32.mat",
        "e26dedcc434d2e4c54c9b2d4a06d8373",
    ),
    Download(
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        "test_32x32.mat",
        "eb5a983be6a315427106f1b164d9cef3",
    ),
)
SVHN = DatasetFiles(
    name="svhn",
    num_classes=10,
    image_shape=(3, 32, 32),
    label_columns=("label",),
    layout="train_32x32.mat with test_32x32.mat",
    entries=tuple(part.file_name for part in PARTS),
    find_layout=partial(find_svhn, PARTS),
    downloads=PARTS,
)


def get_dataloader_SVHN(  # noqa: N802, the name of the published code
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
    """Build the (train, validation, test) loaders of SVHN: 3x32x32 images, 10 classes, label 0 is the digit 0.

    The train split (73,257 images) without the `extra` split. Arguments and errors as for `get_dataloader_cifar10`.
    """
    check_arguments(valid_split, train_batch_size, test_batch_size, num_workers, limit_train_examples)
    train, test = load_image_sets(SVHN, dataset_root_path)
    return build_image_loaders(
        train,
        test,
        normalization_table((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
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
