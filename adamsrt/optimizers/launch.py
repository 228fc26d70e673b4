"""The launches of kernels on a table of tensors.

Needs Triton: imported only where a fused step is to be taken.
"""

# mypy: disable-error-code="import-untyped"

import contextlib
import functools
from collections.abc import Hashable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from adamsrt.optimizers import kernels
from adamsrt.optimizers.kernels import common

# 8 warps of at most 128 registers: two programs at a time on a multiprocessor, one loading while the other computes.
# Where all rows are short a program needs fewer registers, and with 4 warps many run at a time.
NUM_WARPS, NUM_WARPS_OF_SHORT, MAX_REGISTERS = 8, 4, 128
SHORT = 1024  # elements of a short row, and of a piece of what is read in pieces: long rows, tensors of single elements
LONG = {torch.float64: 2048}  # elements that fit into the registers: 8192 where not said otherwise
TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


# Kernels as compiled for a device. Triton looks for the right one at each launch, which takes longer than the launch;
# here all arguments of a kernel are tensors that torch has allocated, to which one compiled kernel fits.
_compiled: dict[Hashable, Any] = {}


def count(table: Tensor, numbers: Tensor, *, on_device: bool) -> None:
    """Launch the kernel that counts the steps of all tensors of a table and makes their bias corrections.

    Launches are for the current device, which has to be that of the table.
    """
    _launch("count", len(table), (table, numbers), on_device)


def update(
    kernel: str, table: Tensor, numbers: Tensor, tensor_of_program: Tensor, dtype: torch.dtype, *, is_short: bool
) -> None:
    """Launch a kernel that updates tensors of a table; is_short: it is one of rows, and none has more than SHORT."""
    _launch(kernel, len(tensor_of_program), (table, numbers, tensor_of_program), (dtype, is_short))


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the device of a tensor the current one while this is open."""
    is_elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if is_elsewhere else contextlib.nullcontext()


def _launch(name: str, programs: int, tensors: tuple[Tensor, ...], variant: Any) -> None:
    """Launch a kernel on the current stream.

    Args:
        tensors: its first arguments, not views of others. variant: what its constants follow from.
    """
    device, constants = tensors[0].device, constants_of(name, variant)
    compiled = _compiled.get((name, variant, device))
    if compiled is not None:
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        function, metadata = compiled.function, compiled.packed_metadata
        # None: no hooks around the launch
        compiled.run(programs, 1, 1, stream, function, metadata, None, None, None, *tensors, *constants.values())
        return
    compiled = getattr(kernels, name)[programs,](*tensors, **constants, **options_of(name, variant))
    if compiled is not None:  # the interpreter compiles nothing
        _compiled[name, variant, device] = compiled


@functools.cache
def constants_of(name: str, variant: Any) -> dict[str, Any]:
    """Give the constants of a kernel, in the order of its arguments."""
    if name == "count":
        return {"ON_DEVICE": variant}
    dtype, is_short = variant
    accumulate_in = torch.promote_types(dtype, torch.float32)
    return {
        "DTYPE": TYPES[dtype],
        "ACC": TYPES[accumulate_in],
        "TINY": torch.finfo(accumulate_in).tiny,
        "SHORT": SHORT,
        "LONG": SHORT if is_short else LONG.get(dtype, 8192),
    }


def options_of(name: str, variant: Any) -> dict[str, Any]:
    """Give what a kernel is compiled with."""
    if name == "count":
        return {"num_warps": 1, "enable_fp_fusion": True}
    _, is_short = variant
    num_warps = NUM_WARPS_OF_SHORT if is_short else NUM_WARPS
    return {"num_warps": num_warps, "maxnreg": MAX_REGISTERS, "enable_fp_fusion": True}


def try_out(kernel: str, device: torch.device) -> None:
    """Launch a kernel on a few elements; raises whatever Triton raises."""
    x, grad, m, v = (torch.ones(2, 4, device=device) for _ in range(4))
    line = [x.data_ptr(), grad.data_ptr(), m.data_ptr(), v.data_ptr(), 4, 0, 1, 0, 1, 0, 0]
    numbers = torch.full((1, common.NUMBERS.value), 0.5, dtype=torch.float64)
    numbers[:, [common.LOG_BETA1.value, common.LOG_BETA2.value]] = -1.0
    table, numbers = torch.tensor([line]).to(device), numbers.to(device)
    with on_device_of(table):
        for _ in range(2):  # the second time as compiled
            count(table, numbers, on_device=False)
            update(kernel, table, numbers, torch.zeros(2, dtype=torch.int32).to(device), x.dtype, is_short=True)
