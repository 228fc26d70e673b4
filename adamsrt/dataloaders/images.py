"""Images held as uint8 in memory, augmented and normalized a batch at a time.

Every operation is an index operation on uint8 followed by one table look-up, so that CPU and GPU give the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adamsrt.dataloaders.loader import Loaders, generator_for, split_examples


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) and labels int64 (N,). Not to be written to: a cached set is a read-only memory map."""

    images: Tensor
    labels: Tensor


def normalization_table(mean: Sequence[float], std: Sequence[float], *, scale: float = 255) -> Tensor:
    """Build the float32 (C, 256) table of (value / scale - mean) / std.

    With scale 255 it equals torchvision's ToTensor + Normalize bit for bit (the same operations in the same order).
    """
    values = torch.arange(256, dtype=torch.float32).div(scale).expand(len(mean), 256)
    return values.sub(torch.tensor(mean)[:, None]).div(torch.tensor(std)[:, None])


def normalize(images: Tensor, table: Tensor) -> Tensor:
    """Look up every uint8 value of images (B, C, H, W) in table (C, 256); float32 (B, C, H, W)."""
    first_entries = torch.arange(0, table.numel(), 256, dtype=torch.int32, device=images.device)
    entries = images.int() + first_entries[:, None, None]
    return table.view(-1).index_select(0, entries.reshape(-1)).view(images.shape)


def flip_and_crop(images: Tensor, flip: Tensor, top: Tensor, left: Tensor, *, padding: int) -> Tensor:
    """Flip images left-right where asked, pad them with zeros on all sides, cut out windows of the old size.

    Args:
        images: uint8 (B, C, H, W). flip: bool (B,). top, left: int64 (B,), corners of the windows, 0..2 * padding.
    Returns:
        New uint8 tensor (B, C, H, W).
    """
    batch, channels, height, width = images.shape
    padded_height, padded_width = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(2, batch, channels, padded_height, padded_width)
    inside = padded[..., padding : padding + height, padding : padding + width]
    inside[0] = images
    inside[1] = images.flip(3)
    # Each row of a window lies in one piece, so the window is a gather of C * H rows instead of C * H * W values.
    rows = torch.arange(channels * padded_height, device=images.device).view(channels, padded_height)[:, :height]
    picture = flip * batch + torch.arange(batch, device=images.device)
    first_row = picture * (channels * padded_height) + top
    starts = (first_row[:, None] + rows.reshape(1, -1)) * padded_width + left[:, None]
    return padded.view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view(images.shape)


class ImageLoader:
    """A `Loader` over a subset of an ImageSet.

    Args:
        image_set: images and labels; on the device already, or copied there once.
        table: float32 (C, 256), see `normalization_table`.
        indices: int64 (n,), the examples of the set that this loader serves; None for all.
        shuffle: a new order every epoch. padding: random crop after zero padding. flip: random horizontal flip.
    """

    def __init__(
        self,
        image_set: ImageSet,
        table: Tensor,
        *,
        batch_size: int,
        indices: Tensor | None = None,
        shuffle: bool = False,
        padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self._images = image_set.images.to(device)
        self._labels = image_set.labels.to(device)
        self._table = table.to(device)
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # All draws are made here, not in the generator below, so that a pass that is left early changes nothing later.
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self._batches(*self._draw(epoch))

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw an epoch on the CPU: example, flipped or not, top and left of the crop; each (n,), on the device."""
        n, device = self.num_examples, self._images.device
        order, flip = self._indices, torch.zeros(n, dtype=torch.bool)
        if self._shuffle:
            order = order[torch.randperm(n, generator=generator_for(self._seed, epoch, "order"))]
        if self._flip:
            flip = torch.randint(2, (n,), generator=generator_for(self._seed, epoch, "flip")).bool()
        corners = torch.randint(2 * self._padding + 1, (2, n), generator=generator_for(self._seed, epoch, "crop"))
        top, left = corners.to(device)
        return order.to(device), flip.to(device), top, left

    def _batches(self, order: Tensor, flip: Tensor, top: Tensor, left: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.num_examples, self._batch_size):
            batch = slice(start, start + self._batch_size)
            # Gathered first, padded then: the shared memory map stays the only copy of the set.
            images = self._images.index_select(0, order[batch])
            if self._flip or self._padding:
                images = flip_and_crop(images, flip[batch], top[batch], left[batch], padding=self._padding)
            yield normalize(images, self._table), self._labels.index_select(0, order[batch])


def build_image_loaders(
    train: ImageSet,
    test: ImageSet,
    table: Tensor,
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
    train = ImageSet(train.images.to(device), train.labels.to(device))
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
