"""The step of Adam-G."""

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from adamsrt.optimizers.kernels.common import (
    GRAD,
    M,
    V,
    X,
    averaging,
    bias_corrected,
    divide,
    line_of,
    place,
    point_to,
    read,
    root,
    write,
)


@triton.jit
def _adam_g_turn(
    v, squares, eps, step_size, root2, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """The turn along the geodesic, of an angle that v and <m, m> = squares give: its cosine, sine and |m|."""
    length = root(squares, ACC)
    angle = divide(step_size, divide(root(v, ACC), root2, ACC) + eps, ACC) * length
    return tl.cos(angle), tl.sin(angle), length, tl.maximum(length, TINY)


@triton.jit
def _adam_g_row(
    x_row, grad_row, m_row, v_row, d, line, step_size, root2,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """As the one of AdamSRT."""
    w1, beta2, w2, eps = averaging(line, ACC)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < d // 4 * 4
    x_at = tl.multiple_of(x_row + offsets, 16)
    grad_at = tl.multiple_of(grad_row + offsets, 16)
    m_at = tl.multiple_of(m_row + offsets, 16)
    y = tl.load(x_at, mask=mask, other=0.0).to(ACC)
    grad = tl.load(grad_at, mask=mask, other=0.0).to(ACC)
    m = tl.load(m_at, mask=mask, other=0.0).to(ACC)
    y = y * divide(1.0, tl.maximum(root(tl.sum(y * y), ACC), TINY), ACC)
    grad -= tl.sum(y * grad) * y  # the part that is tangent at y
    m += (grad - m) * w1
    v = tl.load(v_row) * beta2 + tl.sum(grad * grad) * w2
    cos, sin, length, divisor = _adam_g_turn(v, tl.sum(m * m), eps, step_size, root2, ACC, TINY)
    x_new = y * cos - m * divide(sin, divisor, ACC)
    m = m * cos + y * (length * sin)
    tl.store(x_at, x_new.to(x_at.dtype.element_ty), mask=mask)
    tl.store(m_at, m.to(m_at.dtype.element_ty), mask=mask)
    tl.store(v_row, v)


@triton.jit
def _adam_g_long_row(
    x_row, grad_row, m_row, v_row, d, line, step_size, root2,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    w1, beta2, w2, eps = averaging(line, ACC)
    squares, products = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = read(x_row, offsets, mask, ACC)
        squares += x * x
        products += x * read(grad_row, offsets, mask, ACC)
    shrink = divide(1.0, tl.maximum(root(tl.sum(squares), ACC), TINY), ACC)
    along = tl.sum(products) * shrink
    squares, products = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        grad = read(grad_row, offsets, mask, ACC) - along * (read(x_row, offsets, mask, ACC) * shrink)
        m = read(m_row, offsets, mask, ACC)
        m += (grad - m) * w1
        squares += grad * grad
        products += m * m
    v = tl.load(v_row) * beta2 + tl.sum(squares) * w2
    cos, sin, length, divisor = _adam_g_turn(v, tl.sum(products), eps, step_size, root2, ACC, TINY)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        y = read(x_row, offsets, mask, ACC) * shrink
        grad = read(grad_row, offsets, mask, ACC) - along * y
        m = read(m_row, offsets, mask, ACC)
        m += (grad - m) * w1
        write(x_row, offsets, mask, y * cos - m * divide(sin, divisor, ACC))
        write(m_row, offsets, mask, m * cos + y * (length * sin))
    tl.store(v_row, v)


@triton.jit
def adam_g(
    table, numbers, tensor_of_program,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Adam-G; arXiv:1709.09603. v is of the type ACC."""
    tensor, row, d, is_aligned = place(table, tensor_of_program)
    line = line_of(table, numbers, tensor)
    x_row = point_to(table, tensor, X, row * d, DTYPE)
    grad_row = point_to(table, tensor, GRAD, row * d, DTYPE)
    m_row = point_to(table, tensor, M, row * d, DTYPE)
    v_row = point_to(table, tensor, V, row, ACC)
    d = d.to(tl.int32)
    step_size, root2 = bias_corrected(table, tensor, ACC)
    if is_aligned & (d <= SHORT):
        _adam_g_row(x_row, grad_row, m_row, v_row, d, line, step_size, root2, SHORT, ACC, TINY)
    elif (LONG > SHORT) and (is_aligned & (d <= LONG)):
        _adam_g_row(x_row, grad_row, m_row, v_row, d, line, step_size, root2, LONG, ACC, TINY)
    else:
        _adam_g_long_row(x_row, grad_row, m_row, v_row, d, line, step_size, root2, SHORT, ACC, TINY)
