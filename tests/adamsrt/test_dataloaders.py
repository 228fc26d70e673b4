"""The datasets by name: arguments, the digits, ImageNet from a small folder."""

import io
import multiprocessing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from adamsrt.dataloaders import (
    DATASETS,
    DataCorruptError,
    DataNotFoundError,
    get_dataloader_cifar10,
    get_dataloader_digits,
    get_dataloader_imagenet,
)
from adamsrt.dataloaders import digits as digits_module


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path / "cache"))


def labels_of(loader) -> list[int]:
    return torch.cat([labels for _, labels in loader]).tolist()


@pytest.mark.parametrize("name", list(DATASETS))
@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ({"valid_split": 0.0}, r"valid_split must be in \(0, 1\), got 0.0"),
        ({"valid_split": 1.0}, r"valid_split must be in \(0, 1\), got 1.0"),
        ({"valid_split": float("nan")}, r"valid_split must be in \(0, 1\), got nan"),
        ({"train_batch_size": 0}, "train_batch_size must be >= 1, got 0"),
        ({"test_batch_size": -1}, "test_batch_size must be >= 1, got -1"),
        ({"num_workers": -1}, "num_workers must be >= 0, got -1"),
        ({"limit_train_examples": 0}, "limit_train_examples must be >= 1, got 0"),
    ],
)
def test_wrong_argument_is_refused(name, argument, rule, tmp_path):
    with pytest.raises(ValueError, match=rule) as error:
        DATASETS[name].get_dataloaders(dataset_root_path=tmp_path, **argument)
    assert "\n" not in str(error.value)


def test_digits_sizes_and_entry():
    entry = DATASETS["digits"]
    entry.prepare("no such folder")
    train, valid, test = get_dataloader_digits(train_batch_size=100)
    assert (train.num_examples, valid.num_examples, test.num_examples) == (1150, 287, 360)
    images, labels = next(iter(train))
    assert images.shape == (100, entry.in_channels, entry.image_size, entry.image_size)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert set(labels_of(test)) == set(range(entry.num_classes))


def test_digits_test_set_is_stratified_and_complete():
    train, test = digits_module.load_image_sets()
    total = torch.bincount(train.labels) + torch.bincount(test.labels)
    assert int(total.sum()) == 1797
    assert ((torch.bincount(test.labels) - total * 360 / 1797).abs() < 1).all()


def test_digits_are_normalized_by_the_training_images():
    train, _ = digits_module.load_image_sets()
    values = train.images.double() / 16
    assert values.mean().item() == pytest.approx(digits_module.MEAN, abs=1e-4)
    assert values.std().item() == pytest.approx(digits_module.STD, abs=1e-4)
    loaders = get_dataloader_digits()
    batches = torch.cat([images for loader in loaders[:2] for images, _ in loader])
    assert batches.mean().item() == pytest.approx(0, abs=1e-3)
    assert batches.std().item() == pytest.approx(1, abs=1e-3)


def test_digits_split_is_fixed_by_split_seed_alone():
    def first_valid_batch(**seeds):
        return next(iter(get_dataloader_digits(**seeds)[1]))[0]

    assert torch.equal(first_valid_batch(seed=0), first_valid_batch(seed=1))
    assert not torch.equal(first_valid_batch(split_seed=0), first_valid_batch(split_seed=1))


