"""A data root that is a bucket: a dataset's files are copied to the node once, whoever of its processes comes first."""

import tempfile
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from pyarrow.fs import FileInfo, FileSystem, FileType, copy_files

from adamsrt.dataloaders.loader import DataNotFoundError
from adamsrt.dataloaders.sources import DatasetFiles


def is_uri(root: str | Path) -> bool:
    """Tell a bucket (`s3://...`, `gs://...`, whatever pyarrow knows) from a folder."""
    return "://" in str(root)


def fetch(dataset: DatasetFiles, uri: str, folder: Path) -> None:
    """Copy a dataset's files from a bucket into a folder of this node, unless they are there.

    Other processes that want the same wait. A copy that breaks off leaves nothing that looks like a file of the
    dataset. What changes in the bucket later is not noticed: delete the folder then.

    Raises:
        DataNotFoundError: the bucket does not have them, or does not answer.
        ValueError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{dataset.name}.lock"):
            done = folder / f".{dataset.name}.fetched"
            if not done.exists():
                _copy(dataset, uri, folder)
                done.touch()
    except PermissionError as error:
        raise ValueError(
            f"the cache folder {folder} must be writable, got {error}; set ADAMSRT_CACHE_DIR to a folder that is"
        ) from error


def _copy(dataset: DatasetFiles, uri: str, folder: Path) -> None:
    names = [*dataset.entries, dataset.name]
    try:
        filesystem, base = FileSystem.from_uri(uri)
        infos: list[FileInfo] = filesystem.get_file_info([f"{base.rstrip('/')}/{name}" for name in names])
        found = [(info, name) for info, name in zip(infos, names, strict=True) if info.type != FileType.NotFound]
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as unfinished:
            for info, name in found:
                target = Path(unfinished) / name
                if info.type == FileType.Directory:
                    target.mkdir()
                copy_files(info.path, str(target), source_filesystem=filesystem)
            for _, name in found:
                (Path(unfinished) / name).replace(folder / name)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataNotFoundError(f"{dataset.name} could not be fetched from {uri} ({reason})") from error
    if not found:
        raise DataNotFoundError(
            f"{dataset.name} was not found: no {dataset.layout} and no {dataset.name}/train*.parquet with "
            f"test*.parquet in {uri}; put one of these there"
        )
