"""The steps as Triton kernels: one launch for all rows of a device, one program for each row.

A program reads its row of weights, gradient and momentum once and writes weights and momentum once, 20 bytes per
parameter in float32. Rows that are too long for the registers, or not aligned, are read twice (AdamG: three times), the
second time from a cache. `launch` makes the table that says where the rows lie.
"""

# Triton runs these functions as source text: no annotations of types, no helpers in Python.
# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, for tests

# The table has one line per tensor: these integers, then the numbers of the kernel as float64.
X, GRAD, M, V, SIZE, FIRST_ROW, IS_ALIGNED = (tl.constexpr(column) for column in range(7))
NUM_INTEGERS = tl.constexpr(7)
WIDTH = tl.constexpr(16)


@triton.jit
def _integer(table, tensor, column: tl.constexpr):
    return tl.load(table + tensor * WIDTH + column)


@triton.jit
def _place(table, tensor_of_row):
    """Give what this program works on: the numbers of tensor and row, the row's size, and whether it is aligned."""
    program = tl.program_id(0)
    tensor = tl.load(tensor_of_row + program)
    row = program - _integer(table, tensor, FIRST_ROW)
    return tensor, row, _integer(table, tensor, SIZE), _integer(table, tensor, IS_ALIGNED) != 0


@triton.jit
def _number(numbers, tensor, column: tl.constexpr, ACC: tl.constexpr):
    return tl.load(numbers + tensor * WIDTH + NUM_INTEGERS + column).to(ACC)


@triton.jit
def _row(table, tensor, column: tl.constexpr, offset, DTYPE: tl.constexpr):
    """Point to the first element of a row of weights, gradient or momentum."""
    return _integer(table, tensor, column).to(tl.pointer_type(DTYPE)) + offset


@triton.jit
def _read(pointer, offsets, mask, ACC: tl.constexpr):
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(ACC)


