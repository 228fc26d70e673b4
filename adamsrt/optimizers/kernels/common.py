"""What the kernels share: where a row lies, the numbers of its parameter group, arithmetic that rounds correctly."""

# Triton runs these functions as source text: no annotations of types, no helpers in Python.
# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

# The table has one line of integers per tensor: addresses of the weights and of what belongs to them, the elements of a
# row (of the tensor, where a row is an element), its first program, its line of numbers, the steps that it has
# taken (capturable: the address of their counter), and what `count` leaves, as the bits of float64.
X, GRAD, M, V, SIZE, FIRST, IS_ALIGNED, LINE, STEP, STEP_SIZE, ROOT2 = (tl.constexpr(column) for column in range(11))
WIDTH = tl.constexpr(11)

# The numbers have one line of float64 per parameter group: the learning rate, then those of `numbers_of`. Logarithms
# are to the base 2, -inf for a beta of 0.
LR, W1, BETA2, W2, LOG_BETA1, LOG_BETA2, EPS, DECAY, RT = (tl.constexpr(column) for column in range(9))  # AdamLike
SGD_MOMENTUM, SGD_WEIGHT, SGD_DECAY = (tl.constexpr(column) for column in range(1, 4))  # SGDMRT
NUMBERS = tl.constexpr(9)


@triton.jit
def integer(table, tensor, column: tl.constexpr):
    return tl.load(table + tensor * WIDTH + column)


@triton.jit
def place(table, tensor_of_program):
    """Give what this program works on: the numbers of tensor and row, the row's size, and whether it is aligned."""
    program = tl.program_id(0)
    tensor = tl.load(tensor_of_program + program)
    row = program - integer(table, tensor, FIRST)
    return tensor, row, integer(table, tensor, SIZE), integer(table, tensor, IS_ALIGNED) != 0


@triton.jit
def line_of(table, numbers, tensor):
    """Point to the numbers of a tensor."""
    return numbers + integer(table, tensor, LINE) * NUMBERS


@triton.jit
def number(line, column: tl.constexpr, ACC: tl.constexpr):
    return tl.load(line + column).to(ACC)


@triton.jit
def averaging(line, ACC: tl.constexpr):
    """Give 1 - beta1, beta2, 1 - beta2 and eps."""
    return number(line, W1, ACC), number(line, BETA2, ACC), number(line, W2, ACC), number(line, EPS, ACC)


@triton.jit
def bias_corrected(table, tensor, ACC: tl.constexpr):
    """Give lr / (1 - beta1^step) and sqrt(1 - beta2^step), which `count` has left."""
    step_size = integer(table, tensor, STEP_SIZE).to(tl.float64, bitcast=True)
    root2 = integer(table, tensor, ROOT2).to(tl.float64, bitcast=True)
    return step_size.to(ACC), root2.to(ACC)


@triton.jit
def point_to(table, tensor, column: tl.constexpr, offset, DTYPE: tl.constexpr):
    """Point to an element of weights, gradient, state."""
    return integer(table, tensor, column).to(tl.pointer_type(DTYPE)) + offset


@triton.jit
def read(pointer, offsets, mask, ACC: tl.constexpr):
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(ACC)


@triton.jit
def write(pointer, offsets, mask, value):
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def divide(x, y, ACC: tl.constexpr):
    """x / y, correctly rounded, which `/` is in float64 only."""
    if ACC == tl.float32:  # noqa: SIM300
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def root(x, ACC: tl.constexpr):
    if ACC == tl.float32:  # noqa: SIM300
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)
