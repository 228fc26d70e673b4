"""Compile the kernels for a GPU of compute capability 9.0, and print what the machine code uses.

One line per kernel: name, warps, loads of 16 bytes, registers, bytes on the stack. Those of rows come for any length,
then for short ones only; `count` for step counters on the CPU, then on the device.

Triton brings its own assembler for NVIDIA GPUs.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adamsrt.optimizers import kernels, launch

TABLES = {"table": "*i64", "numbers": "*fp64"}


def show(name: str, variant: object, pointers: dict[str, str]) -> None:
    constants, options = launch.constants_of(name, variant), launch.options_of(name, variant)
    signature = pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(getattr(kernels, name), signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    loads = len(re.findall(r"ld\.global\.v4\.b32", compiled.asm["ptx"]))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
    print(name, options["num_warps"], loads, *re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])


for name, is_short in (
    *((name, is_short) for name in ("adam_srt", "sgd_mrt", "adam_g") for is_short in (False, True)),
    *((name, False) for name in ("adam", "sgd")),
):
    show(name, (torch.float32, is_short), {**TABLES, "tensor_of_program": "*i32"})
for on_device in (False, True):
    show("count", on_device, TABLES)
