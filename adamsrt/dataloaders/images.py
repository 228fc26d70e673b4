"""Images held as uint8 in memory, augmented and normalized many at a time.

Index operations on uint8, then a fixed map of 256 values to float32: CPU and GPU give the same bits.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adamsrt.dataloaders.loader import Loaders, generator_for, split_examples

MAX_AUGMENTED_BYTES = 1 << 30  # on a GPU; an epoch of CIFAR needs half of it
FREE_MEMORY_SHARE = 1 / 32  # what that may be of a GPU's free memory, which other trainings may need at the same time
MAX_NORMALIZED_BYTES = 1 << 26  # on a GPU, and as much for indices while they are made; 42 batches of CIFAR


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) and labels int64 (N,). Not to be written to: a cached set is a read-only memory map."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class NormalizationTable:
    """What every uint8 value becomes, (value / scale - mean) / std, and how it is computed.

    Args:
        entries: float32 (C, 256). mean, std: float32 (C, 1, 1).
    """

    entries: Tensor
    mean: Tensor
    std: Tensor
    scale: float

    def to(self, device: str | torch.device) -> "NormalizationTable":
        """Give the same table on a device."""
        return NormalizationTable(self.entries.to(device), self.mean.to(device), self.std.to(device), self.scale)


def normalization_table(mean: Sequence[float], std: Sequence[float], *, scale: float = 255) -> NormalizationTable:
    """Build the table of a normalization, one mean and std per channel.

    With scale 255 it equals torchvision's ToTensor + Normalize bit for bit (the same operations in the same order).
    """
    means, stds = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    values = torch.arange(256, dtype=torch.uint8).expand(len(mean), 1, 256)
    return NormalizationTable(_compute(values, means, stds, scale).view(-1, 256), means, stds, scale)


def normalize(images: Tensor, table: NormalizationTable) -> Tensor:
    """Normalize images uint8 (B, C, H, W), of any strides, to contiguous float32 (B, C, H, W)."""
    if images.device.type == "cpu":
        return _compute(images, table.mean, table.std, table.scale)
    return look_up(images, table.entries)


def look_up(images: Tensor, entries: Tensor) -> Tensor:
    """Normalize by look-up, for GPUs: they may divide by a number in another way than a CPU, and give other bits."""
    first_entries = torch.arange(0, entries.numel(), 256, dtype=torch.int32, device=images.device)
    indices = images.int().add_(first_entries[:, None, None])
    return entries.view(-1).index_select(0, indices.reshape(-1)).view(images.shape)


def _compute(images: Tensor, mean: Tensor, std: Tensor, scale: float) -> Tensor:
    result = torch.empty(images.shape, dtype=torch.float32, device=images.device).copy_(images)
    return result.div_(scale).sub_(mean).div_(std)


def flip_and_crop(images: Tensor, flip: Tensor, top: Tensor, left: Tensor, *, padding: int) -> Tensor:
    """Flip images left-right where asked, pad them with zeros on all sides, cut out windows of the old size.

    Args:
        images: uint8 (B, C, H, W). flip: bool (B,). top, left: int64 (B,), corners of the windows, 0..2 * padding.
    Returns:
        New uint8 tensor (B, C, H, W), not contiguous.
    """
    batch, channels, height, width = images.shape
    padded_height, padded_width = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(2, batch, channels, padded_height, padded_width)
    inside = padded[..., padding : padding + height, padding : padding + width]
    inside[0] = images
    inside[1] = images.flip(3)
    # From the first value of a window to its last, all channels: one piece to copy instead of C * H rows. What lies
    # between the rows comes along and is skipped by the strides.
    area = padded_height * padded_width
    length = (channels - 1) * area + (height - 1) * padded_width + width
    picture = flip * batch + torch.arange(batch, device=images.device)
    starts = picture * (channels * area) + top * padded_width + left
    windows = padded.view(-1).unfold(0, length, 1).index_select(0, starts)
    return windows.as_strided(images.shape, (length, area, padded_width, 1))


class ImageLoader:
    """A `Loader` over a subset of an ImageSet.

    Args:
        image_set: images and labels; on the device already, or copied there once where they fit.
        table: see `normalization_table`.
        indices: int64 (n,), the examples of the set that this loader serves; None for all.
        shuffle: a new order every epoch. padding: random crop after zero padding. flip: random horizontal flip.
    """

    def __init__(
        self,
        image_set: ImageSet,
        table: NormalizationTable,
        *,
        batch_size: int,
        indices: Tensor | None = None,
        shuffle: bool = False,
        padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self._device = torch.device(device)
        self._set = where_it_fits(image_set, self._device)
        self._table = table.to(self._device)
        self._indices = torch.arange(len(image_set.labels)) if indices is None else indices
        self._batch_size = batch_size
        self._shuffle, self._padding, self._flip = shuffle, padding, flip
        self._seed = seed
        self._next_epoch = 0

    @property
    def num_examples(self) -> int:
        return len(self._indices)

    def __len__(self) -> int:
        return -(-self.num_examples // self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        self._next_epoch = epoch

    def with_seed(self, seed: int) -> "ImageLoader":
        other = copy.copy(self)
        other._seed, other._next_epoch = seed, 0
        return other

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # All draws are made here, not in the generator below, so that a pass that is left early changes nothing later.
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self._batches(*self._draw(epoch))

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw an epoch on the CPU: example, flipped or not, top and left of the crop; each (n,), on the device."""
        n = self.num_examples
        order, flip = self._indices, torch.zeros(n, dtype=torch.bool)
        if self._shuffle:
            order = order[torch.randperm(n, generator=generator_for(self._seed, epoch, "order"))]
        if self._flip:
            flip = torch.randint(2, (n,), generator=generator_for(self._seed, epoch, "flip")).bool()
        corners = torch.randint(2 * self._padding + 1, (2, n), generator=generator_for(self._seed, epoch, "crop"))
        top, left = corners.to(self._device)
        return order.to(self._set.images.device), flip.to(self._device), top, left

    def _batches(self, order: Tensor, flip: Tensor, top: Tensor, left: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = self._batch_size
        chunk_size, part_size = (
            size * max(1, images_at_once // size)
            for images_at_once in (self._images_at_once(), self._normalized_at_once())
        )
        for first in range(0, self.num_examples, chunk_size):
            chunk = slice(first, first + chunk_size)
            images = self._set.images.index_select(0, order[chunk]).to(self._device)
            labels = self._set.labels.index_select(0, order[chunk]).to(self._device)
            if self._flip or self._padding:
                images = flip_and_crop(images, flip[chunk], top[chunk], left[chunk], padding=self._padding)
            for part, part_labels in zip(torch.split(images, part_size), torch.split(labels, part_size), strict=True):
                batches = torch.split(normalize(part, self._table), size)
                yield from zip(batches, torch.split(part_labels, size), strict=True)

    def _images_at_once(self) -> int:
        """Give how many images to augment at once: on a GPU as many as may be, to launch little; on a CPU a batch, to
        stay in the cache, and so that the shared memory map stays the only copy of the set."""
        if self._device.type == "cpu":
            return self._batch_size
        channels, height, width = self._set.images.shape[1:]
        padded_bytes = 2 * channels * (height + 2 * self._padding) * (width + 2 * self._padding)
        free_bytes, _ = torch.cuda.mem_get_info(self._device)
        return min(MAX_AUGMENTED_BYTES, int(FREE_MEMORY_SHARE * free_bytes)) // padded_bytes

    def _normalized_at_once(self) -> int:
        """Give how many images to normalize at once: on a GPU many, so that a batch is a view; on a CPU a batch."""
        if self._device.type == "cpu":
            return self._batch_size
        return MAX_NORMALIZED_BYTES // (self._set.images[0].numel() * 4)


def where_it_fits(image_set: ImageSet, device: torch.device) -> ImageSet:
    """Give the set on the device, or as it is where it would take more than half of a GPU's free memory."""
    if device.type == "cuda" and not image_set.images.is_cuda:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if image_set.images.nbytes > free_bytes // 2:
            return image_set
    return ImageSet(image_set.images.to(device), image_set.labels.to(device))


def build_image_loaders(
    train: ImageSet,
    test: ImageSet,
    table: NormalizationTable,
    *,
    padding: int,
    flip: bool,
    valid_split: float,
    train_batch_size: int,
    test_batch_size: int,
    seed: int,
    split_seed: int,
    limit_train_examples: int | None,
    device: str | torch.device,
) -> Loaders:
    """Build the (train, validation, test) loaders of a set; only the training part is shuffled and augmented."""
    train_indices, valid_indices = split_examples(len(train.labels), valid_split, split_seed, limit_train_examples)
    # Copied to the device here, once, because training and validation share the images.
    train = where_it_fits(train, torch.device(device))
    return (
        ImageLoader(
            train,
            table,
            batch_size=train_batch_size,
            indices=train_indices,
            shuffle=True,
            padding=padding,
            flip=flip,
            seed=seed,
            device=device,
        ),
        ImageLoader(train, table, batch_size=test_batch_size, indices=valid_indices, device=device),
        ImageLoader(test, table, batch_size=test_batch_size, device=device),
    )
