"""The datasets: each `get_dataloader_` function gives (train, validation, test) loaders.

Under the data root a 32x32 dataset is looked for as torchvision's own files (`cifar-10-batches-py/` or its archive,
`cifar-100-python/` or its archive, `train_32x32.mat` with `test_32x32.mat`), then as Hugging Face style Parquet
(`cifar10/train*.parquet` with `cifar10/test*.parquet`; a struct column `img` or `image` with the encoded `bytes`, and
`label` or `fine_label`), then downloaded. The data root may be a bucket (`s3://...`), see `bucket.fetch`. A dataset is
decoded once per node into a cache file, see `cache.cache_folder`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adamsrt.dataloaders.cache import load_image_sets
from adamsrt.dataloaders.cifar import CIFAR10, CIFAR100, get_dataloader_cifar10, get_dataloader_cifar100
from adamsrt.dataloaders.digits import get_dataloader_digits
from adamsrt.dataloaders.digits import load_image_sets as load_digits
from adamsrt.dataloaders.imagenet import find_files, get_dataloader_imagenet
from adamsrt.dataloaders.loader import DataCorruptError, DataNotFoundError, Loader, Loaders
from adamsrt.dataloaders.sources import DatasetFiles
from adamsrt.dataloaders.svhn import SVHN, get_dataloader_SVHN
from adamsrt.registry import Registry

__all__ = [
    "DATASETS",
    "DataCorruptError",
    "DataNotFoundError",
    "DatasetEntry",
    "Loader",
    "get_dataloader_SVHN",
    "get_dataloader_cifar10",
    "get_dataloader_cifar100",
    "get_dataloader_digits",
    "get_dataloader_imagenet",
]


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset by name.

    Args:
        image_size: height and width in pixels. get_dataloaders: the `get_dataloader_` function.
        prepare: make the data ready on this node, given the data root: found or downloaded, checked, cached; raises
            DataNotFoundError or DataCorruptError.
    """

    num_classes: int
    in_channels: int
    image_size: int
    get_dataloaders: Callable[..., Loaders]
    prepare: Callable[[str | Path], None]


def _prepare_cache(files: DatasetFiles) -> Callable[[str | Path], None]:
    def prepare(root: str | Path) -> None:
        load_image_sets(files, root)

    return prepare


def _prepare_imagenet(root: str | Path) -> None:
    find_files(root)


def _prepare_digits(root: str | Path) -> None:
    load_digits()  # they come with scikit-learn


DATASETS: Registry[DatasetEntry] = Registry("dataset")
DATASETS.add("cifar10", DatasetEntry(10, 3, 32, get_dataloader_cifar10, _prepare_cache(CIFAR10)))
DATASETS.add("cifar100", DatasetEntry(100, 3, 32, get_dataloader_cifar100, _prepare_cache(CIFAR100)))
DATASETS.add("svhn", DatasetEntry(10, 3, 32, get_dataloader_SVHN, _prepare_cache(SVHN)))
DATASETS.add("imagenet", DatasetEntry(1000, 3, 224, get_dataloader_imagenet, _prepare_imagenet))
DATASETS.add("digits", DatasetEntry(10, 1, 8, get_dataloader_digits, _prepare_digits))
