"""State of tiny parameters, side by side in memory: what lies together need not be copied together."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements of a parameter whose state has neighbours: biases, and weights of normalization layers. The memory of a state
# that is dropped is free once its neighbours are, so that it must not be much.
TINY = 1 << 7
SHELF = 1 << 11  # elements that are allocated at a time


class Neighbours:
    """Where the state of tiny parameters is made."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, torch.dtype], Tensor] = {}

    def zeros_like(self, x: Tensor, name: str) -> Tensor:
        """Make the state of this name for a parameter: zeros of its shape, dtype, device and memory format.

        That of tiny parameters on the CPU follows that of this name which was made last.
        """
        if x.ndim != 1 or x.numel() > TINY or x.device.type != "cpu":
            return torch.zeros_like(x, memory_format=torch.preserve_format)
        free = self._free.get((name, x.dtype), x[:0])
        if len(free) < len(x):
            free = torch.zeros(SHELF, dtype=x.dtype)
        self._free[name, x.dtype] = free[len(x) :]
        return free[: len(x)]


def shared_memory(tensor: Tensor) -> int:
    """Tell the memories apart that tensors share with others; 0 for one that fills its own."""
    storage = tensor.untyped_storage()
    return 0 if storage.nbytes() == tensor.nbytes else storage.data_ptr()


def joined(rows: Sequence[Tensor]) -> Tensor | None:
    """View contiguous tensors as one of one dim; None where one of them does not begin where the last one ends."""
    first = rows[0]
    end, memory = first.data_ptr(), first.untyped_storage().data_ptr()
    for each in rows:
        if each.data_ptr() != end or each.untyped_storage().data_ptr() != memory:
            return None
        end += each.nbytes
    return first.as_strided((sum(each.numel() for each in rows),), (1,))
