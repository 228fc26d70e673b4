"""AdamS, AdamSRT, SGD-MRT and Adam-G: against the NumPy reference, by their properties, and as torch optimizers."""

import copy
import io
import math
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from torch import nn

import adamsrt
from adamsrt.geometry import inner, summed_dims
from adamsrt.optimizers import OPTIMIZERS, SGDMRT, AdamG, AdamS, AdamSRT, build_optimizer

GROUPED = {name: entry.build for name, entry in OPTIMIZERS.items() if entry.uses_groups}
# For every optimizer with groups: the NumPy step, and options that exercise all of its terms.
REFERENCES = {
    "adams": (
        lambda *args, **options: reference.adam_srt(*args, rt=False, **options),
        {"lr": 3e-3, "betas": (0.8, 0.99)},
    ),
    "adamsrt": (reference.adam_srt, {"lr": 3e-3, "betas": (0.8, 0.99)}),
    "adamg": (reference.adam_g, {"lr": 3e-3, "betas": (0.8, 0.99)}),
    "sgdmrt": (reference.sgd_mrt, {"lr": 3e-2, "momentum": 0.9, "dampening": 0.3}),
}
STATE_NAMES = {"m": "exp_avg", "v": "exp_avg_sq", "b": "momentum_buffer"}
GROUPS = {
    "per element": {},
    "channel-wise": {"channel_wise": True},
    "whole tensor": {"channel_dims": []},
    "two dims": {"channel_dims": [0, 1]},
    "last dim": {"channel_dims": [-1], "channel_wise": True},
}
SHAPE = (6, 4, 3, 3)


def random_tensor(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def walk(optimizer: torch.optim.Optimizer, x: torch.Tensor, *, steps: int, first: int = 0) -> None:
    """Take steps with gradients that depend on the step and on x, so that every error grows visible."""
    for k in range(first, first + steps):
        x.grad = random_tensor(100 + k, tuple(x.shape), x.dtype) + 0.5 * x.detach()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0, 0.05])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_50_steps_follow_the_reference(name, groups, weight_decay, dtype, tolerance):
    step, options = REFERENCES[name]
    x = random_tensor(1, dtype=dtype).requires_grad_()
    optimizer = GROUPED[name]([{"params": [x], **groups}], weight_decay=weight_decay, **options)
    axes = reference.axes_of(4, groups.get("channel_dims"), groups.get("channel_wise", False))
    expected, state = x.detach().double().numpy().copy(), {}
    for k in range(50):
        x.grad = random_tensor(100 + k, dtype=dtype)
        expected, state = step(
            expected, x.grad.double().numpy(), state, axes=axes, weight_decay=weight_decay, **options
        )
        optimizer.step()
    assert_close(x.detach(), expected, tolerance)
    for key, value in state.items():
        if key != "k":
            result = optimizer.state[x][STATE_NAMES[key]]
            assert result.shape == value.shape  # so v is one value per group
            assert_close(result, value, tolerance)


def assert_close(result: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(result.double().numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max())


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


# Behaviour as torch's own optimizers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_gradient_is_skipped(name):
    used, unused = random_tensor(1).requires_grad_(), random_tensor(2).requires_grad_()
    optimizer = OPTIMIZERS[name].build([used, unused], lr=0.1)
    used.grad = random_tensor(3)
    optimizer.step()
    assert torch.equal(unused.detach(), random_tensor(2))
    assert not optimizer.state[unused]
    assert not torch.equal(used.detach(), random_tensor(1))


@pytest.mark.parametrize("name", GROUPED)
def test_a_sparse_gradient_is_refused(name):
    embedding = nn.Embedding(4, 3, sparse=True)
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="needs dense gradients, got a sparse one"):
        GROUPED[name](embedding.parameters()).step()
    assert torch.equal(embedding.weight.detach(), before)


@pytest.mark.parametrize("groups", [{}, {"channel_wise": True}], ids=str)
@pytest.mark.parametrize("name", GROUPED)
def test_the_gradient_stays_as_it_was(name, groups):
    x = random_tensor(1).requires_grad_()
    x.grad = grad = random_tensor(2)
    GROUPED[name]([x], weight_decay=0.1, **groups).step()
    assert x.grad is grad
    assert torch.equal(grad, random_tensor(2))


