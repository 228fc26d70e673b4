"""AdamS, AdamSRT, SGD-MRT and Adam-G: against the NumPy reference and by their properties."""

import numpy as np
import pytest
import reference
import torch
from optimizer_steps import GROUPED, GROUPS, REFERENCES, STATE_NAMES, TOLERANCES, assert_close, random_tensor, walk

from adamsrt.geometry import inner, summed_dims
from adamsrt.optimizers import SGDMRT, AdamG, AdamS, AdamSRT


@pytest.mark.parametrize("weight_decay", [0, 0.05])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "for-loop"])
def test_50_steps_follow_the_reference(name, groups, weight_decay, dtype, foreach):
    step, options = REFERENCES[name]
    x = random_tensor(1, dtype=dtype).requires_grad_()
    optimizer = GROUPED[name]([{"params": [x], **groups}], weight_decay=weight_decay, foreach=foreach, **options)
    axes = reference.axes_of(4, groups.get("channel_dims"), groups.get("channel_wise", False))
    expected, state = x.detach().double().numpy().copy(), {}
    for k in range(50):
        x.grad = random_tensor(100 + k, dtype=dtype)
        expected, state = step(
            expected, x.grad.double().numpy(), state, axes=axes, weight_decay=weight_decay, **options
        )
        optimizer.step()
    tolerance = TOLERANCES[dtype][name]
    assert_close(x.detach(), expected, tolerance)
    for key, value in state.items():
        if key != "k":
            result = optimizer.state[x][STATE_NAMES[key]]
            assert result.shape == value.shape  # so v is one value per group
            assert_close(result, value, tolerance)


def test_the_reference_covers_every_optimizer_with_groups():
    assert GROUPED.keys() == REFERENCES.keys()


def test_the_reference_tells_the_optimizers_apart():
    results = []
    for name, (step, options) in REFERENCES.items():
        x, state = random_tensor(1).numpy(), {}
        for k in range(3):
            x, state = step(x, random_tensor(100 + k).numpy(), state, axes=(1, 2, 3), weight_decay=0.1, **options)
        results.append(x)
        assert len({np.round(result, 6).tobytes() for result in results}) == len(results), name


# Properties


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0, 0.1])
@pytest.mark.parametrize("name", ["adams", "adamsrt", "adamg"])
def test_one_group_per_element_is_exactly_adam(name, weight_decay, dtype):
    ours, theirs = (random_tensor(1, dtype=dtype).requires_grad_() for _ in range(2))
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    walk(GROUPED[name]([ours], **options), ours, steps=20)
    walk(torch.optim.Adam([theirs], foreach=False, **options), theirs, steps=20)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("weight_decay", [0, 0.1])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_one_group_per_element_is_exactly_sgd(momentum, weight_decay):
    ours, theirs = (random_tensor(1).requires_grad_() for _ in range(2))
    options = {"lr": 0.01, "momentum": momentum, "weight_decay": weight_decay}
    walk(SGDMRT([ours], **options), ours, steps=20)
    walk(torch.optim.SGD([theirs], foreach=False, **options), theirs, steps=20)
    assert torch.equal(ours, theirs)


def test_dampening_acts_from_the_first_step_on():
    x = torch.zeros(3, requires_grad=True)
    x.grad = torch.ones(3)
    SGDMRT([x], lr=1.0, momentum=0.9, dampening=0.25).step()
    assert torch.equal(x.detach(), torch.full((3,), -0.75))


@pytest.mark.parametrize("channel_dims", [[], [0], [0, 1]])
@pytest.mark.parametrize("name", ["adamsrt", "sgdmrt", "adamg"])
def test_the_momentum_is_tangent_after_a_step(name, channel_dims):
    x = random_tensor(1).requires_grad_()
    optimizer = GROUPED[name]([x], lr=0.05, channel_dims=channel_dims, weight_decay=0.1)
    dims = summed_dims(4, channel_dims=channel_dims, channel_wise=False)
    for k in range(5):
        walk(optimizer, x, steps=1, first=k)
        m = optimizer.state[x].get("exp_avg", optimizer.state[x].get("momentum_buffer"))
        scale = (inner(m, m, dims) * inner(x.detach(), x.detach(), dims)).sqrt()
        assert (inner(m, x.detach(), dims).abs() <= 1e-14 * scale).all()


def test_adams_leaves_the_momentum_where_it_is():
    x = random_tensor(1).requires_grad_()
    optimizer = AdamS([x], lr=0.05, channel_wise=True)
    walk(optimizer, x, steps=3)
    assert inner(optimizer.state[x]["exp_avg"], x.detach(), (1, 2, 3)).abs().min() > 1e-4


@pytest.mark.parametrize("channel_dims", [[], [0], [0, 1]])
def test_adam_g_stays_on_the_unit_sphere_and_ignores_weight_decay(channel_dims):
    plain, decayed = (random_tensor(1).requires_grad_() for _ in range(2))
    walk(AdamG([plain], lr=0.1, channel_dims=channel_dims), plain, steps=10)
    walk(AdamG([decayed], lr=0.1, channel_dims=channel_dims, weight_decay=0.5), decayed, steps=10)
    dims = summed_dims(4, channel_dims=channel_dims, channel_wise=False)
    np.testing.assert_allclose(inner(plain.detach(), plain.detach(), dims), 1, rtol=1e-14)
    assert torch.equal(plain, decayed)