@triton.jit
def _write(pointer, offsets, mask, value):
    tl.store(pointer + offsets, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _divide(x, y, ACC: tl.constexpr):
    """x / y, correctly rounded, which `/` is in float64 only."""
    if ACC == tl.float32:  # noqa: SIM300
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def _root(x, ACC: tl.constexpr):
    if ACC == tl.float32:  # noqa: SIM300
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def _adam_srt_a(v, d, eps, step_size, root2, ACC: tl.constexpr):
    """The factor of m: sqrt(d), because v sums over the d elements of a row."""
    return _divide(step_size * _root(d.to(ACC), ACC), _divide(_root(v, ACC), root2, ACC) + eps, ACC)


@triton.jit
def _adam_srt_row(
    x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, decay, step_size, root2, rt,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """A row that starts at a multiple of 16 bytes and has a multiple of 4 elements, BLOCK at most."""
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
        v *= _divide(tl.sum(x * x), N + eps, ACC)
        m = m * _divide(N, denominator, ACC) - x_new * _divide(M, denominator, ACC)
    tl.store(x_at, x_new.to(x_at.dtype.element_ty), mask=mask)
    tl.store(m_at, m.to(m_at.dtype.element_ty), mask=mask)
    tl.store(v_row, v)


@triton.jit
def _adam_srt_long_row(
    x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, decay, step_size, root2, rt,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    squares, A, B, C = (
        tl.zeros((BLOCK,), ACC),
        tl.zeros((BLOCK,), ACC),
        tl.zeros((BLOCK,), ACC),
        tl.zeros((BLOCK,), ACC),
    )
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = _read(x_row, offsets, mask, ACC)
        grad = _read(grad_row, offsets, mask, ACC) + decay * x
        m = _read(m_row, offsets, mask, ACC)
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
        x = _read(x_row, offsets, mask, ACC)
        grad = _read(grad_row, offsets, mask, ACC) + decay * x
        m = _read(m_row, offsets, mask, ACC)
        m += (grad - m) * w1
        x -= a * m
        if rt != 0:
            m = m * _divide(N, denominator, ACC) - x * _divide(M, denominator, ACC)
        _write(x_row, offsets, mask, x)
        _write(m_row, offsets, mask, m)
    if rt != 0:
        v *= _divide(tl.sum(A), N + eps, ACC)
    tl.store(v_row, v)


@triton.jit
def adam_srt(
    table, numbers, tensor_of_row,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """AdamS (rt = 0) and AdamSRT (rt = 1); arXiv:2006.13382, Algorithm 1. v is of the type ACC."""
    tensor, row, d, is_aligned = _place(table, tensor_of_row)
    x_row = _row(table, tensor, X, row * d, DTYPE)
    grad_row = _row(table, tensor, GRAD, row * d, DTYPE)
    m_row = _row(table, tensor, M, row * d, DTYPE)
    v_row = _row(table, tensor, V, row, ACC)
    d = d.to(tl.int32)
    w1 = _number(numbers, tensor, 0, ACC)
    beta2 = _number(numbers, tensor, 1, ACC)
    w2 = _number(numbers, tensor, 2, ACC)
    eps = _number(numbers, tensor, 3, ACC)
    decay = _number(numbers, tensor, 4, ACC)
    step_size = _number(numbers, tensor, 5, ACC)
    root2 = _number(numbers, tensor, 6, ACC)
    rt = _number(numbers, tensor, 7, ACC)
    if is_aligned & (d <= SHORT):
        _adam_srt_row(
            x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, decay, step_size, root2, rt, SHORT, ACC, TINY
        )  # fmt: skip
    elif is_aligned & (d <= LONG):
        _adam_srt_row(
            x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, decay, step_size, root2, rt, LONG, ACC, TINY
        )  # fmt: skip
    else:
        _adam_srt_long_row(
            x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, decay, step_size, root2, rt, SHORT, ACC, TINY
        )  # fmt: skip


@triton.jit
def _sgd_mrt_row(
    x_row, grad_row, b_row, d, momentum, weight, decay, lr,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """As `_adam_srt_row`."""
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
    b = b * _divide(N, denominator, ACC) - x * _divide(tl.sum(b * x), denominator, ACC)
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
        x = _read(x_row, offsets, mask, ACC)
        grad = _read(grad_row, offsets, mask, ACC) + decay * x
        b = _read(b_row, offsets, mask, ACC) * momentum + grad * weight
        x -= lr * b
        squares += x * x
        products += b * x
    N = tl.sum(squares)
    denominator = tl.maximum(N, TINY)
    shrink, slide = _divide(N, denominator, ACC), _divide(tl.sum(products), denominator, ACC)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = _read(x_row, offsets, mask, ACC)
        grad = _read(grad_row, offsets, mask, ACC) + decay * x
        b = _read(b_row, offsets, mask, ACC) * momentum + grad * weight
        x -= lr * b
        _write(x_row, offsets, mask, x)
        _write(b_row, offsets, mask, b * shrink - x * slide)


@triton.jit
def sgd_mrt(
    table, numbers, tensor_of_row,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """SGD-MRT; arXiv:2006.13382. M is the column of its momentum b."""
    tensor, row, d, is_aligned = _place(table, tensor_of_row)
    x_row = _row(table, tensor, X, row * d, DTYPE)
    grad_row = _row(table, tensor, GRAD, row * d, DTYPE)
    b_row = _row(table, tensor, M, row * d, DTYPE)
    d = d.to(tl.int32)
    momentum = _number(numbers, tensor, 0, ACC)
    weight = _number(numbers, tensor, 1, ACC)
    decay = _number(numbers, tensor, 2, ACC)
    lr = _number(numbers, tensor, 3, ACC)
    if is_aligned & (d <= SHORT):
        _sgd_mrt_row(x_row, grad_row, b_row, d, momentum, weight, decay, lr, SHORT, ACC, TINY)
    elif is_aligned & (d <= LONG):
        _sgd_mrt_row(x_row, grad_row, b_row, d, momentum, weight, decay, lr, LONG, ACC, TINY)
    else:
        _sgd_mrt_long_row(x_row, grad_row, b_row, d, momentum, weight, decay, lr, SHORT, ACC, TINY)


@triton.jit
def _adam_g_turn(v, squares, eps, step_size, correction2, ACC: tl.constexpr, TINY: tl.constexpr):
    """The turn along the geodesic, of an angle that v and <m, m> = squares give: its cosine, sine and |m|."""
    length = _root(squares, ACC)
    angle = _divide(step_size, _root(_divide(v, correction2, ACC), ACC) + eps, ACC) * length
    return tl.cos(angle), tl.sin(angle), length, tl.maximum(length, TINY)


@triton.jit
def _adam_g_row(
    x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, step_size, correction2,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """As `_adam_srt_row`."""
    offsets = tl.arange(0, BLOCK)
    mask = offsets < d // 4 * 4
    x_at = tl.multiple_of(x_row + offsets, 16)
    grad_at = tl.multiple_of(grad_row + offsets, 16)
    m_at = tl.multiple_of(m_row + offsets, 16)
    y = tl.load(x_at, mask=mask, other=0.0).to(ACC)
    grad = tl.load(grad_at, mask=mask, other=0.0).to(ACC)
    m = tl.load(m_at, mask=mask, other=0.0).to(ACC)
    y = y * _divide(1.0, tl.maximum(_root(tl.sum(y * y), ACC), TINY), ACC)
    grad -= tl.sum(y * grad) * y  # the part that is tangent at y
    m += (grad - m) * w1
    v = tl.load(v_row) * beta2 + tl.sum(grad * grad) * w2
    cos, sin, length, divisor = _adam_g_turn(v, tl.sum(m * m), eps, step_size, correction2, ACC, TINY)
    x_new = y * cos - m * _divide(sin, divisor, ACC)
    m = m * cos + y * (length * sin)
    tl.store(x_at, x_new.to(x_at.dtype.element_ty), mask=mask)
    tl.store(m_at, m.to(m_at.dtype.element_ty), mask=mask)
    tl.store(v_row, v)


@triton.jit
def _adam_g_long_row(
    x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, step_size, correction2,
    BLOCK: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    squares, products = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        x = _read(x_row, offsets, mask, ACC)
        squares += x * x
        products += x * _read(grad_row, offsets, mask, ACC)
    shrink = _divide(1.0, tl.maximum(_root(tl.sum(squares), ACC), TINY), ACC)
    along = tl.sum(products) * shrink
    squares, products = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        grad = _read(grad_row, offsets, mask, ACC) - along * (_read(x_row, offsets, mask, ACC) * shrink)
        m = _read(m_row, offsets, mask, ACC)
        m += (grad - m) * w1
        squares += grad * grad
        products += m * m
    v = tl.load(v_row) * beta2 + tl.sum(squares) * w2
    cos, sin, length, divisor = _adam_g_turn(v, tl.sum(products), eps, step_size, correction2, ACC, TINY)
    for start in range(0, d, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < d
        y = _read(x_row, offsets, mask, ACC) * shrink
        grad = _read(grad_row, offsets, mask, ACC) - along * y
        m = _read(m_row, offsets, mask, ACC)
        m += (grad - m) * w1
        _write(x_row, offsets, mask, y * cos - m * _divide(sin, divisor, ACC))
        _write(m_row, offsets, mask, m * cos + y * (length * sin))
    tl.store(v_row, v)


@triton.jit
def adam_g(
    table, numbers, tensor_of_row,
    DTYPE: tl.constexpr, ACC: tl.constexpr, TINY: tl.constexpr, SHORT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Adam-G; arXiv:1709.09603. v is of the type ACC."""
    tensor, row, d, is_aligned = _place(table, tensor_of_row)
    x_row = _row(table, tensor, X, row * d, DTYPE)
    grad_row = _row(table, tensor, GRAD, row * d, DTYPE)
    m_row = _row(table, tensor, M, row * d, DTYPE)
    v_row = _row(table, tensor, V, row, ACC)
    d = d.to(tl.int32)
    w1 = _number(numbers, tensor, 0, ACC)
    beta2 = _number(numbers, tensor, 1, ACC)
    w2 = _number(numbers, tensor, 2, ACC)
    eps = _number(numbers, tensor, 3, ACC)
    step_size = _number(numbers, tensor, 4, ACC)
    correction2 = _number(numbers, tensor, 5, ACC)
    if is_aligned & (d <= SHORT):
        _adam_g_row(
            x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, step_size, correction2, SHORT, ACC, TINY
        )  # fmt: skip
    elif is_aligned & (d <= LONG):
        _adam_g_row(
            x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, step_size, correction2, LONG, ACC, TINY
        )  # fmt: skip
    else:
        _adam_g_long_row(
            x_row, grad_row, m_row, v_row, d, w1, beta2, w2, eps, step_size, correction2, SHORT, ACC, TINY
        )  # fmt: skip
