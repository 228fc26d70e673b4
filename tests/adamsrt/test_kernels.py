"""The Triton kernels: by Triton's interpreter against the reference, and compiled for a GPU that need not be there."""

import pytest
import torch
from optimizer_steps import TOLERANCES
from triton_process import run

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("name", "modes"),
    [("adamsrt", []), ("adamsrt", ["short"]), ("sgdmrt", []), ("adamg", ["capturable"]), ("adamg", ["short"])],
)
def test_50_fused_steps_follow_the_reference(name, modes):
    error = float(run("interpreted_kernels.py", "reference", name, "float32", *modes, interpreted=True))
    assert 0 < error < TOLERANCES[torch.float32][name]


@pytest.mark.parametrize("name", ["adamsrt", "sgdmrt"])
def test_a_captured_step_serves_the_next_training_with_its_options(name):
    stale, written = map(float, run("interpreted_kernels.py", "replay", name, interpreted=True).split())
    assert stale > 0.01
    assert written == 0


def test_the_kernels_compile_for_a_gpu_and_stay_in_its_registers():
    lines = [line.split() for line in run("compiled_kernels.py", interpreted=False).splitlines()]
    rows = [(name, warps) for name in ("adam_srt", "sgd_mrt", "adam_g") for warps in ("8", "4")]
    assert [(name, warps) for name, warps, *_ in lines] == [
        *rows, ("adam", "8"), ("sgd", "8"), ("count", "1"), ("count", "1"),
    ]  # fmt: skip
    for name, warps, loads_of_16_bytes, registers, stack_bytes in lines:
        if (name, warps) in rows:
            assert int(loads_of_16_bytes) >= 3  # x, gradient and m
        assert int(registers) <= 128
        # programs at a time on a multiprocessor: two, of short rows five
        assert int(registers) * 32 * int(warps) * (5 if warps == "4" else 2) <= 65536
        # cos and sin put a few numbers on the stack for angles beyond any that occur here
        assert int(stack_bytes) <= (64 if name == "adam_g" else 0)
