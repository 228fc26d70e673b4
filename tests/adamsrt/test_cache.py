"""Where images come from, in which order, and the cache that keeps them: written once, never wrong."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from adamsrt.dataloaders import DATASETS, DataCorruptError, DataNotFoundError, get_dataloader_SVHN, sources
from adamsrt.dataloaders.cache import cache_folder, load_image_sets
from adamsrt.dataloaders.cifar import CIFAR10, CIFAR100
from adamsrt.dataloaders.svhn import SVHN


@pytest.fixture(autouse=True)
def closed_world(tmp_path, monkeypatch):
    """A cache of its own, and a network that is always closed."""

    def fail(url, *_):
        raise URLError("no network here")

    monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "download_url", fail)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def random_images(n: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """uint8 (n, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(file: Path, images, labels, image_column="img", label_column="label") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {image_column: {"bytes": encode(image), "path": None}, label_column: int(label)}
        for image, label in zip(images, labels, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_small_cifar10(root: Path, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    train, test = random_images(12, seed), random_images(6, seed + 1)
    write_parquet(root / "cifar10" / "train.parquet", train, [i % 10 for i in range(12)])
    write_parquet(root / "cifar10" / "test.parquet", test, range(6))
    return train, test


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def cache_files(tmp_path: Path) -> list[Path]:
    return [file for file in (tmp_path / "cache").rglob("*") if file.suffix in (".arrow", ".part")]


def assert_one_line(error, *parts) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert str(part) in str(error.value)


def test_parquet_is_decoded_exactly(root):
    train_images, test_images = write_small_cifar10(root)
    train, test = load_image_sets(CIFAR10, root)
    assert torch.equal(train.images, channels_first(train_images))
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert torch.equal(test.images, channels_first(test_images))
    assert (test.labels.tolist(), test.labels.dtype) == ([0, 1, 2, 3, 4, 5], torch.int64)


def test_parquet_shards_are_sorted_by_name_and_columns_found(root):
    images = random_images(5)
    for shard, rows in (("00001-of-00002", slice(3, 5)), ("00000-of-00002", slice(0, 3))):
        file = root / "cifar100" / f"train-{shard}.parquet"
        write_parquet(file, images[rows], [90, 91, 92, 93, 94][rows], "image", "fine_label")
    write_parquet(root / "cifar100" / "test-00000-of-00001.parquet", images, [99] * 5)
    train, _ = load_image_sets(CIFAR100, root)
    assert torch.equal(train.images, channels_first(images))
    assert train.labels.tolist() == [90, 91, 92, 93, 94]
    (root / "cifar100" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataNotFoundError, match="needs 2 shards, got 1"):
        load_image_sets(CIFAR100, root)


def test_fine_label_goes_before_label(root):
    images = random_images(2)
    cells = [{"bytes": encode(image), "path": ""} for image in images]
    table = pa.table({"img": cells, "label": [1, 1], "fine_label": [42, 43]})
    (root / "cifar100").mkdir()
    for part in ("train", "test"):
        pq.write_table(table, root / "cifar100" / f"{part}.parquet")
    assert load_image_sets(CIFAR100, root)[0].labels.tolist() == [42, 43]


def damage_cut(root: Path) -> str:
    file = root / "cifar10" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    return "must be a whole Parquet file"


def damage_size(root: Path) -> str:
    write_parquet(root / "cifar10" / "train.parquet", random_images(2, size=28), [0, 1])
    return "row 0: images must be 32x32, got 28x28"


def damage_label(root: Path) -> str:
    write_parquet(root / "cifar10" / "train.parquet", random_images(2), [0, 10])
    return "row 1: label must be in 0..9, got 10"


def damage_image(root: Path) -> str:
    cells = [{"bytes": encode(random_images(1)[0])[:500], "path": ""}]
    pq.write_table(pa.table({"img": cells, "label": [1]}), root / "cifar10" / "train.parquet")
    return "row 0: the image must be decodable"


def damage_no_bytes(root: Path) -> str:
    cells = [{"bytes": None, "path": "0.png"}]
    table = pa.table({"img": pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": [1]})
    pq.write_table(table, root / "cifar10" / "train.parquet")
    return "row 0: the image must have bytes"


def damage_column(root: Path) -> str:
    write_parquet(root / "cifar10" / "train.parquet", random_images(1), [1], label_column="target")
    return "must have a column label, got img, target"


def damage_struct(root: Path) -> str:
    pq.write_table(pa.table({"img": [b"x"], "label": [1]}), root / "cifar10" / "train.parquet")
    return "must be a whole Parquet file"


def damage_empty(root: Path) -> str:
    write_parquet(root / "cifar10" / "train.parquet", random_images(1), [1])
    table = pq.read_table(root / "cifar10" / "train.parquet")
    pq.write_table(table.slice(0, 0), root / "cifar10" / "train.parquet")
    return "must hold at least 1 image, got 0"


@pytest.mark.parametrize(
    "damage",
    [
        damage_cut,
        damage_size,
        damage_label,
        damage_image,
        damage_no_bytes,
        damage_column,
        damage_struct,
        damage_empty,
    ],
)
def test_wrong_parquet_is_named_and_not_cached(root, tmp_path, damage):
    write_small_cifar10(root)
    rule = damage(root)
    with pytest.raises(DataCorruptError) as error:
        load_image_sets(CIFAR10, root)
    assert_one_line(error, root / "cifar10" / "train.parquet", rule)
    assert cache_files(tmp_path) == []


def test_parquet_without_its_test_file_says_so(root):
    write_small_cifar10(root)
    (root / "cifar10" / "test.parquet").unlink()
    with pytest.raises(DataNotFoundError) as error:
        load_image_sets(CIFAR10, root)
    assert_one_line(error, "no test*.parquet", root / "cifar10")


def write_torchvision_cifar(root: Path, dataset_class, monkeypatch) -> np.ndarray:
    """Tiny files in the layout of CIFAR10 or CIFAR100, and the checksums torchvision compares them with."""
    folder = root / dataset_class.base_folder
    folder.mkdir()
    label_key = "labels" if dataset_class is datasets.CIFAR10 else "fine_labels"
    checksums = {}
    images = []
    for part in ("train_list", "test_list"):
        checksums[part] = []
        for i, (name, _) in enumerate(getattr(dataset_class, part)):
            pixels = random_images(4, seed=len(images))
            images.append(pixels)
            entry = {"data": pixels.transpose(0, 3, 1, 2).reshape(4, -1), label_key: [i, 1, 2, 3]}
            (folder / name).write_bytes(pickle.dumps(entry))
            checksums[part].append([name, calculate_md5(folder / name)])
    meta = dict(dataset_class.meta)
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: list("abcdefghij")}))
    meta["md5"] = calculate_md5(folder / meta["filename"])
    for name, value in {**checksums, "meta": meta}.items():
        monkeypatch.setattr(dataset_class, name, value)
    return np.concatenate(images)


@pytest.mark.parametrize(("files", "dataset_class"), [(CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)])
def test_torchvision_cifar_is_read(root, monkeypatch, files, dataset_class):
    images = write_torchvision_cifar(root, dataset_class, monkeypatch)
    train, test = load_image_sets(files, root)
    assert torch.equal(torch.cat((train.images, test.images)), channels_first(images))
    assert train.labels.tolist() == [x for i in range(len(train.labels) // 4) for x in (i, 1, 2, 3)]


def test_packed_torchvision_cifar_is_read_and_left_packed(root, tmp_path, monkeypatch):
    images = write_torchvision_cifar(root, datasets.CIFAR10, monkeypatch)
    archive = root / datasets.CIFAR10.filename
    subprocess.run(["tar", "czf", archive, "-C", root, datasets.CIFAR10.base_folder], check=True)
    (root / datasets.CIFAR10.base_folder).rename(tmp_path / "elsewhere")
    with pytest.raises(DataCorruptError, match="must have the MD5 sum") as error:
        load_image_sets(CIFAR10, root)
    assert_one_line(error, archive)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", calculate_md5(archive))
    assert torch.equal(load_image_sets(CIFAR10, root)[0].images, channels_first(images[:20]))
    assert list(root.iterdir()) == [archive]


def test_wrong_torchvision_file_is_named_and_not_cached(root, tmp_path, monkeypatch):
    write_torchvision_cifar(root, datasets.CIFAR10, monkeypatch)
    file = root / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataCorruptError) as error:
        load_image_sets(CIFAR10, root)
    assert_one_line(error, file, "MD5")
    file.unlink()
    with pytest.raises(DataNotFoundError) as missing:
        load_image_sets(CIFAR10, root)
    assert_one_line(missing, file, "missing")
    assert cache_files(tmp_path) == []


def write_torchvision_svhn(root: Path, monkeypatch, labels=(1, 2, 10, 9)) -> np.ndarray:
    images = random_images(4)
    split_list = {}
    for split in ("train", "test"):
        name = f"{split}_32x32.mat"
        scipy.io.savemat(root / name, {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]})
        split_list[split] = [f"http://svhn.invalid/{name}", name, calculate_md5(root / name)]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    return images


def test_svhn_is_scaled_but_not_normalized_and_ten_is_zero(root, monkeypatch):
    images = write_torchvision_svhn(root, monkeypatch)
    train, valid, test = get_dataloader_SVHN(0.25, dataset_root_path=root)
    assert (train.num_examples, valid.num_examples) == (3, 1)
    batch, labels = next(iter(test))
    assert labels.tolist() == [1, 2, 0, 9]
    assert torch.equal(batch, channels_first(images).float() / 255)
    batch, labels = next(iter(train))
    order = [[1, 2, 0, 9].index(label) for label in labels]
    assert torch.equal(batch, (channels_first(images).float() / 255)[order])


def test_label_out_of_range_in_torchvision_files_is_refused(root, tmp_path, monkeypatch):
    write_torchvision_svhn(root, monkeypatch, labels=(1, 2, 11, 9))
    with pytest.raises(DataCorruptError, match=r"labels of svhn must be in 0..9, got 1..11"):
        load_image_sets(SVHN, root)
    assert cache_files(tmp_path) == []


def test_torchvision_files_go_before_parquet(root, monkeypatch):
    write_small_cifar10(root, seed=100)
    images = write_torchvision_cifar(root, datasets.CIFAR10, monkeypatch)
    assert torch.equal(load_image_sets(CIFAR10, root)[0].images, channels_first(images[:20]))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_missing_data_says_what_where_and_how(tmp_path, name, capfd):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataNotFoundError) as error:
        DATASETS[name].prepare(nowhere)
    layout = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "svhn": "train_32x32.mat"}[name]
    assert_one_line(error, f"{name} was not found", layout, f"{name}/train*.parquet", nowhere, "no network here")
    assert "data root" in str(error.value)
    assert not nowhere.exists()
    assert capfd.readouterr() == ("", "")


