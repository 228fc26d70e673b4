"""The in-memory loader: exact normalization, the augmentation that was drawn, reproducible epochs."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from adamsrt.dataloaders import images as images_module
from adamsrt.dataloaders.images import (
    MAX_NORMALIZED_BYTES,
    ImageLoader,
    ImageSet,
    flip_and_crop,
    look_up,
    normalization_table,
    normalize,
)
from adamsrt.dataloaders.loader import generator_for, split_examples

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# (value / 1 - 0) / 1: batches hold the uint8 values themselves
RAW_TABLE = normalization_table((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), scale=1)


def random_set(n: int, size: int = 32) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n))


def training_loader(image_set: ImageSet, seed: int = 0, batch_size: int = 16) -> ImageLoader:
    return ImageLoader(image_set, RAW_TABLE, batch_size=batch_size, shuffle=True, padding=4, flip=True, seed=seed)


def epoch_of(loader: ImageLoader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))])
def test_normalization_equals_torchvision_bit_for_bit(mean, std):
    # every value of every channel
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack((values, values[::-1], values.T), axis=2))
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])(picture)
    images = functional.pil_to_tensor(picture)[None]
    result = normalize(images, normalization_table(mean, std))
    assert result.dtype == torch.float32
    assert torch.equal(result[0], expected)


@pytest.mark.parametrize(("scale", "channels"), [(255, 3), (16, 1)])
def test_a_gpu_looks_up_the_bits_that_a_cpu_computes(scale, channels):
    table = normalization_table(MEAN[:channels], STD[:channels], scale=scale)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, channels, -1, -1)
    assert torch.equal(look_up(images, table.entries), normalize(images, table))


def test_table_without_normalization_equals_to_tensor():
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    table = normalization_table((0.0,) * 3, (1.0,) * 3)
    assert torch.equal(normalize(functional.pil_to_tensor(picture)[None], table)[0], transforms.ToTensor()(picture))


def reference_flip_and_crop(image: torch.Tensor, flip: bool, top: int, left: int, padding: int) -> torch.Tensor:
    """The same with torchvision's own functions on one PIL image."""
    picture = functional.to_pil_image(image)
    picture = functional.pad(functional.hflip(picture) if flip else picture, [padding])
    return functional.pil_to_tensor(functional.crop(picture, top, left, *image.shape[1:]))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_flip_and_crop_equals_torchvision(padding):
    images = random_set(1, size=8).images
    offsets = range(2 * padding + 1)
    cases = [(flip, top, left) for flip in (False, True) for top in offsets for left in offsets]
    flip, top, left = (torch.tensor(column) for column in zip(*cases, strict=True))
    result = flip_and_crop(images.expand(len(cases), -1, -1, -1), flip, top, left, padding=padding)
    for picture, case in zip(result, cases, strict=True):
        assert torch.equal(picture, reference_flip_and_crop(images[0], *case, padding))


def test_loader_applies_what_was_drawn():
    image_set = random_set(50)
    images, labels = epoch_of(training_loader(image_set, seed=7))
    # the documented draws of epoch 0, made again
    order = torch.randperm(50, generator=generator_for(7, 0, "order"))
    flip = torch.randint(2, (50,), generator=generator_for(7, 0, "flip"))
    top, left = torch.randint(9, (2, 50), generator=generator_for(7, 0, "crop"))
    assert torch.equal(labels, image_set.labels[order])
    for i in range(50):
        expected = reference_flip_and_crop(image_set.images[order[i]], bool(flip[i]), int(top[i]), int(left[i]), 4)
        assert torch.equal(images[i], expected.float())


def test_every_crop_and_flip_occurs_about_equally_often():
    n = 162 * 50
    loader = ImageLoader(random_set(n, 4), RAW_TABLE, batch_size=n, shuffle=True, padding=4, flip=True)
    _, flip, top, left = loader._draw(0)
    counts = torch.bincount(flip * 81 + top * 9 + left, minlength=162)
    # binomial with mean 50, standard deviation 7: beyond 6 of them once in millions of seeds
    assert counts.min() > 8
    assert counts.max() < 92


def test_epoch_depends_on_seed_and_epoch_only():
    image_set = random_set(40)
    first = training_loader(image_set)
    epochs = [epoch_of(first) for _ in range(3)]
    assert len({tuple(labels.tolist()) for _, labels in epochs}) == 3
    # another object, another batch size, epochs out of order, a pass that is left early
    again = training_loader(image_set, batch_size=7)
    again.set_epoch(2)
    for part, expected in zip(epoch_of(again), epochs[2], strict=True):
        assert torch.equal(part, expected)
    again.set_epoch(0)
    next(iter(again))
    assert torch.equal(epoch_of(again)[0], epochs[1][0])
    assert not torch.equal(epoch_of(training_loader(image_set, seed=1))[1], epochs[0][1])


