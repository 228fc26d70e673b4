"""What every data loader has in common: its interface, its randomness, the train/validation split, its arguments."""

import hashlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class Loader(Protocol):
    """Batches of one part of a dataset; the order and augmentation of an epoch depend only on (seed, epoch).

    Iterating yields (images, labels): float32 (B, C, H, W) and int64 (B,), on the loader's device; the last partial
    batch is kept. Each pass is one epoch: 0, 1, 2, ... unless `set_epoch` says which one is next.
    """

    @property
    def num_examples(self) -> int:
        """Number of images in an epoch."""
        ...

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Start the next epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass is."""
        ...

    def with_seed(self, seed: int) -> "Loader":
        """Give a loader of the same data, in the same memory, that shuffles and augments by another seed."""
        ...


Loaders = tuple[Loader, Loader, Loader]


class DataNotFoundError(ValueError):
    """No source of the dataset worked; the message says what was looked for, where, and how to provide it."""


class DataCorruptError(ValueError):
    """A file of the dataset is truncated or wrong; the message names it."""


def generator_for(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Build the CPU generator of one purpose in one epoch, the same on every machine and in every process.

    Always a CPU generator, so that a GPU run draws the same numbers; torch's CPU generator uses 32 seed bits.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def split_examples(
    num_examples: int, valid_split: float, split_seed: int, limit_train_examples: int | None = None
) -> tuple[Tensor, Tensor]:
    """Split range(num_examples) into (train, validation) indices, int64, disjoint, fixed by `split_seed`.

    The validation part has round(num_examples * valid_split) examples. The training part is in shuffled order and is
    cut to its first `limit_train_examples`.
    """
    num_valid = round(num_examples * valid_split)
    if not 0 < num_valid < num_examples:
        raise ValueError(
            f"valid_split must leave at least 1 training and 1 validation example of {num_examples}, got {valid_split}"
        )
    order = torch.randperm(num_examples, generator=generator_for(split_seed, 0, "split"))
    # Validation is read in file order: neighbours in memory, and easy to compare with the file.
    valid = order[:num_valid].sort().values
    return order[num_valid:][:limit_train_examples], valid


def check_arguments(
    valid_split: float,
    train_batch_size: int,
    test_batch_size: int,
    num_workers: int,
    limit_train_examples: int | None,
) -> None:
    """Raise ValueError for an argument of a get_dataloader_ function that is out of range."""
    if not 0 < valid_split < 1:
        raise ValueError(f"valid_split must be in (0, 1), got {valid_split}")
    for name, value, smallest in (
        ("train_batch_size", train_batch_size, 1),
        ("test_batch_size", test_batch_size, 1),
        ("num_workers", num_workers, 0),
        ("limit_train_examples", 1 if limit_train_examples is None else limit_train_examples, 1),
    ):
        if value < smallest:
            raise ValueError(f"{name} must be >= {smallest}, got {value}")
