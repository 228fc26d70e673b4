"""The decoded images of a dataset, once per node, as an Arrow IPC file that every process maps into memory.

Record batch 0 is the training set, batch 1 the test set; the columns are `image` (fixed-shape tensors) and `label`.
"""

import contextlib
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from adamsrt.dataloaders.bucket import fetch, is_uri
from adamsrt.dataloaders.images import ImageSet
from adamsrt.dataloaders.loader import DataCorruptError
from adamsrt.dataloaders.sources import DatasetFiles, Source, TrainAndTest, download_source, find_source

FORMAT_VERSION = 1
METADATA_KEY = b"adamsrt"


def cache_folder(root: Path | str) -> Path:
    """The folder of one data root: $ADAMSRT_CACHE_DIR, else $XDG_CACHE_HOME/adamsrt, else ~/.cache/adamsrt, + hash.

    Args:
        root: a folder, or the URI of a bucket.
    """
    if chosen := os.environ.get("ADAMSRT_CACHE_DIR"):
        base = Path(chosen).expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adamsrt"
    known_as = str(root) if is_uri(root) else str(Path(root).resolve())
    return base.absolute() / hashlib.sha256(known_as.encode()).hexdigest()[:12]


def load_image_sets(dataset: DatasetFiles, root: str | Path) -> TrainAndTest:
    """Give the (training, test) images: from the cache, else from files under the data root, else by download.

    A data root that is a bucket (`s3://...`) is copied to this node first, see `bucket.fetch`.

    The tensors are views of the memory-mapped cache file; do not write to them.

    Raises:
        DataNotFoundError: no source worked. DataCorruptError: a file is truncated or wrong; nothing was cached.
        ValueError: the cache folder cannot be written.
    """
    if is_uri(root):
        files = cache_folder(root) / "files"
        fetch(dataset, str(root), files)
        root = files
    root = Path(root).expanduser().absolute()
    source = find_source(dataset, root)
    path = cache_folder(root) / f"{dataset.name}.arrow"
    cached = _open_if_current(path, dataset, source)
    if cached is not None:
        return cached
    with _locked(path):
        cached = _open_if_current(path, dataset, source)  # another process may have written it meanwhile
        if cached is not None:
            return cached
        source = source or find_source(dataset, root) or download_source(dataset, root)
        fingerprint = source.fingerprint()  # before reading: a file that changes meanwhile is read again next time
        train, test = source.read()
        for image_set in (train, test):
            _check_labels(image_set.labels, dataset, source)
        _write(path, dataset, fingerprint, train, test)
    cached = _open_if_current(path, dataset, None)
    assert cached is not None
    return cached


def _check_labels(labels: Tensor, dataset: DatasetFiles, source: Source) -> None:
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        raise DataCorruptError(
            f"{source.files[0].parent}: labels of {dataset.name} must be in 0..{dataset.num_classes - 1}, "
            f"got {int(labels.min())}..{int(labels.max())}; replace its files"
        )


def _open_if_current(path: Path, dataset: DatasetFiles, source: Source | None) -> TrainAndTest | None:
    """Open the cache; None where it is missing, made by another version or from other files, or can be rebuilt."""
    try:
        status = path.stat()
    except OSError:
        return None
    try:
        metadata, train, test = _open_verified(
            path, dataset.image_shape, status.st_ino, status.st_mtime_ns, status.st_size
        )
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        if source is None:
            raise DataCorruptError(
                f"{path} is a damaged cache of {dataset.name} ({error}) and its sources are gone; delete it"
            ) from error
        return None
    if metadata["dataset"] != dataset.name or metadata["format_version"] != FORMAT_VERSION:
        return None
    if source is not None and metadata["fingerprint"] != source.fingerprint():
        return None
    return train, test


@functools.lru_cache(maxsize=8)
def _open_verified(
    path: Path, image_shape: tuple[int, int, int], inode: int, mtime_ns: int, size: int
) -> tuple[dict[str, Any], ImageSet, ImageSet]:
    """Map a cache file and compare its checksums; once per process and state of the file."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    metadata: dict[str, Any] = json.loads(reader.schema.metadata[METADATA_KEY])
    train, test = (_view(reader.get_batch(part), image_shape) for part in range(2))
    if metadata["checksums"] != [_checksum(train), _checksum(test)]:
        raise ValueError("its checksum differs")
    return metadata, train, test


def _view(batch: pa.RecordBatch, image_shape: tuple[int, int, int]) -> ImageSet:
    """View a record batch as tensors, without a copy. DLPack, unlike NumPy, hands over read-only memory silently."""
    images = from_dlpack(batch["image"].storage.flatten()).view(-1, *image_shape)
    return ImageSet(images, from_dlpack(batch["label"]))


def _checksum(image_set: ImageSet) -> int:
    return zlib.crc32(image_set.labels.numpy().data, zlib.crc32(image_set.images.numpy().data))


def _write(path: Path, dataset: DatasetFiles, fingerprint: object, train: ImageSet, test: ImageSet) -> None:
    """Write the cache under the lock: a new file, flushed to disk, then put in place at once."""
    metadata = {
        "dataset": dataset.name,
        "format_version": FORMAT_VERSION,
        "shape": dataset.image_shape,
        "fingerprint": fingerprint,
        "checksums": [_checksum(train), _checksum(test)],
    }
    image_type = pa.fixed_shape_tensor(pa.uint8(), dataset.image_shape)
    schema = pa.schema([("image", image_type), ("label", pa.int64())], {METADATA_KEY: json.dumps(metadata)})
    unfinished = path.with_suffix(".part")
    try:
        with unfinished.open("wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                for image_set in (train, test):
                    images = pa.FixedShapeTensorArray.from_numpy_ndarray(image_set.images.numpy())
                    writer.write_batch(pa.record_batch([images, pa.array(image_set.labels.numpy())], schema=schema))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(_render_not_writable(path.parent, error)) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Make the cache folder and lock one dataset in it, waiting for a process that is building it."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise ValueError(_render_not_writable(path.parent, error)) from error
    try:
        yield
    finally:
        lock.release()


def _render_not_writable(folder: Path, error: OSError) -> str:
    return f"the cache folder {folder} must be writable, got {error}; set ADAMSRT_CACHE_DIR to a folder that is"
