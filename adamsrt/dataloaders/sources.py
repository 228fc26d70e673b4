"""Where a 32x32 dataset comes from: torchvision's own files, Hugging Face style Parquet, or a download.

torchvision is imported where its files are read only: importing it takes every worker seconds (it brings TorchDynamo).
"""

import contextlib
import io
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adamsrt.dataloaders.images import ImageSet
from adamsrt.dataloaders.loader import DataCorruptError, DataNotFoundError
from adamsrt.dataloaders.parquet import read_parquet

# Long enough for a slow server to answer; a closed network fails within it.
DOWNLOAD_TIMEOUT_S = 10.0

TrainAndTest = tuple[ImageSet, ImageSet]


@dataclass(frozen=True)
class Source:
    """Files that hold a whole dataset, and the function that reads and checks them."""

    files: tuple[Path, ...]
    read: Callable[[], TrainAndTest]

    def fingerprint(self) -> list[list[str | int]]:
        """Name, size (bytes) and modification time (ns) of every file; [name, -1, -1] for a missing one."""
        marks: list[list[str | int]] = []
        for file in self.files:
            try:
                status = file.stat()
                marks.append([file.name, status.st_size, status.st_mtime_ns])
            except FileNotFoundError:
                marks.append([file.name, -1, -1])
        return marks


@dataclass(frozen=True)
class Download:
    """One file to fetch into the data root."""

    url: str
    file_name: str
    md5: str


@dataclass(frozen=True)
class DatasetFiles:
    """What the files of a dataset look like.

    Args:
        image_shape: (C, H, W). label_columns: names of the label in Parquet, the first one present is taken.
        layout: torchvision's file names, for messages. entries: the same as files and folders under the data root.
        find_layout: data root -> Source, None where there is none.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    label_columns: tuple[str, ...]
    layout: str
    entries: tuple[str, ...]
    find_layout: Callable[[Path], Source | None]
    downloads: tuple[Download, ...]


def find_source(dataset: DatasetFiles, root: Path) -> Source | None:
    """Find the dataset's files under the data root, None where there are none. Raises DataNotFoundError for a half."""
    source = dataset.find_layout(root)
    if source is not None:
        return source
    folder = root / dataset.name
    files = {part: tuple(sorted(folder.glob(f"{part}*.parquet"))) for part in ("train", "test")}
    if not any(files.values()):
        return None
    for part, found in files.items():
        if not found:
            raise DataNotFoundError(
                f"{dataset.name} needs train*.parquet and test*.parquet, got no {part}*.parquet in {folder}; add it"
            )

    def read() -> TrainAndTest:
        options = (dataset.image_shape, dataset.label_columns, dataset.num_classes)
        return read_parquet(files["train"], *options), read_parquet(files["test"], *options)

    return Source(files["train"] + files["test"], read)


def download_source(dataset: DatasetFiles, root: Path) -> Source:
    """Download the dataset into the data root, silently. Raises DataNotFoundError where that fails."""
    existed = root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Moved into place whole: a broken download leaves nothing behind that looks like a file of the dataset.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder, _quiet_network():
            for item in dataset.downloads:
                download_url(item.url, folder, item.file_name, item.md5)
            for item in dataset.downloads:
                (Path(folder) / item.file_name).replace(root / item.file_name)
    except (OSError, HTTPException, RuntimeError) as error:
        if not existed:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise DataNotFoundError(_render_not_found(dataset, root, error)) from error
    source = find_source(dataset, root)
    assert source is not None
    return source


def _render_not_found(dataset: DatasetFiles, root: Path, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{dataset.name} was not found: no cached copy, no {dataset.layout} and no {dataset.name}/train*.parquet with "
        f"test*.parquet in {root}, and the download of {dataset.downloads[0].url} failed ({reason}); "
        "put one of these there, or give the folder that holds them as the data root"
    )


def download_url(url: str, folder: str, file_name: str, md5: str) -> None:
    """Download a file and check its sum. Raises OSError, HTTPException or RuntimeError."""
    from torchvision.datasets import utils

    utils.download_url(url, folder, file_name, md5)


