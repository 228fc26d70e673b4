"""The steps of Adam-like optimizers are counted, and their bias corrections made, before the weights are updated."""

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from adamsrt.optimizers.kernels.common import (
    LOG_BETA1,
    LOG_BETA2,
    LR,
    ROOT2,
    STEP,
    STEP_SIZE,
    WIDTH,
    integer,
    line_of,
    point_to,
)


@triton.jit
def count(table, numbers, ON_DEVICE: tl.constexpr):
    """Leave lr / (1 - beta1^step) and sqrt(1 - beta2^step) in the table: a program for every tensor.

    In float64, as in float32 half of the digits of 1 - 0.999 are lost; and here, as it would keep every row waiting.
    With ON_DEVICE the counter is a float32 on the device; else it is in the table. It is raised by one.
    """
    tensor = tl.program_id(0)
    line = line_of(table, numbers, tensor)
    if ON_DEVICE:
        step = (tl.atomic_add(point_to(table, tensor, STEP, 0, tl.float32), 1.0) + 1.0).to(tl.float64)
    else:
        count = integer(table, tensor, STEP) + 1
        tl.store(table + tensor * WIDTH + STEP, count)
        step = count.to(tl.float64)
    correction1 = 1.0 - tl.exp2(step * tl.load(line + LOG_BETA1))
    correction2 = 1.0 - tl.exp2(step * tl.load(line + LOG_BETA2))
    step_size = tl.load(line + LR) / correction1
    tl.store(table + tensor * WIDTH + STEP_SIZE, step_size.to(tl.int64, bitcast=True))
    tl.store(table + tensor * WIDTH + ROOT2, tl.sqrt(correction2).to(tl.int64, bitcast=True))
