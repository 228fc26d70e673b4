"""ImageNet (ILSVRC 2012) from JPEG files in torchvision's layout, decoded and augmented in worker processes."""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adamsrt.dataloaders.bucket import is_uri
from adamsrt.dataloaders.images import normalization_table, normalize
from adamsrt.dataloaders.loader import DataCorruptError, DataNotFoundError, Loaders, check_arguments, generator_for

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_CLASSES = 1000
IMAGE_SIZE = 224

Sample = tuple[Tensor, int] | DataCorruptError
Batch = tuple[Tensor, Tensor] | DataCorruptError


def get_dataloader_imagenet(
    valid_split: float = 0.05,
    train_batch_size: int = 256,
    test_batch_size: int = 512,
    dataset_root_path: str | Path = "data",
    num_workers: int = 4,
    *,
    seed: int = 0,
    split_seed: int = 0,
    limit_train_examples: int | None = None,
    device: str | torch.device = "cpu",
) -> Loaders:
    """Build the (train, validation, test) loaders of ImageNet: 3x224x224 images, 1,000 classes.

    Reads `imagenet/train/<wnid>/*.JPEG` and `imagenet/val/<wnid>/*.JPEG` under the data root. Validation and test are
    both the official validation split, so `valid_split` is checked but changes nothing.

    Args:
        num_workers: processes that decode images, 0 for none.
        seed: keys shuffling and augmentation. split_seed: keys which examples `limit_train_examples` keeps.
    Raises:
        DataNotFoundError, DataCorruptError: a folder is missing, or a file is wrong (while iterating).
        ValueError: an argument is out of range.
    """
    check_arguments(valid_split, train_batch_size, test_batch_size, num_workers, limit_train_examples)
    train_files, test_files = find_files(dataset_root_path)
    kept = torch.randperm(len(train_files), generator=generator_for(split_seed, 0, "split"))[:limit_train_examples]
    train_files = [train_files[index] for index in kept.tolist()]
    test = JPEGLoader(test_files, batch_size=test_batch_size, num_workers=num_workers, device=device)
    train = JPEGLoader(
        train_files, batch_size=train_batch_size, num_workers=num_workers, device=device, training=True, seed=seed
    )
    return train, test, test


def find_files(root: str | Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """List the (file, label) pairs of the training and the validation split; labels follow the sorted folder names."""
    if is_uri(root):
        raise DataNotFoundError(f"imagenet must be in a folder that each node sees, got {root}; it is not fetched")
    from torchvision.datasets import ImageFolder  # late: see sources.py

    folders = []
    for part in ("train", "val"):
        folder = Path(root).expanduser().absolute() / "imagenet" / part
        try:
            folders.append(ImageFolder(folder))
        except FileNotFoundError as error:
            reason = str(error).splitlines()[0]
            raise DataNotFoundError(
                f"imagenet needs {folder}/<wnid>/*.JPEG, got: {reason}; unpack the official archives there "
                "(there is no public download), or give the folder that holds imagenet/ as the data root"
            ) from error
    train, test = folders
    if train.classes != test.classes or len(train.classes) > NUM_CLASSES:
        raise DataCorruptError(
            f"{train.root} and {test.root} must hold the same class folders, at most {NUM_CLASSES}, "
            f"got {len(train.classes)} and {len(test.classes)}"
        )
    return train.samples, test.samples


@functools.cache
def build_transform(training: bool) -> Callable[[Image.Image], Tensor]:
    """Build what makes uint8 (3, 224, 224) of a picture: a random crop and flip, or the centre."""
    from torchvision.transforms import v2

    draw = [v2.RandomResizedCrop(IMAGE_SIZE), v2.RandomHorizontalFlip()]
    centre = [v2.Resize(256), v2.CenterCrop(IMAGE_SIZE)]
    transform: Callable[[Image.Image], Tensor] = v2.Compose([*(draw if training else centre), v2.PILToTensor()])
    return transform


@dataclass(frozen=True)
class JPEGSamples(Dataset[Any]):
    """The uint8 samples of one epoch; the augmentation of each depends only on (seed, epoch, index)."""

    files: list[tuple[str, int]]
    training: bool
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Give (uint8 (3, 224, 224), label), or the error: raised in a worker it would arrive as its traceback."""
        file, label = self.files[index]
        try:
            with Image.open(file) as image:
                picture = image.convert("RGB")
        except Exception as error:  # every decoder of PIL has its own exceptions for a damaged file
            return DataCorruptError(f"{file} must be a whole image: {error}; replace it")
        transform = build_transform(self.training)
        if not self.training:
            return transform(picture), label
        # torchvision draws from the global generator: seed it for this image only, then put it back.
        with torch.random.fork_rng(devices=[]):
            generator = generator_for(self.seed, self.epoch, f"augment {index}")
            torch.default_generator.set_state(generator.get_state())
            return transform(picture), label


def _collate(samples: list[Sample]) -> Batch:
    """Stack samples into uint8 (B, 3, 224, 224) and int64 (B,); the first error instead, where there is one."""
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, DataCorruptError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels)


class JPEGLoader:
    """A `Loader` over image files; `training` shuffles and augments."""

    def __init__(
        self,
        files: list[tuple[str, int]],
        *,
        batch_size: int,
        num_workers: int,
        device: str | torch.device = "cpu",
        training: bool = False,
        seed: int = 0,
    ) -> None:
        self._files = files
        self._batch_size, self._num_workers = batch_size, num_workers
        self._device = torch.device(device)
        self._table = normalization_table(MEAN, STD).to(device)
        self._training, self._seed = training, seed
        self._next_epoch = 0

    @property
    def num_examples(self) -> int:
        return len(self._files)

    def __len__(self) -> int:
        return -(-self.num_examples // self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        self._next_epoch = epoch

    def with_seed(self, seed: int) -> "JPEGLoader":
        other = copy.copy(self)
        other._seed, other._next_epoch = seed, 0
        return other

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        order = list(range(self.num_examples))
        if self._training:
            order = torch.randperm(len(order), generator=generator_for(self._seed, epoch, "order")).tolist()
        batches: DataLoader[Any] = DataLoader(
            JPEGSamples(self._files, self._training, self._seed, epoch),
            sampler=order,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            collate_fn=_collate,
            pin_memory=self._device.type == "cuda",
            generator=generator_for(self._seed, epoch, "workers"),
        )
        return self._normalized(batches)

    def _normalized(self, batches: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            if isinstance(batch, DataCorruptError):
                raise batch
            images, labels = (part.to(self._device, non_blocking=True) for part in batch)
            yield normalize(images, self._table), labels
