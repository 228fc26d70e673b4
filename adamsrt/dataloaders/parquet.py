"""Reads Hugging Face style Parquet: a struct column {bytes, path} of encoded images and a column of labels."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from adamsrt.dataloaders.images import ImageSet
from adamsrt.dataloaders.loader import DataCorruptError, DataNotFoundError

IMAGE_COLUMNS = ("img", "image")


def read_parquet(
    files: Sequence[Path], image_shape: tuple[int, int, int], label_columns: Sequence[str], num_classes: int
) -> ImageSet:
    """Decode the shards of one part of a dataset, in the order given.

    Args:
        image_shape: (3, H, W), the size that every image must have. label_columns: the first one present is taken.
    Raises:
        DataCorruptError, DataNotFoundError: name the file, and the row where one is wrong.
    """
    _check_shards(files)
    images, labels = zip(*(_read_shard(file, image_shape, label_columns, num_classes) for file in files), strict=True)
    return ImageSet(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))


def _check_shards(files: Sequence[Path]) -> None:
    """Raise where shards named like train-00000-of-00002.parquet are not all there."""
    for file in files:
        named = re.search(r"-of-(\d+)\.parquet$", file.name)
        if named and len(files) != int(named[1]):
            raise DataNotFoundError(
                f"{file.name} needs {int(named[1])} shards, got {len(files)} in {file.parent}; add them"
            )


def _read_shard(
    file: Path, image_shape: tuple[int, int, int], label_columns: Sequence[str], num_classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            image_column = _choose_column(file, parquet.schema_arrow.names, IMAGE_COLUMNS)
            label_column = _choose_column(file, parquet.schema_arrow.names, label_columns)
            table = parquet.read([image_column, label_column])
        labels = table[label_column].cast(pa.int64()).to_pylist()
        encoded = pc.struct_field(table[image_column], "bytes").to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataCorruptError(f"{file} must be a whole Parquet file: {_first_line(error)}; replace it") from error
    if not labels:
        raise DataCorruptError(f"{file} must hold at least 1 image, got 0; replace it")
    images = np.empty((len(labels), *image_shape), np.uint8)
    for row, (content, label) in enumerate(zip(encoded, labels, strict=True)):
        if label is None or not 0 <= label < num_classes:
            raise DataCorruptError(f"{file} row {row}: {label_column} must be in 0..{num_classes - 1}, got {label}")
        images[row] = _decode(file, row, content, image_shape)
    return images, np.asarray(labels, np.int64)


def _choose_column(file: Path, names: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise DataCorruptError(f"{file} must have a column {' or '.join(wanted)}, got {', '.join(names)}")


def _decode(file: Path, row: int, content: bytes | None, image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Decode one image to uint8 (3, H, W)."""
    if content is None:
        raise DataCorruptError(f"{file} row {row}: the image must have bytes, got none; store the files inside")
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # every decoder of PIL has its own exceptions for a damaged file
        raise DataCorruptError(f"{file} row {row}: the image must be decodable: {_first_line(error)}") from error
    _, height, width = image_shape
    if pixels.shape != (height, width, 3):
        raise DataCorruptError(
            f"{file} row {row}: images must be {width}x{height}, got {pixels.shape[1]}x{pixels.shape[0]}"
        )
    return pixels.transpose(2, 0, 1)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
