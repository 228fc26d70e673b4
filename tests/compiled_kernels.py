"""Compile the kernels for a GPU of compute capability 9.0, and print what the machine code uses.

One line per kernel: name, loads of 16 bytes, registers, bytes on the stack. `count` comes twice, for step counters on
the CPU and on the device.

Triton brings its own assembler for NVIDIA GPUs.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adamsrt.optimizers import kernels, launch

CONSTANTS = {"DTYPE": tl.float32, "ACC": tl.float32, "TINY": 2.0**-126, "SHORT": launch.SHORT, "LONG": 8192}
TABLES = {"table": "*i64", "numbers": "*fp64"}
OPTIONS = {"num_warps": launch.NUM_WARPS, "maxnreg": launch.MAX_REGISTERS, "enable_fp_fusion": True}


def show(name: str, pointers: dict[str, str], constants: dict[str, object], options: dict[str, object]) -> None:
    signature = pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(getattr(kernels, name), signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    loads = len(re.findall(r"ld\.global\.v4\.b32", compiled.asm["ptx"]))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
    print(name, loads, *re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])


for name in ("adam_srt", "sgd_mrt", "adam_g", "adam", "sgd"):
    show(name, {**TABLES, "tensor_of_program": "*i32"}, CONSTANTS, OPTIONS)
for on_device in (False, True):
    show("count", TABLES, {"ON_DEVICE": on_device}, {"num_warps": 1, "enable_fp_fusion": True})
