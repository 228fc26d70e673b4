"""The step of AdamS and AdamSRT."""

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from adamsrt.optimizers.kernels.common import (
    DECAY,
    GRAD,
    RT,
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
def _adam_srt_a(v, d, eps, step_size, root2, ACC: tl.constexpr):
    """The factor of m: sqrt(d), because v sums over the d elements of a row."""
    return divide(step_size * root(d.to(ACC), ACC), divide(root(v, ACC), root2, ACC) + eps, ACC)


@triton.jit
def _adam_srt_row(
    x_row, grad_row, m_row, v_row, d, line, step_size, root2,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """A row that starts at a multiple of 16 bytes and has a multiple of 4 elements, BLOCK at most."""
    w1, beta2, w2, eps = averaging(line, ACC)
    decay, rt = number(line, DECAY, ACC), number(line, RT, ACC)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < d // 4 * 4  # says to the compiler that d is a multiple of 4
    x_at, grad_at, m_at = (
        tl.multiple_of(x_row + offsets, 16),
        tl.multiple_of(grad_row + offsets, 16),
        tl.multiple_of(m_row + offsets, 16),
    )
    x = tl.load(x_at, mask=mask, other=0.0).to(ACC)
    grad = tl.load(grad_at, mask=mask, other=0.0).to(ACC) + decay * x
    m = tl.load(m_at, mask=mask, other=0.0).to(ACC)
    m += (grad - m) * w1
    v = tl.load(v_row) * beta2 + tl.sum(grad * grad) * w2
    x_new = x - _adam_srt_a(v, d, eps, step_size, root2, ACC) * m
    if rt != 0:
        N = tl.sum(x_new * x_new)
        denominator = tl.maximum(N + eps, TINY)
        M = tl.sum(m * x_new)
        v *= divide(tl.sum(x * x), N + eps, ACC)
        m = m * divide(N, denominator, ACC) - x_new * divide(M, denominator, ACC)
    tl.store(x_at, x_new.to(x_at.dtype.element_ty), mask=mask)
    tl.store(m_at, m.to(m_at.dtype.element_ty), mask=mask)
    tl.store(v_row, v)


@triton.jit
def _adam_srt_long_row(
    x_row, grad_row, m_row, v_row, d, line, step_size, root2,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    w1, beta2, w2, eps = averaging(line, ACC)
    decay, rt = number(line, DECAY, ACC), number(line, RT, ACC)
    squares, A, B, C = (
        tl.zeros((BLOCK,), ACC),
        tl.zeros((BLOCK,), ACC),
        tl.zeros((BLOCK,), ACC),
        tl.zeros((BLOCK,), ACC),
    )
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = read(x_row, offsets, mask, ACC)
        grad = read(grad_row, offsets, mask, ACC) + decay * x
        m = read(m_row, offsets, mask, ACC)
        m += (grad - m) * w1
        squares += grad * grad
        A += x * x
        B += m * x
        C += m * m
    v = tl.load(v_row) * beta2 + tl.sum(squares) * w2
    a = _adam_srt_a(v, d, eps, step_size, root2, ACC)
    M = tl.sum(B) - a * tl.sum(C)
    N = tl.maximum(tl.sum(A) - a * (tl.sum(B) + M), 0.0)
    denominator = tl.maximum(N + eps, TINY)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = read(x_row, offsets, mask, ACC)
        grad = read(grad_row, offsets, mask, ACC) + decay * x
        m = read(m_row, offsets, mask, ACC)
        m += (grad - m) * w1
        x -= a * m
        if rt != 0:
            m = m * divide(N, denominator, ACC) - x * divide(M, denominator, ACC)
        write(x_row, offsets, mask, x)
        write(m_row, offsets, mask, m)
    if rt != 0:
        v *= divide(tl.sum(A), N + eps, ACC)
    tl.store(v_row, v)


@triton.jit
def adam_srt(
    table, numbers, tensor_of_program,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """AdamS (rt = 0) and AdamSRT (rt = 1); arXiv:2006.13382, Algorithm 1. v is of the type ACC."""
    tensor, row, d, is_aligned = place(table, tensor_of_program)
    line = line_of(table, numbers, tensor)
    x_row = point_to(table, tensor, X, row * d, DTYPE)
    grad_row = point_to(table, tensor, GRAD, row * d, DTYPE)
    m_row = point_to(table, tensor, M, row * d, DTYPE)
    v_row = point_to(table, tensor, V, row, ACC)
    d = d.to(tl.int32)
    step_size, root2 = bias_corrected(table, tensor, ACC)
    if is_aligned & (d <= SHORT):
        _adam_srt_row(x_row, grad_row, m_row, v_row, d, line, step_size, root2, SHORT, ACC, TINY)
    elif (LONG > SHORT) and (is_aligned & (d <= LONG)):
        _adam_srt_row(x_row, grad_row, m_row, v_row, d, line, step_size, root2, LONG, ACC, TINY)
    else:
        _adam_srt_long_row(x_row, grad_row, m_row, v_row, d, line, step_size, root2, SHORT, ACC, TINY)
