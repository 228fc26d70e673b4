"""Trained weights as files: written by workers, read by whoever tests or publishes them. Any URI that pyarrow knows."""

import contextlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyarrow.fs import FileSystem

from tune_adamsrt.uris import below

if TYPE_CHECKING:  # whoever only names files does without torch
    from torch import Tensor


def weights_file(folder: str, number: int) -> str:
    """The path or URI of a trial's weights."""
    return below(folder, f"trial-{number}.pt")


def save_weights(file: str, weights: "Mapping[str, Tensor]") -> None:
    """Write a state dict, from whatever device; a file that is there is replaced. Raises OSError."""
    import torch

    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in weights.items()}, buffer)
    filesystem, path = FileSystem.from_uri(file)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(path) as stream:
        stream.write(buffer.getvalue())


def load_weights(file: str) -> "dict[str, Tensor]":
    """Read a state dict, to the CPU; runs no code from the file. Raises OSError."""
    return weights_of(read_bytes(file))


def read_bytes(file: str) -> bytes:
    """Read a file at a path or URI. Raises OSError."""
    filesystem, path = FileSystem.from_uri(file)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def weights_of(content: bytes) -> "dict[str, Tensor]":
    """Read a state dict from a file's content, to the CPU."""
    import torch

    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights


def remove_weights(file: str) -> None:
    """Remove weights that nobody needs; what cannot be removed only takes room."""
    with contextlib.suppress(OSError):
        filesystem, path = FileSystem.from_uri(file)
        filesystem.delete_file(path)
