"""Adam and SGD for groups of a single element: a program for every SHORT elements of a tensor."""

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from adamsrt.optimizers.kernels.common import (
    DECAY,
    GRAD,
    LR,
    SGD_DECAY,
    SGD_MOMENTUM,
    SGD_WEIGHT,
    M,
    V,
    X,
    averaging,
    bias_corrected,
    divide,
    line_of,
    number,
    place,
    point_to,
    read,
    root,
    write,
)


@triton.jit
def adam(
    table, numbers, tensor_of_program,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Adam with L2 regularization, as in torch.optim. v is of the type of the weights."""
    tensor, chunk, size, _ = place(table, tensor_of_program)
    line = line_of(table, numbers, tensor)
    offsets = tl.arange(0, SHORT)
    mask = offsets < size - chunk * SHORT
    x_at = point_to(table, tensor, X, chunk * SHORT, DTYPE)
    m_at = point_to(table, tensor, M, chunk * SHORT, DTYPE)
    v_at = point_to(table, tensor, V, chunk * SHORT, DTYPE)
    x = read(x_at, offsets, mask, ACC)
    grad = read(point_to(table, tensor, GRAD, chunk * SHORT, DTYPE), offsets, mask, ACC)
    m = read(m_at, offsets, mask, ACC)
    v = read(v_at, offsets, mask, ACC)
    w1, beta2, w2, eps = averaging(line, ACC)
    step_size, root2 = bias_corrected(table, tensor, ACC)
    grad += number(line, DECAY, ACC) * x
    m += (grad - m) * w1
    v = v * beta2 + grad * grad * w2
    x -= divide(step_size * m, divide(root(v, ACC), root2, ACC) + eps, ACC)
    write(x_at, offsets, mask, x)
    write(m_at, offsets, mask, m)
    write(v_at, offsets, mask, v)


@triton.jit
def sgd(
    table, numbers, tensor_of_program,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """SGD with momentum and L2 regularization. M is the column of its momentum b."""
    tensor, chunk, size, _ = place(table, tensor_of_program)
    line = line_of(table, numbers, tensor)
    offsets = tl.arange(0, SHORT)
    mask = offsets < size - chunk * SHORT
    x_at = point_to(table, tensor, X, chunk * SHORT, DTYPE)
    b_at = point_to(table, tensor, M, chunk * SHORT, DTYPE)
    x = read(x_at, offsets, mask, ACC)
    grad = read(point_to(table, tensor, GRAD, chunk * SHORT, DTYPE), offsets, mask, ACC)
    grad += number(line, SGD_DECAY, ACC) * x
    b = read(b_at, offsets, mask, ACC) * number(line, SGD_MOMENTUM, ACC) + grad * number(line, SGD_WEIGHT, ACC)
    write(x_at, offsets, mask, x - number(line, LR, ACC) * b)
    write(b_at, offsets, mask, b)
