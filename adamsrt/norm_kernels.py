"""BatchNorm, what is added to it, and ReLU as Triton kernels: two launches forward and two backward.

Images are (rows, channels) in memory, as channels_last has them: a row for every place of every image. The first kernel
of a pass gives each program a piece of the rows and leaves sums of the piece; every program of the second adds these up
by itself. So nothing waits for anything, and sums have one order: the same bits every time. Arithmetic is in float32,
rounded once to the type of the images.
"""

# Triton runs these functions as source text: no annotations of types, no helpers in Python.
# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, for tests


@triton.jit
def piece_of(rows, piece, pieces, LANES: tl.constexpr):
    """Give the first row of a piece and the one after its last: whole tiles of LANES rows, the same for each piece."""
    length = tl.cdiv(tl.cdiv(rows, pieces), LANES) * LANES
    first = piece * length
    return first, tl.minimum(first + length, rows)


@triton.jit
def channels_of(channels, COLUMNS: tl.constexpr):
    """Give the channels that this program works on, and which of them there are."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return columns, columns < channels


@triton.jit
def tile_at(start, last, columns, is_channel, channels, LANES: tl.constexpr):
    """Give the places in memory of a tile from a row on, and which of them there are."""
    rows = start + tl.arange(0, LANES)
    return rows[:, None] * channels + columns[None, :], (rows < last)[:, None] & is_channel[None, :]


@triton.jit
def partials_at(partials, pieces, columns, is_channel, channels, PIECES: tl.constexpr):
    """Read both sums of all pieces, (PIECES, COLUMNS) each; 0 beyond the last piece."""
    piece = tl.arange(0, PIECES)
    places = partials + piece[:, None] * (2 * channels) + columns[None, :]
    mask = (piece < pieces)[:, None] & is_channel[None, :]
    return tl.load(places, mask=mask, other=0.0), tl.load(places + channels, mask=mask, other=0.0)


@triton.jit
def write_partials(partials, columns, is_channel, channels, first, second):
    places = partials + tl.program_id(0) * (2 * channels) + columns
    tl.store(places, first, mask=is_channel)
    tl.store(places + channels, second, mask=is_channel)


@triton.jit
def per_channel(pointer, columns, is_channel):
    return tl.load(pointer + columns, mask=is_channel, other=0.0).to(tl.float32)


@triton.jit
def normalized(x, mean, scale, shift):
    return (x - mean[None, :]) * scale[None, :] + shift[None, :]


@triton.jit(do_not_specialize=["rows"])
def moments(x, partials, rows, channels, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Leave the mean of every channel in this program's piece, and its sum of squared deviations from that.

    By Welford's algorithm, each lane for itself, and Chan's to put lanes together: a mean far from 0 costs no digits.
    """
    columns, is_channel = channels_of(channels, COLUMNS)
    first, last = piece_of(rows, tl.program_id(0), tl.num_programs(0), LANES)
    means = tl.zeros((LANES, COLUMNS), tl.float32)
    squares = tl.zeros((LANES, COLUMNS), tl.float32)
    steps = 0.0
    for start in range(first, last, LANES):
        places, mask = tile_at(start, last, columns, is_channel, channels, LANES)
        value = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        steps += 1.0
        delta = tl.where(mask, value - means, 0.0)
        means += delta * (1.0 / steps)
        squares += delta * (value - means)
    # a lane has a row in every tile, but for the piece's last one
    counts = tl.maximum((last - first - tl.arange(0, LANES) + LANES - 1) // LANES, 0).to(tl.float32)
    mean = tl.sum(means * counts[:, None], 0) / tl.maximum(last - first, 1).to(tl.float32)
    deviations = means - mean[None, :]
    write_partials(
        partials, columns, is_channel, channels, mean, tl.sum(squares + counts[:, None] * deviations * deviations, 0)
    )


@triton.jit(do_not_specialize=["rows", "pieces"])
def normalize(
    x, other, y, partials, weight, bias, running_mean, running_var, saved,
    rows, channels, pieces, momentum, eps,
    LANES: tl.constexpr, COLUMNS: tl.constexpr, PIECES: tl.constexpr, LANES_OF_PIECES: tl.constexpr,
    ADDS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Write y = relu((x - mean) / sqrt(var + eps) * weight + bias + other), and keep mean and 1 / sqrt(var + eps).

    Running statistics as torch's: the variance that they take in is divided by rows - 1.
    """
    columns, is_channel = channels_of(channels, COLUMNS)
    piece = tl.arange(0, PIECES)
    first, last = piece_of(rows, piece, pieces, LANES_OF_PIECES)
    counts = tl.where(piece < pieces, tl.maximum(last - first, 0), 0).to(tl.float32)[:, None]
    means, squares = partials_at(partials, pieces, columns, is_channel, channels, PIECES)
    mean = tl.sum(counts * means, 0) / rows.to(tl.float32)
    deviations = means - mean[None, :]
    square = tl.sum(squares + counts * deviations * deviations, 0)
    inverse = tl.rsqrt(square / rows.to(tl.float32) + eps)
    if tl.program_id(0) == 0:
        tl.store(saved + columns, mean, mask=is_channel)
        tl.store(saved + channels + columns, inverse, mask=is_channel)
        old_mean = per_channel(running_mean, columns, is_channel)
        old_var = per_channel(running_var, columns, is_channel)
        var = square / (rows - 1).to(tl.float32)
        tl.store(running_mean + columns, (1.0 - momentum) * old_mean + momentum * mean, mask=is_channel)
        tl.store(running_var + columns, (1.0 - momentum) * old_var + momentum * var, mask=is_channel)
    scale = per_channel(weight, columns, is_channel) * inverse
    shift = per_channel(bias, columns, is_channel)
    first, last = piece_of(rows, tl.program_id(0), tl.num_programs(0), LANES)
    for start in range(first, last, LANES):
        places, mask = tile_at(start, last, columns, is_channel, channels, LANES)
        value = normalized(tl.load(x + places, mask=mask, other=0.0).to(tl.float32), mean, scale, shift)
        if ADDS:
            value += tl.load(other + places, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(value <= 0.0, 0.0, value)  # and not their maximum: NaN stays, as in torch
        tl.store(y + places, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def grad_before_relu(
    grad_y, x, y, places, mask, mean, scale, shift, ADDS: tl.constexpr, RELU: tl.constexpr
):  # fmt: skip
    """Give the gradient of what ReLU took, and x less its mean. y is read only where it is needed."""
    grad = tl.load(grad_y + places, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        if ADDS:
            output = tl.load(y + places, mask=mask, other=0.0).to(tl.float32)
        else:
            output = normalized(value, mean, scale, shift)
        grad = tl.where(output <= 0.0, 0.0, grad)
    return grad, value - mean[None, :]


@triton.jit(do_not_specialize=["rows"])
def grad_sums(
    grad_y, x, y, partials, weight, bias, saved, rows, channels,
    LANES: tl.constexpr, COLUMNS: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Leave the sums over this program's piece that the gradients of bias and weight are made of."""
    columns, is_channel = channels_of(channels, COLUMNS)
    mean = per_channel(saved, columns, is_channel)
    inverse = per_channel(saved + channels, columns, is_channel)
    scale = per_channel(weight, columns, is_channel) * inverse
    shift = per_channel(bias, columns, is_channel)
    sums = tl.zeros((LANES, COLUMNS), tl.float32)
    products = tl.zeros((LANES, COLUMNS), tl.float32)
    first, last = piece_of(rows, tl.program_id(0), tl.num_programs(0), LANES)
    for start in range(first, last, LANES):
        places, mask = tile_at(start, last, columns, is_channel, channels, LANES)
        grad, centered = grad_before_relu(grad_y, x, y, places, mask, mean, scale, shift, ADDS, RELU)
        grad = tl.where(mask, grad, 0.0)
        sums += grad
        products += grad * centered
    write_partials(partials, columns, is_channel, channels, tl.sum(sums, 0), tl.sum(products, 0) * inverse)


@triton.jit(do_not_specialize=["rows", "pieces"])
def gradients(
    grad_y, x, y, grad_x, grad_other, partials, weight, bias, grad_weight, grad_bias, saved,
    rows, channels, pieces,
    LANES: tl.constexpr, COLUMNS: tl.constexpr, PIECES: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Write the gradients of x, weight and bias, and of what was added."""
    columns, is_channel = channels_of(channels, COLUMNS)
    sums, products = partials_at(partials, pieces, columns, is_channel, channels, PIECES)
    sum_of_grads, sum_of_products = tl.sum(sums, 0), tl.sum(products, 0)
    if tl.program_id(0) == 0:
        tl.store(grad_bias + columns, sum_of_grads, mask=is_channel)
        tl.store(grad_weight + columns, sum_of_products, mask=is_channel)
    mean = per_channel(saved, columns, is_channel)
    inverse = per_channel(saved + channels, columns, is_channel)
    scale = per_channel(weight, columns, is_channel) * inverse
    shift = per_channel(bias, columns, is_channel)
    mean_of_grads = sum_of_grads / rows.to(tl.float32)
    slope = sum_of_products / rows.to(tl.float32) * inverse
    first, last = piece_of(rows, tl.program_id(0), tl.num_programs(0), LANES)
    for start in range(first, last, LANES):
        places, mask = tile_at(start, last, columns, is_channel, channels, LANES)
        grad, centered = grad_before_relu(grad_y, x, y, places, mask, mean, scale, shift, ADDS, RELU)
        if ADDS:
            tl.store(grad_other + places, grad.to(grad_other.dtype.element_ty), mask=mask)
        value = scale[None, :] * (grad - mean_of_grads[None, :] - centered * slope[None, :])
        tl.store(grad_x + places, value.to(grad_x.dtype.element_ty), mask=mask)
