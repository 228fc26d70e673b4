"""The launches of kernels on a table of tensors.

Needs Triton: imported only where a fused step is to be taken.
"""

# mypy: disable-error-code="import-untyped"

import contextlib

import torch
import triton.language as tl
from torch import Tensor

from adamsrt.optimizers import kernels
from adamsrt.optimizers.kernels import common

# 8 warps of at most 128 registers: two programs at a time on a multiprocessor, one loading while the other computes.
NUM_WARPS, MAX_REGISTERS = 8, 128
SHORT = 1024  # elements of a short row, and of a piece of what is read in pieces: long rows, tensors of single elements
LONG = {torch.float64: 2048}  # elements that fit into the registers: 8192 where not said otherwise
TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def count(table: Tensor, numbers: Tensor, *, on_device: bool) -> None:
    """Launch the kernel that counts the steps of all tensors of a table and makes their bias corrections."""
    with _on_device_of(table):
        kernels.count[(len(table),)](table, numbers, ON_DEVICE=on_device, num_warps=1, enable_fp_fusion=True)


def update(kernel: str, table: Tensor, numbers: Tensor, tensor_of_program: Tensor, dtype: torch.dtype) -> None:
    """Launch a kernel that updates tensors of a table."""
    accumulate_in = torch.promote_types(dtype, torch.float32)
    with _on_device_of(table):
        getattr(kernels, kernel)[(len(tensor_of_program),)](
            table,
            numbers,
            tensor_of_program,
            DTYPE=TYPES[dtype],
            ACC=TYPES[accumulate_in],
            TINY=torch.finfo(accumulate_in).tiny,
            SHORT=SHORT,
            LONG=LONG.get(dtype, 8192),
            num_warps=NUM_WARPS,
            maxnreg=MAX_REGISTERS,
            enable_fp_fusion=True,
        )


def _on_device_of(table: Tensor) -> contextlib.AbstractContextManager[None]:
    return torch.cuda.device(table.device) if table.is_cuda else contextlib.nullcontext()


def try_out(kernel: str, device: torch.device) -> None:
    """Launch a kernel on a few elements; raises whatever Triton raises."""
    x, grad, m, v = (torch.ones(2, 4, device=device) for _ in range(4))
    line = [x.data_ptr(), grad.data_ptr(), m.data_ptr(), v.data_ptr(), 4, 0, 1, 0, 1, 0, 0]
    numbers = torch.full((1, common.NUMBERS.value), 0.5, dtype=torch.float64)
    numbers[:, [common.LOG_BETA1.value, common.LOG_BETA2.value]] = -1.0
    table, numbers = torch.tensor([line]).to(device), numbers.to(device)
    count(table, numbers, on_device=False)
    update(kernel, table, numbers, torch.zeros(2, dtype=torch.int32).to(device), x.dtype)