def test_download_is_used_last_and_kept(root, monkeypatch, capfd):
    images = write_torchvision_svhn(root, monkeypatch)
    contents = {name: (root / name).read_bytes() for name in ("train_32x32.mat", "test_32x32.mat")}
    for name in contents:
        (root / name).unlink()

    def download(url, folder, name, md5):
        print("a progress bar", file=sys.stderr)
        (Path(folder) / name).write_bytes(contents[name])

    monkeypatch.setattr(sources, "download_url", download)
    assert torch.equal(load_image_sets(SVHN, root)[0].images, channels_first(images))
    assert sorted(file.name for file in root.iterdir()) == ["test_32x32.mat", "train_32x32.mat"]
    assert capfd.readouterr() == ("", "")


def test_half_a_download_leaves_nothing(root, monkeypatch):
    def download(url, folder, name, md5):
        (Path(folder) / name).write_bytes(b"half of it")
        raise URLError("connection lost")

    monkeypatch.setattr(sources, "download_url", download)
    with pytest.raises(DataNotFoundError, match="connection lost"):
        load_image_sets(CIFAR10, root)
    assert list(root.iterdir()) == []


def test_cache_serves_when_the_sources_are_gone(root):
    images, _ = write_small_cifar10(root)
    load_image_sets(CIFAR10, root)
    (root / "cifar10").rename(root / "moved")
    assert torch.equal(load_image_sets(CIFAR10, root)[0].images, channels_first(images))