def test_a_loader_with_another_seed_is_a_new_one_over_the_same_memory():
    image_set = random_set(40)
    loader = training_loader(image_set)
    first = epoch_of(loader)
    other, fresh = loader.with_seed(1), training_loader(image_set, seed=1)
    assert other._set is loader._set
    for _ in range(2):
        assert all(map(torch.equal, epoch_of(other), epoch_of(fresh)))
    loader.set_epoch(0)
    assert all(map(torch.equal, epoch_of(loader), first))


def test_an_epoch_prepared_at_once_is_the_epoch_prepared_by_batch(monkeypatch):
    by_batch = epoch_of(training_loader(random_set(40)))
    for images_at_once in (33, 10**9):
        monkeypatch.setattr(ImageLoader, "_images_at_once", lambda loader, number=images_at_once: number)
        loader = training_loader(random_set(40))
        assert [len(labels) for _, labels in loader] == [16, 16, 8]
        loader.set_epoch(0)
        for part, expected in zip(epoch_of(loader), by_batch, strict=True):
            assert torch.equal(part, expected)


@pytest.mark.parametrize(("images_at_once", "pictures"), [(1, [1, 1, 1]), (32, [2, 1]), (47, [2, 1]), (10**9, [3])])
def test_batches_normalized_together_are_those_normalized_one_by_one(images_at_once, pictures, monkeypatch):
    """As on a GPU: looked up, many batches at once, each a view of what was made together."""
    table = normalization_table(MEAN, STD)
    options = {"batch_size": 16, "shuffle": True, "padding": 4, "flip": True}
    expected = list(ImageLoader(random_set(40), table, **options))
    monkeypatch.setattr(images_module, "normalize", lambda images, table: look_up(images, table.entries))
    monkeypatch.setattr(ImageLoader, "_images_at_once", lambda loader: 10**9)
    monkeypatch.setattr(ImageLoader, "_normalized_at_once", lambda loader: images_at_once)
    batches = list(ImageLoader(random_set(40), table, **options))
    for ours, theirs in zip(batches, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert ours[0].is_contiguous()
    places = [images.untyped_storage().data_ptr() for images, _ in batches]
    assert [len(list(same)) for _, same in itertools.groupby(places)] == pictures


def test_what_a_gpu_normalizes_at_once_is_bounded():
    loader = training_loader(random_set(4))
    assert loader._normalized_at_once() == 16, "on a CPU a batch, which stays in the cache"
    loader._device = torch.device("cuda")
    assert loader._normalized_at_once() * 3 * 32 * 32 * 4 <= MAX_NORMALIZED_BYTES
    assert loader._normalized_at_once() // 128 == 42, "batches of CIFAR"


def test_batches_are_contiguous_and_fresh():
    (first, _), (second, _), *_ = training_loader(random_set(40))
    assert first.is_contiguous()
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    epoch_of(training_loader(random_set(8)))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_are_the_same_in_every_process_and_version():
    # Printed once by this call; Python's hash() would differ in every process.
    assert generator_for(3, 5, "order").initial_seed() == 3408179469


def test_purposes_seeds_and_epochs_have_different_draws():
    seeds = {
        generator_for(seed, epoch, purpose).initial_seed()
        for seed in range(12)
        for epoch in range(12)
        for purpose in ("order", "flip", "crop")
    }
    assert len(seeds) == 12 * 12 * 3


def test_last_partial_batch_is_kept():
    loader = ImageLoader(random_set(10, 4), RAW_TABLE, batch_size=4)
    assert len(loader) == 3
    assert loader.num_examples == 10
    assert [len(labels) for _, labels in loader] == [4, 4, 2]


def test_plain_loader_neither_shuffles_nor_augments():
    image_set = random_set(10)
    loader = ImageLoader(image_set, RAW_TABLE, batch_size=4, indices=torch.tensor([2, 3, 7, 8, 9]))
    for _ in range(2):
        images, labels = epoch_of(loader)
        assert labels.tolist() == [2, 3, 7, 8, 9]
        assert torch.equal(images, image_set.images[labels].float())


def test_split_is_disjoint_complete_and_fixed():
    train, valid = split_examples(1001, 0.05, split_seed=3)
    assert len(valid) == 50
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(1001))
    assert torch.equal(split_examples(1001, 0.05, split_seed=3)[0], train)
    assert not torch.equal(split_examples(1001, 0.05, split_seed=4)[1], valid)


def test_limit_keeps_the_first_training_examples_and_all_of_validation():
    train, valid = split_examples(100, 0.1, split_seed=0)
    limited, same_valid = split_examples(100, 0.1, split_seed=0, limit_train_examples=7)
    assert torch.equal(limited, train[:7])
    assert torch.equal(same_valid, valid)
    assert torch.equal(split_examples(100, 0.1, split_seed=0, limit_train_examples=10**9)[0], train)


def test_split_that_leaves_a_part_empty_is_refused():
    with pytest.raises(ValueError, match="valid_split must leave at least 1 training and 1 validation"):
        split_examples(5, 0.05, split_seed=0)