@pytest.mark.parametrize("name", GROUPED)
def test_step_takes_a_closure_with_gradients_enabled_and_gives_its_loss(name):
    x = random_tensor(1).requires_grad_()
    optimizer = GROUPED[name]([x], lr=0.01, channel_wise=True)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (x - random_tensor(2)).pow(2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx((random_tensor(1) - random_tensor(2)).pow(2).sum().item())
    assert optimizer.step() is None
    assert not torch.equal(x.detach(), random_tensor(1))


@pytest.mark.parametrize("name", GROUPED)
def test_an_added_group_is_trained_with_its_own_options(name):
    first, second, alone = (random_tensor(1).requires_grad_() for _ in range(3))
    optimizer = GROUPED[name]([first], lr=0.01)
    optimizer.add_param_group({"params": [second], "lr": 0.02, "channel_dims": [0, 1]})
    for k in range(3):
        first.grad = second.grad = random_tensor(100 + k)
        optimizer.step()
    other = GROUPED[name]([alone], lr=0.02, channel_dims=[0, 1])
    for k in range(3):
        alone.grad = random_tensor(100 + k)
        other.step()
    assert torch.equal(second, alone)
    assert not torch.equal(first, alone)


def test_groups_serve_several_optimizers():
    groups = [{"params": [random_tensor(1).requires_grad_()], "channel_wise": True}]
    AdamSRT(groups, lr=0.001, betas=(0.9, 0.99), weight_decay=1e-4)
    assert groups[0].keys() == {"params", "channel_wise"}
    assert SGDMRT(groups, lr=0.01, momentum=0.9).param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("name", GROUPED)
def test_channel_dims_wins_over_channel_wise_at_both_levels(name):
    x = random_tensor(1).requires_grad_()
    for options, groups in [
        ({"channel_wise": True, "channel_dims": [1]}, {}),
        ({"channel_dims": [1]}, {"channel_wise": True}),
        ({"channel_wise": True}, {"channel_dims": [1]}),
    ]:
        optimizer = GROUPED[name]([{"params": [x], **groups}], **options)
        expected = GROUPED[name]([y := x.detach().clone().requires_grad_()], channel_dims=[1])
        before = x.detach().clone()
        walk(optimizer, x, steps=2)
        walk(expected, y, steps=2)
        assert torch.equal(x, y)
        x.data.copy_(before)


def save_and_load(state_dict: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("name", GROUPED)
def test_save_load_continue_is_bitwise_an_uninterrupted_run(name, groups, dtype):
    x = random_tensor(1, dtype=dtype).requires_grad_()
    optimizer = GROUPED[name]([{"params": [x], **groups}], lr=0.02, weight_decay=0.1)
    walk(optimizer, x, steps=3)
    resumed = x.detach().clone().requires_grad_()
    other = GROUPED[name]([resumed])
    other.load_state_dict(save_and_load(optimizer.state_dict()))
    walk(optimizer, x, steps=3, first=3)
    walk(other, resumed, steps=3, first=3)
    assert torch.equal(x, resumed)
    for key, value in optimizer.state[x].items():
        assert torch.equal(value, other.state[resumed][key])
        assert value.dtype == other.state[resumed][key].dtype


@pytest.mark.parametrize("name", GROUPED)
def test_pickle_and_deepcopy_continue_the_same(name):
    x = random_tensor(1).requires_grad_()
    optimizer = GROUPED[name]([x], lr=0.02, channel_wise=True)
    walk(optimizer, x, steps=2)
    copies = [pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)]
    walk(optimizer, x, steps=2, first=2)
    for other in copies:
        (y,) = other.param_groups[0]["params"]
        walk(other, y, steps=2, first=2)
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", GROUPED)
def test_state_moves_to_the_device_of_the_parameter_but_the_counter_stays(name):
    # The meta device stands for a GPU: loading casts state by the same rules for every device.
    x = random_tensor(1).requires_grad_()
    optimizer = GROUPED[name]([x], channel_wise=True)
    walk(optimizer, x, steps=1)
    moved = torch.empty(SHAPE, device="meta", requires_grad=True)
    other = GROUPED[name]([moved])
    other.load_state_dict(optimizer.state_dict())
    for key, value in other.state[moved].items():
        assert value.device.type == ("cpu" if key == "step" else "meta")
        assert value.dtype == torch.float32
        assert value.shape == optimizer.state[x][key].shape


def test_a_state_dict_from_before_an_option_existed_takes_its_default():
    x = random_tensor(1).requires_grad_()
    theirs = torch.optim.Adam([x], foreach=False)
    walk(theirs, x, steps=2)
    y = x.detach().clone().requires_grad_()
    ours = AdamSRT([y])
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    walk(theirs, x, steps=2, first=2)
    walk(ours, y, steps=2, first=2)
    assert torch.equal(x, y)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["float", "tensor"])