def test_cache_is_read_instead_of_the_sources(root, monkeypatch):
    write_small_cifar10(root)
    load_image_sets(CIFAR10, root)
    monkeypatch.setattr(sources, "read_parquet", None)
    train, _ = load_image_sets(CIFAR10, root)
    assert len(train.labels) == 12


def test_cache_is_mapped_not_copied(root):
    write_small_cifar10(root)
    before = pa.total_allocated_bytes()
    first, _ = load_image_sets(CIFAR10, root)
    second, _ = load_image_sets(CIFAR10, root)
    assert pa.total_allocated_bytes() == before
    assert first.images.data_ptr() == second.images.data_ptr()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(cache_folder(root) / "cifar10.arrow") in maps.read_text()


def test_changed_sources_are_read_again(root):
    write_small_cifar10(root)
    load_image_sets(CIFAR10, root)
    images, _ = write_small_cifar10(root, seed=50)
    assert torch.equal(load_image_sets(CIFAR10, root)[0].images, channels_first(images))


def test_two_roots_do_not_mix(root, tmp_path):
    other = tmp_path / "other"
    first, _ = write_small_cifar10(root)
    second, _ = write_small_cifar10(other, seed=50)
    for folder, images in ((root, first), (other, second), (root, first)):
        assert torch.equal(load_image_sets(CIFAR10, folder)[0].images, channels_first(images))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda content: b""])
