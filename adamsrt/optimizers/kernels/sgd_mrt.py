"""The step of SGD-MRT."""

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from adamsrt.optimizers.kernels.common import (
    GRAD,
    LR,
    SGD_DECAY,
    SGD_MOMENTUM,
    SGD_WEIGHT,
    M,
    X,
    divide,
    line_of,
    number,
    place,
    point_to,
    read,
    write,
)


@triton.jit
def _sgd_mrt_row(
    x_row, grad_row, b_row, d, momentum, weight, decay, lr,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """As the one of AdamSRT."""
    offsets = tl.arange(0, BLOCK)
    mask = offsets < d // 4 * 4
    x_at = tl.multiple_of(x_row + offsets, 16)
    grad_at = tl.multiple_of(grad_row + offsets, 16)
    b_at = tl.multiple_of(b_row + offsets, 16)
    x = tl.load(x_at, mask=mask, other=0.0).to(ACC)
    grad = tl.load(grad_at, mask=mask, other=0.0).to(ACC) + decay * x
    b = tl.load(b_at, mask=mask, other=0.0).to(ACC) * momentum + grad * weight
    x -= lr * b
    N = tl.sum(x * x)
    denominator = tl.maximum(N, TINY)
    b = b * divide(N, denominator, ACC) - x * divide(tl.sum(b * x), denominator, ACC)
    tl.store(x_at, x.to(x_at.dtype.element_ty), mask=mask)
    tl.store(b_at, b.to(b_at.dtype.element_ty), mask=mask)


@triton.jit
def _sgd_mrt_long_row(
    x_row, grad_row, b_row, d, momentum, weight, decay, lr,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    squares, products = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = read(x_row, offsets, mask, ACC)
        grad = read(grad_row, offsets, mask, ACC) + decay * x
        b = read(b_row, offsets, mask, ACC) * momentum + grad * weight
        x -= lr * b
        squares += x * x
        products += b * x
    N = tl.sum(squares)
    denominator = tl.maximum(N, TINY)
    shrink, slide = divide(N, denominator, ACC), divide(tl.sum(products), denominator, ACC)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = read(x_row, offsets, mask, ACC)
        grad = read(grad_row, offsets, mask, ACC) + decay * x
        b = read(b_row, offsets, mask, ACC) * momentum + grad * weight
        x -= lr * b
        write(x_row, offsets, mask, x)
        write(b_row, offsets, mask, b * shrink - x * slide)


@triton.jit
def sgd_mrt(
    table, numbers, tensor_of_program,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """SGD-MRT; arXiv:2006.13382. M is the column of its momentum b."""
    tensor, row, d, is_aligned = place(table, tensor_of_program)
    line = line_of(table, numbers, tensor)
    x_row = point_to(table, tensor, X, row * d, DTYPE)
    grad_row = point_to(table, tensor, GRAD, row * d, DTYPE)
    b_row = point_to(table, tensor, M, row * d, DTYPE)
    d = d.to(tl.int32)
    momentum = number(line, SGD_MOMENTUM, ACC)
    weight = number(line, SGD_WEIGHT, ACC)
    decay = number(line, SGD_DECAY, ACC)
    lr = number(line, LR, ACC)
    if is_aligned & (d <= SHORT):
        _sgd_mrt_row(x_row, grad_row, b_row, d, momentum, weight, decay, lr, SHORT, ACC, TINY)
    elif (LONG > SHORT) and (is_aligned & (d <= LONG)):
        _sgd_mrt_row(x_row, grad_row, b_row, d, momentum, weight, decay, lr, LONG, ACC, TINY)
    else:
        _sgd_mrt_long_row(x_row, grad_row, b_row, d, momentum, weight, decay, lr, SHORT, ACC, TINY)
