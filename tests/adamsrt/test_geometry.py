"""Groups, inner products and transport, each against its definition in NumPy float64."""

import numpy as np
import pytest
import reference
import torch

from adamsrt import geometry

SHAPE = (4, 3, 2, 5)
GROUPS = [None, [], [0], [1], [0, 1], [-1], [0, 1, 2, 3]]


def random_tensor(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ndim", "channel_dims", "channel_wise", "expected"),
    [
        (4, None, False, ()),
        (4, None, True, (1, 2, 3)),
        (4, [], True, (0, 1, 2, 3)),
        (4, [0, 1], True, (2, 3)),
        (4, (-1, 0), False, (1, 2)),
        (1, None, True, ()),
        (1, [], False, (0,)),
        (0, None, True, ()),
        (0, None, False, ()),
        (0, [], False, ()),
    ],
)
def test_summed_dims(ndim, channel_dims, channel_wise, expected):
    assert geometry.summed_dims(ndim, channel_dims=channel_dims, channel_wise=channel_wise) == expected


@pytest.mark.parametrize(
    ("channel_dims", "message"),
    [
        ([2], "must be dims of every parameter of the group, got .2. for one with 2 dims"),
        ([-3], "must be dims of every parameter"),
        ([0, 0], "must not repeat a dim, got .0, 0."),
        ([1, -1], "must not repeat a dim"),
        (0, "must be None or a list of integers, got 0"),
        ("01", "must be None or a list of integers"),
        ([0.0], "must be None or a list of integers"),
        ([True], "must be None or a list of integers"),
    ],
)
def test_bad_channel_dims(channel_dims, message):
    with pytest.raises(ValueError, match=f"^channel_dims {message}"):
        geometry.summed_dims(2, channel_dims=channel_dims, channel_wise=False)


@pytest.mark.parametrize("channel_dims", GROUPS)
def test_inner_and_group_size(channel_dims):
    x, y = random_tensor(0), random_tensor(1)
    dims = geometry.summed_dims(4, channel_dims=channel_dims, channel_wise=False)
    axes = reference.axes_of(4, channel_dims, channel_wise=False)
    expected = reference.dot(x.numpy(), y.numpy(), axes)
    result = geometry.inner(x, y, dims)
    assert result.shape == expected.shape == geometry.zeros_per_group(x, dims).shape
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-13, atol=1e-13)
    assert geometry.group_size(x, dims) * expected.size == x.numel()


def test_inner_sums_bfloat16_in_float32():
    x = torch.full((1, 4096), 1 + 2**-7, dtype=torch.bfloat16)
    result = geometry.inner(x, x, (1,))
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(4096 * (1 + 2**-7) ** 2, rel=1e-6)  # bfloat16 itself is off by 2e-3


@pytest.mark.parametrize("channel_dims", [[], [0], [0, 1], [2]])
def test_the_algebra_gives_the_inner_products_at_the_new_point(channel_dims):
    x, m = random_tensor(2), random_tensor(3)
    dims = geometry.summed_dims(4, channel_dims=channel_dims, channel_wise=False)
    a = random_tensor(4).abs().amax(dims, keepdim=True)
    M, N = geometry.inner_after_step(
        geometry.inner(x, x, dims), geometry.inner(m, x, dims), geometry.inner(m, m, dims), a
    )
    x_new = x - a * m
    np.testing.assert_allclose(M, geometry.inner(m, x_new, dims), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(N, geometry.inner(x_new, x_new, dims), rtol=1e-11, atol=1e-11)


def test_a_step_that_cancels_the_weights_never_gives_a_negative_square():
    x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
    A = geometry.inner(x, x, (1,))
    # m = 3 x and a = 1/3 give x' = 0: in float32 the unclamped N falls on both sides of zero.
    _, N = geometry.inner_after_step(A, 3 * A, geometry.inner(3 * x, 3 * x, (1,)), 1 / 3)
    assert (N >= 0).all()
    assert (A - A - (3 * A - geometry.inner(3 * x, 3 * x, (1,)) / 3) / 3 < 0).any()


@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.5])
@pytest.mark.parametrize("channel_dims", [[], [0], [0, 1]])
def test_transport_is_the_formula_and_orthogonal_to_the_new_weights(channel_dims, eps):
    x, m = random_tensor(5), random_tensor(6)
    dims = geometry.summed_dims(4, channel_dims=channel_dims, channel_wise=False)
    a = 0.3
    x_new = x - a * m
    M, N = geometry.inner(m, x_new, dims), geometry.inner(x_new, x_new, dims)
    expected = (geometry.inner(x, x_new, dims) * m - M * x) / (N + eps)
    transported = m.clone()
    geometry.transport_(transported, x_new, M, N, eps)
    np.testing.assert_allclose(transported, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(geometry.inner(transported, x_new, dims), 0, atol=1e-11)
    assert geometry.inner(m, x_new, dims).abs().min() > 1e-3  # it was not orthogonal before


def test_transport_of_a_dead_group_stays_zero():
    m, x = torch.zeros(2, 3), torch.zeros(2, 3)
    zero = torch.zeros(2, 1)
    geometry.transport_(m, x, zero, zero)
    assert (m == 0).all()


def test_rescale():
    v, A, N = torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([1.5])
    geometry.rescale_(v, A, N, 0.5)
    assert v.item() == 3.0


def test_geodesic_is_the_exponential_map_with_parallel_transport():
    y, m, dims = random_tensor(8), random_tensor(9), (1, 2, 3)
    y /= geometry.inner(y, y, dims).sqrt()
    m -= geometry.inner(m, y, dims) * y
    scale = torch.tensor([0.01, 0.1, 1.0, 0.0], dtype=torch.float64).view(4, 1, 1, 1)
    D = (-scale * m)[:3]
    length = D.pow(2).sum(dims, keepdim=True).sqrt()
    u = D / length
    expected_y = y[:3] * length.cos() + u * length.sin()
    expected_m = m[:3] - (m[:3] * u).sum(dims, keepdim=True) * (u * (1 - length.cos()) + y[:3] * length.sin())
    y_new, m_new = y.clone(), m.clone()
    geometry.follow_geodesic_(y_new, m_new, scale, dims)
    np.testing.assert_allclose(y_new[:3], expected_y, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(m_new[:3], expected_m, rtol=1e-11, atol=1e-12)
    assert torch.equal(y_new[3], y[3]) and torch.equal(m_new[3], m[3])  # no step, no turn
    x, m_of_x, norm = 3 * y, m.clone(), torch.full((4, 1, 1, 1), 3.0, dtype=torch.float64)
    geometry.follow_geodesic_(x, m_of_x, scale, dims, norm)
    np.testing.assert_allclose(x, y_new, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(m_of_x, m_new, rtol=1e-11, atol=1e-12)


def test_geodesic_without_momentum_stays():
    y = torch.tensor([[0.6, 0.8]])
    geometry.follow_geodesic_(y, torch.zeros(1, 2), torch.ones(1, 1), (1,))
    assert torch.equal(y, torch.tensor([[0.6, 0.8]]))
