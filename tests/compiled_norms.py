"""Compile BatchNorm's kernels for a GPU of compute capability 9.0, and print what the machine code uses.

One line per kernel: name, loads that are not of 16 bytes, registers, bytes on the stack; for few channels, then for
many. `compiled_kernels.py` does the same for the optimizers.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adamsrt import fused_norm, norm_kernels

IMAGES = ("x", "other", "y", "grad_y", "grad_x", "grad_other")
NUMBERS = {"rows": "i32", "channels": "i32", "pieces": "i32", "momentum": "fp32", "eps": "fp32"}


def show(name: str, constants: dict[str, int]) -> None:
    function = getattr(norm_kernels, name)
    types = NUMBERS | dict.fromkeys(IMAGES, "*bf16") | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "*fp32") for argument in function.arg_names}
    aligned = [signature[each].startswith("*") or each == "channels" for each in function.arg_names]
    attributes = {(i,): [["tt.divisibility", 16]] for i, is_aligned in enumerate(aligned) if is_aligned}
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=fused_norm.HOW)
    loads = re.findall(r"ld\.global\S*", compiled.asm["ptx"])
    narrow = sum(".v4" not in load for load in loads)
    assert loads
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
    print(name, narrow, *re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])


for channels in (16, 64):
    of_moments, tile = (
        fused_norm._tile(channels, fused_norm.TILE_OF_MOMENTS),
        fused_norm._tile(channels, fused_norm.TILE),
    )
    show("moments", of_moments)
    for adds, relu in ((False, False), (False, True), (True, True)):
        options = tile | {"ADDS": adds, "RELU": relu}
        pieces = {"PIECES": fused_norm.MOST_PIECES}
        show("normalize", options | pieces | {"LANES_OF_PIECES": of_moments["LANES"]})
        show("grad_sums", options)
        show("gradients", options | pieces)
