"""One launch of a kernel for the rows of many tensors: the table of pointers and numbers that it reads, the call.

Needs Triton: imported only where a fused step is to be taken.
"""

# mypy: disable-error-code="import-untyped"

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from adamsrt.optimizers import kernels
from adamsrt.optimizers.rows import Rows

# 8 warps of at most 128 registers: two programs at a time on a multiprocessor, one loading while the other computes.
NUM_WARPS, MAX_REGISTERS = 8, 128
SHORT = 1024  # elements of a short row, and of a piece of a row that is read in pieces
LONG = {torch.float64: 2048}  # elements that fit into the registers: 8192 where not said otherwise
TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
WIDTH, NUM_INTEGERS = kernels.WIDTH.value, kernels.NUM_INTEGERS.value

Column = Sequence[float] | Tensor

# Pinned memory that a captured graph copies from whenever it is replayed: it may outlive its optimizer.
_read_by_graphs: list[Tensor] = []


class Launcher:
    """Launches one kernel, step after step; keeps pinned memory for the next capture of a graph."""

    def __init__(self, name: str) -> None:
        self._kernel = getattr(kernels, name)
        self._for_capture: Tensor | None = None

    def __call__(self, rows: list[Rows], grads: list[Tensor], columns: list[Column]) -> None:
        """Update the rows, which are of one device and dtype.

        Args:
            grads: the gradient of each, in the shape of its rows.
            columns: the numbers of the kernel in its order, one per tensor each; tensors (n,) lie on the device.
        """
        x = rows[0].x
        host = torch.tensor(_lines(rows, grads, columns), dtype=torch.int64)
        table = self._on_device(host, x.device)
        numbers = table.view(torch.float64)
        for index, column in enumerate(columns):
            if isinstance(column, Tensor):
                numbers[:, NUM_INTEGERS + index] = column
        accumulate_in = torch.promote_types(x.dtype, torch.float32)
        counts = tuple(len(each.x) for each in rows)
        with torch.cuda.device(x.device) if x.is_cuda else torch.no_grad():
            self._kernel[(sum(counts),)](
                table,
                numbers,
                _tensor_of_row(counts, x.device),
                DTYPE=TYPES[x.dtype],
                ACC=TYPES[accumulate_in],
                TINY=torch.finfo(accumulate_in).tiny,
                SHORT=SHORT,
                LONG=LONG.get(x.dtype, 8192),
                num_warps=NUM_WARPS,
                maxnreg=MAX_REGISTERS,
                enable_fp_fusion=True,
            )

    def _on_device(self, host: Tensor, device: torch.device) -> Tensor:
        """Copy a table to the device without waiting for it."""
        if device.type == "cpu":
            return host
        table = torch.empty_like(host, device=device)
        if torch.cuda.is_current_stream_capturing():
            pinned, self._for_capture = self._for_capture, None
            if pinned is None or pinned.shape != host.shape:
                raise RuntimeError("a step must be taken before it is captured in a graph; warm up, then capture")
            _read_by_graphs.append(pinned.copy_(host))
            return table.copy_(pinned, non_blocking=True)
        if self._for_capture is None or self._for_capture.shape != host.shape:
            self._for_capture = torch.empty_like(host, pin_memory=True)
        return table.copy_(host.pin_memory(), non_blocking=True)


def _lines(rows: list[Rows], grads: list[Tensor], columns: list[Column]) -> list[list[int]]:
    """Make the lines of the table, numbers as the bits of a float64, 0 where the number is on the device."""
    on_host = [[0.0] * len(rows) if isinstance(column, Tensor) else column for column in columns]
    bits = torch.tensor(on_host, dtype=torch.float64).T.contiguous().view(torch.int64).tolist()
    lines, first_row = [], 0
    for each, grad, numbers in zip(rows, grads, bits, strict=True):
        r, d = each.x.shape
        v = 0 if each.v is None else each.v.data_ptr()
        pointers = [each.x.data_ptr(), grad.data_ptr(), each.m.data_ptr()]
        is_aligned = d % 4 == 0 and d * each.x.itemsize % 16 == 0 and all(pointer % 16 == 0 for pointer in pointers)
        line = [*pointers, v, d, first_row, int(is_aligned), *numbers]
        lines.append(line + [0] * (WIDTH - len(line)))
        first_row += r
    return lines


@functools.lru_cache(maxsize=64)
def _tensor_of_row(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Say for every row of all tensors, which have so many rows each, which tensor it is of."""
    tensors = torch.arange(len(counts), dtype=torch.int32)
    return tensors.repeat_interleave(torch.tensor(counts)).to(device)


def try_out(name: str, device: torch.device) -> None:
    """Launch a kernel on two rows; raises whatever Triton raises."""
    x, grad, m = (torch.ones(2, 4, device=device) for _ in range(3))
    number_of_numbers = WIDTH - NUM_INTEGERS
    numbers: list[Any] = [[1.0]] * number_of_numbers
    Launcher(name)([Rows(x, m, torch.ones(2, 1, device=device))], [grad], numbers)