@contextlib.contextmanager
def _quiet_network() -> Iterator[None]:
    """Give sockets a short timeout and keep torchvision's progress bar out of the terminal."""
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout_s)


@dataclass(frozen=True)
class CifarLayout:
    """torchvision's CIFAR-10 or CIFAR-100: the class that reads it, and its files below the data root.

    Args:
        class_name: in torchvision.datasets. members: names in the folder.
    """

    class_name: str
    folder: str
    members: tuple[str, ...]
    archive: Download

    def find(self, root: Path) -> Source | None:
        """Find the folder, or the archive, under the data root; None where neither is there."""
        if (root / self.folder).is_dir():
            return Source(tuple(root / self.folder / name for name in self.members), partial(self._read, root))
        if (root / self.archive.file_name).is_file():
            return Source((root / self.archive.file_name,), partial(self._read_packed, root / self.archive.file_name))
        return None

    def _read(self, root: Path) -> TrainAndTest:
        from torchvision import datasets

        dataset_class = getattr(datasets, self.class_name)
        meta = dataset_class.meta
        for name, md5 in (*dataset_class.train_list, *dataset_class.test_list, (meta["filename"], meta["md5"])):
            check_file(root / self.folder / name, md5)

        def read(train: bool) -> ImageSet:
            with warnings.catch_warnings():
                # The official pickles describe their arrays the way NumPy 1.x did; NumPy 2.4 warns about that.
                warnings.simplefilter("ignore")
                data = dataset_class(root, train=train)
            return build_image_set(data.data.transpose(0, 3, 1, 2), data.targets)

        return read(True), read(False)

    def _read_packed(self, archive: Path) -> TrainAndTest:
        from torchvision import datasets
        from torchvision.datasets.utils import extract_archive

        check_file(archive, getattr(datasets, self.class_name).tgz_md5)
        with tempfile.TemporaryDirectory() as folder:
            extract_archive(archive, folder)
            return self._read(Path(folder))


def cifar_files(name: str, num_classes: int, layout: CifarLayout, label_columns: tuple[str, ...]) -> DatasetFiles:
    """Describe a dataset in the layout of torchvision's CIFAR-10 or CIFAR-100."""
    return DatasetFiles(
        name,
        num_classes,
        (3, 32, 32),
        label_columns,
        f"{layout.folder}/ or {layout.archive.file_name}",
        (layout.folder, layout.archive.file_name),
        layout.find,
        (layout.archive,),
    )


def find_svhn(parts: tuple[Download, ...], root: Path) -> Source | None:
    """Find torchvision's SVHN files (train, test), None where neither is there."""
    files = tuple(root / part.file_name for part in parts)
    return Source(files, partial(_read_svhn, root)) if any(file.is_file() for file in files) else None


def _read_svhn(root: Path) -> TrainAndTest:
    from torchvision.datasets import SVHN

    def read(split: str) -> ImageSet:
        data = SVHN(root, split=split)
        return build_image_set(data.data, data.labels)

    for split in ("train", "test"):
        _, name, md5 = SVHN.split_list[split]
        check_file(root / name, md5)
    return read("train"), read("test")


def check_file(file: Path, md5: str) -> None:
    """Raise DataNotFoundError where a file is missing, DataCorruptError where its checksum is wrong."""
    from torchvision.datasets.utils import check_integrity

    if not file.is_file():
        raise DataNotFoundError(f"{file} is missing, though other files of its dataset are there; add it")
    if not check_integrity(file, md5):
        raise DataCorruptError(f"{file} must have the MD5 sum {md5}: it is truncated or wrong; replace it")


def build_image_set(images: npt.NDArray[np.uint8], labels: Any) -> ImageSet:
    """Build an ImageSet from arrays (N, C, H, W) and (N,), copied only where their layout asks for it."""
    return ImageSet(torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(np.asarray(labels, np.int64)))