def walk_on_invariant_loss(optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    """Train on a loss that sees only the direction of each channel; give the last directions."""
    target = random_tensor(2)
    for k in range(30):
        optimizer.zero_grad()
        direction = x / x.pow(2).sum((1, 2, 3), keepdim=True).sqrt()
        ((direction - target).pow(2) * random_tensor(200 + k).abs()).sum().backward()
        optimizer.step()
    return (x / x.pow(2).sum((1, 2, 3), keepdim=True).sqrt()).detach()


def test_adamsrt_is_scale_equivariant():
    small, large = random_tensor(1).requires_grad_(), (7 * random_tensor(1)).requires_grad_()
    adamsrt_small = AdamSRT([small], lr=0.01, eps=0, channel_wise=True)
    adamsrt_large = AdamSRT([large], lr=0.07, eps=0, channel_wise=True)
    start = small.detach().clone()
    directions = walk_on_invariant_loss(adamsrt_small, small)
    np.testing.assert_allclose(walk_on_invariant_loss(adamsrt_large, large), directions, rtol=1e-9, atol=1e-9)
    assert (small.detach() - start).abs().max() > 0.1  # it did move


def test_rt_false_is_adams_and_differs_from_adamsrt():
    results = []
    for build in (AdamS, lambda params, **options: AdamSRT(params, rt=False, **options), AdamSRT):
        x = random_tensor(1).requires_grad_()
        walk(build([x], lr=0.05, channel_wise=True), x, steps=5)
        results.append(x.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e12])
@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_zeros_or_of_extreme_size_follows_the_for_loop(name, size):
    xs = [random_tensor(1, dtype=torch.float32) for _ in range(2)]
    for x in xs:
        x[0] *= size
    for x, foreach in zip(xs, (True, False), strict=True):
        optimizer = GROUPED[name]([x.requires_grad_()], lr=0.5, channel_wise=True, foreach=foreach)
        for k in range(3):
            x.grad = 100 * random_tensor(100 + k, dtype=torch.float32)
            optimizer.step()
        assert x.isfinite().all()
        assert all(value.isfinite().all() for value in optimizer.state[x].values())
    np.testing.assert_allclose(xs[0].detach(), xs[1].detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "for-loop"])
def test_a_group_of_zeros_without_a_gradient_stays_where_adam_g_scales_the_others(foreach):
    x = random_tensor(7)
    x[1] = 0
    direction = (x / torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)).nan_to_num()
    optimizer = AdamG([x.requires_grad_()], channel_wise=True, foreach=foreach)
    x.grad = torch.zeros_like(x)
    optimizer.step()
    np.testing.assert_allclose(x.detach(), direction, rtol=1e-14)


# Shapes, layouts and dtypes


@pytest.mark.parametrize("groups", [{}, {"channel_wise": True}, {"channel_dims": []}], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (5, 1)], ids=str)
@pytest.mark.parametrize("name", GROUPED)
def test_small_parameters_follow_the_reference(name, shape, groups):
    step, options = REFERENCES[name]
    x = random_tensor(1, shape).requires_grad_()
    optimizer = GROUPED[name]([{"params": [x], **groups}], weight_decay=0.1, **options)
    # For one element no option matters.
    channel_dims = groups.get("channel_dims") if x.numel() > 1 else list(range(x.ndim))
    axes = reference.axes_of(x.ndim, channel_dims, groups.get("channel_wise", False))
    expected, state = x.detach().numpy().copy(), {}
    for k in range(5):
        x.grad = random_tensor(100 + k, shape)
        expected, state = step(expected, x.grad.numpy(), state, axes=axes, weight_decay=0.1, **options)
        optimizer.step()
    np.testing.assert_allclose(x.detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", GROUPED)
def test_channels_last_gives_the_same_and_stays(name):
    dense = random_tensor(1).requires_grad_()
    strided = random_tensor(1).to(memory_format=torch.channels_last).requires_grad_()
    optimizer = GROUPED[name]([strided], lr=0.05, channel_wise=True)
    walk(GROUPED[name]([dense], lr=0.05, channel_wise=True), dense, steps=5)
    walk(optimizer, strided, steps=5)
    np.testing.assert_allclose(strided.detach(), dense.detach(), rtol=1e-11, atol=1e-12)
    assert strided.is_contiguous(memory_format=torch.channels_last)
    for key in ("exp_avg", "momentum_buffer"):
        if key in optimizer.state[strided]:
            assert optimizer.state[strided][key].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", GROUPED)
def test_bfloat16_stays_near_float64(name):
    exact = random_tensor(1, dtype=torch.bfloat16).double().requires_grad_()
    rounded = exact.detach().bfloat16().requires_grad_()
    optimizer = GROUPED[name]([rounded], lr=0.02, channel_wise=True)
    walk(GROUPED[name]([exact], lr=0.02, channel_wise=True), exact, steps=20)
    walk(optimizer, rounded, steps=20)
    assert rounded.dtype == torch.bfloat16
    # 20 roundings of 2^-9 each, against a path of 0.02 * 20 in units of a weight
    difference = (rounded.double() - exact).norm() / exact.norm()
    assert difference < 0.02
    if "exp_avg_sq" in optimizer.state[rounded]:
        assert optimizer.state[rounded]["exp_avg_sq"].dtype == torch.float32