def test_damaged_cache_is_rebuilt_or_named(root, damage):
    images, _ = write_small_cifar10(root)
    load_image_sets(CIFAR10, root)
    cache = cache_folder(root) / "cifar10.arrow"

    def replace_by_damaged():
        # as a new file: the old one is still mapped by this process
        damaged = cache.with_suffix(".damaged")
        damaged.write_bytes(damage(cache.read_bytes()))
        damaged.replace(cache)

    replace_by_damaged()
    assert torch.equal(load_image_sets(CIFAR10, root)[0].images, channels_first(images))
    replace_by_damaged()
    (root / "cifar10").rename(root / "moved")
    with pytest.raises(DataCorruptError) as error:
        load_image_sets(CIFAR10, root)
    assert_one_line(error, cache, "delete it")


def test_unwritable_cache_folder_names_the_variable(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    write_small_cifar10(root)
    with pytest.raises(ValueError, match="set ADAMSRT_CACHE_DIR") as error:
        load_image_sets(CIFAR10, root)
    assert_one_line(error, tmp_path / "file" / "cache")


def test_cache_folder_follows_the_environment(root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/person")
    assert cache_folder(root).parent == Path(os.environ["ADAMSRT_CACHE_DIR"])
    monkeypatch.delenv("ADAMSRT_CACHE_DIR")
    assert cache_folder(root).parent == Path("/xdg/adamsrt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(root).parent == Path("/home/person/.cache/adamsrt")


# One interpreter that imports once, then forks the processes of the test; each reading of the sources leaves a mark.
START_AT_ONCE = """
import multiprocessing, os, pathlib, sys
from adamsrt.dataloaders import get_dataloader_cifar10, sources

folder, root = map(pathlib.Path, sys.argv[1:])
read_parquet = sources.read_parquet
context = multiprocessing.get_context("fork")
barrier = context.Barrier(4)

def read_and_mark(*args):
    (folder / f"read-{os.getpid()}").touch()
    return read_parquet(*args)

def load():
    sources.read_parquet = read_and_mark
    barrier.wait()
    train, _, _ = get_dataloader_cifar10(0.25, dataset_root_path=root)
    images, labels = next(iter(train))
    (folder / f"result-{os.getpid()}").write_text(f"{labels.tolist()} {float(images.double().sum())}")

processes = [context.Process(target=load) for _ in range(4)]
for process in processes:
    process.start()
for process in processes:
    process.join()
"""


def test_processes_that_start_at_once_build_one_cache(root, tmp_path):
    write_small_cifar10(root)
    subprocess.run([sys.executable, "-c", START_AT_ONCE, str(tmp_path), str(root)], check=True, timeout=60)
    results = [file.read_text() for file in tmp_path.glob("result-*")]
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(list(tmp_path.glob("read-*"))) == 1
    assert [file.name for file in cache_files(tmp_path)] == ["cifar10.arrow"]


def test_what_the_datasets_say_of_torchvisions_files_is_what_torchvision_says():
    """They are written down, since importing torchvision takes every worker seconds."""
    for files, dataset_class in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        folder, archive = dataset_class.base_folder, dataset_class.filename
        assert files.entries == (folder, archive)
        assert files.downloads == (sources.Download(dataset_class.url, archive, dataset_class.tgz_md5),)
        listed = [name for name, _ in (*dataset_class.train_list, *dataset_class.test_list)]
        assert files.find_layout.__self__.members == (*listed, dataset_class.meta["filename"])
    parts = [datasets.SVHN.split_list[part] for part in ("train", "test")]
    assert SVHN.downloads == tuple(sources.Download(*part) for part in parts)


TRAIN = """
import sys
import training_example, tune_adamsrt.search
from adamsrt.training import Training, TrainingSpec

fields = dict(dataset="digits", model="resnet20", epochs=1, batch_size=32, valid_split=0.2, limit_train_examples=32)
training = Training(TrainingSpec(**fields, optimizer="adamsrt", hyper_parameters={"lr": 0.1}, seed=0))
training.run_epoch()  # torch's own Adam, AdamW and SGD import TorchDynamo at their first step
training.load_state_dict(training.state_dict())
print(sorted({"torchvision", "torch._dynamo", "sklearn"} & sys.modules.keys()))
"""


def test_a_worker_does_not_import_what_it_does_not_need():
    """Each takes a second or two, in every process of a search."""
    DATASETS["digits"].prepare("data")
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