@pytest.mark.parametrize("name", GROUPED)
def test_schedulers_change_the_step(name, lr):
    x, y = (random_tensor(1).requires_grad_() for _ in range(2))
    optimizer = GROUPED[name]([x], lr=copy.deepcopy(lr), channel_wise=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2], gamma=0.1)
    other = GROUPED[name]([y], lr=0.1, channel_wise=True)
    for k in range(4):
        other.param_groups[0]["lr"] = 0.1 if k < 2 else 0.1 * 0.1
        walk(optimizer, x, steps=1, first=k)
        walk(other, y, steps=1, first=k)
        scheduler.step()
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.01)
    np.testing.assert_allclose(x.detach(), y.detach(), rtol=1e-12)


@pytest.mark.parametrize("name", GROUPED)
def test_one_cycle_finds_the_momentum_to_cycle(name):
    x = random_tensor(1).requires_grad_()
    options = {"momentum": 0.9} if name == "sgdmrt" else {}
    optimizer = GROUPED[name]([x], **options)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    walk(optimizer, x, steps=1)
    scheduler.step()
    group = optimizer.param_groups[0]
    assert (group["momentum"] if name == "sgdmrt" else group["betas"][0]) != 0.9
    walk(optimizer, x, steps=1, first=1)


@pytest.mark.parametrize("name", GROUPED)
def test_grad_scaler_unscales_and_skips_overflow(name):
    scaled, plain = (random_tensor(1, dtype=torch.float32).requires_grad_() for _ in range(2))
    target = random_tensor(2, dtype=torch.float32)
    optimizer = GROUPED[name]([scaled], lr=0.02, channel_wise=True)
    other = GROUPED[name]([plain], lr=0.02, channel_wise=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        for x, optimizer_of_x in ((scaled, optimizer), (plain, other)):
            optimizer_of_x.zero_grad()
            loss = (x - target).pow(2).sum()
            (scaler.scale(loss) if x is scaled else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        other.step()
    np.testing.assert_allclose(scaled.detach(), plain.detach(), rtol=1e-5, atol=1e-6)
    before = scaled.detach().clone()
    optimizer.zero_grad()
    scaler.scale((scaled * math.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(scaled, before)
    assert scaler.get_scale() == 2.0**9


# Errors


BAD_OPTIONS = [
    ({"lr": -1}, "lr must be finite and >= 0, got -1"),
    ({"lr": math.nan}, "lr must be finite and >= 0, got nan"),
    ({"lr": math.inf}, "lr must be finite and >= 0, got inf"),
    ({"lr": None}, "lr must be a number finite and >= 0, got None"),
    ({"lr": torch.tensor([0.1, 0.1])}, "lr must have one element, got a tensor of shape (2,)"),
    ({"weight_decay": -0.1}, "weight_decay must be finite and >= 0, got -0.1"),
    ({"channel_dims": [4]}, "channel_dims must be dims of every parameter of the group, got [4] for one with 4 dims"),
    ({"channel_dims": [0, -4]}, "channel_dims must not repeat a dim, got [0, -4] for a parameter with 4 dims"),
    ({"channel_dims": 0}, "channel_dims must be None or a list of integers, got 0"),
    ({"channel_wise": 1}, "channel_wise must be True or False, got 1"),
]
BAD_ADAM_OPTIONS = [
    ({"betas": (1.0, 0.999)}, "betas[0] must be in [0, 1), got 1.0"),
    ({"betas": (0.9, -0.1)}, "betas[1] must be in [0, 1), got -0.1"),
    ({"betas": (0.9, "x")}, "betas[1] must be a number in [0, 1), got 'x'"),
    ({"betas": (0.9,)}, "betas must be a pair of numbers in [0, 1), got (0.9,)"),
    ({"betas": 0.9}, "betas must be a pair of numbers in [0, 1), got 0.9"),
    ({"eps": -1e-8}, "eps must be finite and >= 0, got -1e-08"),
]
BAD_SGD_OPTIONS = [
    ({"momentum": -0.1}, "momentum must be in [0, 1), got -0.1"),
    ({"momentum": 1.5}, "momentum must be in [0, 1), got 1.5"),
    ({"dampening": 2}, "dampening must be in [0, 1], got 2"),
]
BAD_CASES = [
    (name, options, message)
    for name in GROUPED
    for options, message in BAD_OPTIONS + (BAD_SGD_OPTIONS if name == "sgdmrt" else BAD_ADAM_OPTIONS)
]


@pytest.mark.parametrize(("name", "options", "message"), BAD_CASES, ids=lambda value: str(value))
def test_a_bad_option_is_refused_at_every_door(name, options, message):
    x, y = random_tensor(1).requires_grad_(), random_tensor(2).requires_grad_()
    optimizer = GROUPED[name]([x])
    doors = [
        lambda: GROUPED[name]([x], **options),
        lambda: GROUPED[name]([{"params": [x], **options}]),
        lambda: optimizer.add_param_group({"params": [y], **options}),
    ]
    for door in doors:
        with pytest.raises(ValueError) as caught:
            door()
        assert str(caught.value) == message
    assert len(optimizer.param_groups) == 1  # the refused group is not left behind


@pytest.mark.parametrize("name", GROUPED)
def test_complex_parameters_are_refused(name):
    with pytest.raises(ValueError, match="real floating-point tensors, got "):
        GROUPED[name]([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])


# By name


class ModelWithGroups(nn.Module):
    """A model that names its own groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def conv_params(self) -> list[nn.Parameter]:
        return [self.conv.weight]

    def other_params(self) -> list[nn.Parameter]:
        return list(self.norm.parameters())


def test_the_registered_names():
    assert set(OPTIMIZERS) == {"adams", "adamsrt", "adamw", "adam", "adamg", "sgd", "sgdmrt"}
    assert set(GROUPED) == {"adams", "adamsrt", "adamg", "sgdmrt"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_build_optimizer(name):
    entry = OPTIMIZERS[name]
    values = {"lr": 0.05, "betas": [0.8, 0.9], "momentum": 0.7, "weight_decay": 0.01}
    hyper_parameters = {key: values[key] for key in entry.hyper_parameters}
    optimizer = build_optimizer(name, ModelWithGroups(), **hyper_parameters)
    assert type(optimizer) is entry.build
    for group in optimizer.param_groups:
        for key, value in hyper_parameters.items():
            assert group[key] == (tuple(value) if key == "betas" else value)
    if entry.uses_groups:
        assert [group["channel_wise"] for group in optimizer.param_groups] == [True, False]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


def test_build_optimizer_finds_the_groups_of_a_model_that_names_none():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.BatchNorm2d(3))
    optimizer = build_optimizer("adamsrt", model, lr=0.1)
    assert [group["channel_dims"] for group in optimizer.param_groups] == [[1], None]


@pytest.mark.parametrize(("name", "option"), [("adamsrt", "momentum"), ("sgd", "betas"), ("adam", "learning_rate")])
def test_build_optimizer_names_the_valid_hyper_parameters(name, option):
    with pytest.raises(
        ValueError, match=f"hyper-parameters of {name} must be among lr, .*, weight_decay, got {option}"
    ):
        build_optimizer(name, ModelWithGroups(), **{option: 0.5})


def test_build_optimizer_with_an_unknown_name():
    with pytest.raises(ValueError, match="unknown optimizer 'adamrst'; did you mean 'adamsrt'"):
        build_optimizer("adamrst", ModelWithGroups())


def test_the_package_exports_the_optimizers_and_its_version():
    assert adamsrt.AdamSRT is AdamSRT and adamsrt.AdamS is AdamS
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert adamsrt.__version__ == project["version"]