def test_cifar10_trains_on_augmented_images_and_validates_on_plain_ones(tmp_path):
    """One all-white image per class: a shifted one shows its zero padding, a plain one is constant."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(buffer, "PNG")
    rows = [{"img": {"bytes": buffer.getvalue(), "path": None}, "label": i % 10} for i in range(100)]
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "cifar10" / f"{part}.parquet")
    train, valid, test = get_dataloader_cifar10(dataset_root_path=tmp_path, limit_train_examples=64)
    assert (train.num_examples, valid.num_examples, test.num_examples) == (64, 5, 100)
    white = (1 - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.2470, 0.2435, 0.2616])
    black = (0 - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.2470, 0.2435, 0.2616])
    for loader in (valid, test):
        images, _ = next(iter(loader))
        torch.testing.assert_close(images, white.view(3, 1, 1).expand(len(images), 3, 32, 32))
    images, _ = next(iter(train))
    padded = images.amin(dim=(0, 2, 3))
    torch.testing.assert_close(padded, black)
    # 64 images without a single shifted one: (1/81)^64
    assert (images.amin(dim=(1, 2, 3)) < 0).sum() > 40


@pytest.fixture
def imagenet_root(tmp_path):
    generator = np.random.default_rng(0)
    for part, n in (("train", 5), ("val", 2)):
        for label, name in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                # class 0 dark, class 1 bright
                pixels = generator.integers(100 * label, 100 * label + 100, (300, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    return tmp_path


def test_imagenet_is_the_same_with_and_without_workers(imagenet_root):
    options = {"dataset_root_path": imagenet_root, "train_batch_size": 4, "test_batch_size": 3, "seed": 5}
    state = torch.get_rng_state()
    train, valid, test = get_dataloader_imagenet(num_workers=2, **options)
    alone = get_dataloader_imagenet(num_workers=0, **options)[0]
    assert (train.num_examples, valid.num_examples, test.num_examples, len(train)) == (10, 4, 4, 3)
    epochs = []
    for _ in range(2):
        batches, batches_alone = list(train), list(alone)
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        for (images, labels), (images_alone, labels_alone) in zip(batches, batches_alone, strict=True):
            assert images.shape[1:] == (3, 224, 224)
            assert torch.equal(images, images_alone)
            assert torch.equal(labels, labels_alone)
            assert torch.equal(labels, (images.mean(dim=(1, 2, 3)) > -0.4).long())
        epochs.append(torch.cat([images for images, _ in batches]))
    # sorted by content, so that only the augmentation is compared
    assert not torch.equal(*(epoch.flatten(1).sum(1).sort().values for epoch in epochs))
    alone.set_epoch(0)
    assert torch.equal(torch.cat([images for images, _ in alone]), epochs[0])
    of_this_seed = get_dataloader_imagenet(num_workers=0, **options | {"seed": 6})[0].with_seed(5)
    assert torch.equal(torch.cat([images for images, _ in of_this_seed]), epochs[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_imagenet_validation_is_plain_and_ordered(imagenet_root):
    _, valid, _ = get_dataloader_imagenet(dataset_root_path=imagenet_root, num_workers=0)
    (images, labels), (again, _) = next(iter(valid)), next(iter(valid))
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(images, again)


def test_imagenet_limit(imagenet_root):
    train, valid, _ = get_dataloader_imagenet(dataset_root_path=imagenet_root, num_workers=0, limit_train_examples=3)
    assert (train.num_examples, valid.num_examples) == (3, 4)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_imagenet_truncated_file_is_named_in_one_line(imagenet_root, num_workers):
    file = imagenet_root / "imagenet" / "val" / "n01440764" / "1.JPEG"
    file.write_bytes(file.read_bytes()[:5000])
    _, valid, _ = get_dataloader_imagenet(dataset_root_path=imagenet_root, num_workers=num_workers)
    with pytest.raises(DataCorruptError) as error:
        next(iter(valid))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()


def test_imagenet_missing_folder_is_named(tmp_path):
    with pytest.raises(DataNotFoundError) as error:
        DATASETS["imagenet"].prepare(tmp_path)
    assert str(tmp_path / "imagenet" / "train") in str(error.value)
    assert "\n" not in str(error.value)


def test_imagenet_with_other_classes_in_validation_is_refused(imagenet_root):
    (imagenet_root / "imagenet" / "val" / "n01440764").rename(imagenet_root / "imagenet" / "val" / "n00000001")
    with pytest.raises(DataCorruptError, match="same class folders"):
        DATASETS["imagenet"].prepare(imagenet_root)
