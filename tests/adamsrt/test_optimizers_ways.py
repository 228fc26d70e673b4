"""The ways to compute a step: which one is taken, that they agree, and what they cost in memory."""

import copy
import gc
import weakref

import numpy as np
import pytest
import reference
import torch
from optimizer_steps import GROUPED, REFERENCES, TOLERANCES, assert_close, random_tensor, walk
from torch.profiler import ProfilerActivity, profile

from adamsrt.optimizers import AdamSRT, blocks
from adamsrt.optimizers.rows import has_rows
from adamsrt.optimizers.ways import LARGEST_FUSED_GROUP, Way, way_to_take

# Shapes with odd sizes, groups of one element, dims of one, and a group in several pieces of memory.
TENSORS = [
    ((5, 3, 3, 3), {"channel_wise": True}),
    ((4, 7, 1, 1), {"channel_wise": True}),
    ((16, 5), {"channel_wise": True}),
    ((9,), {"channel_wise": True}),
    ((3, 1), {"channel_wise": True}),
    ((7, 2, 5), {"channel_dims": []}),
    ((4, 3, 5), {"channel_dims": [0, 1]}),
    ((4, 6, 2, 2), {"channel_dims": [1]}),
    ((6, 5), {}),
    ((), {}),
]


def parameters(dtype: torch.dtype, memory_format: torch.memory_format) -> list[torch.Tensor]:
    tensors = [random_tensor(seed, shape, dtype) for seed, (shape, _) in enumerate(TENSORS)]
    return [(x.to(memory_format=memory_format) if x.ndim == 4 else x).requires_grad_() for x in tensors]


def groups_of(xs: list[torch.Tensor]) -> list[dict]:
    return [{"params": [x], **own} for x, (_, own) in zip(xs, TENSORS, strict=True)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("block", [1 << 20, 100, 1], ids=lambda size: f"blocks of {size}")
@pytest.mark.parametrize("name", GROUPED)
def test_50_steps_of_many_tensors_follow_the_reference(name, block, memory_format, monkeypatch):
    monkeypatch.setattr(blocks, "LARGEST_BLOCK", block)
    step, options = REFERENCES[name]
    xs = parameters(torch.float32, memory_format)
    optimizer = GROUPED[name](groups_of(xs), weight_decay=0.05, **options)
    expected, states = [x.detach().double().numpy().copy() for x in xs], [{} for _ in xs]
    for k in range(50):
        for i, (x, (shape, own)) in enumerate(zip(xs, TENSORS, strict=True)):
            x.grad = random_tensor(100 + k * len(xs) + i, shape, torch.float32)  # contiguous, whatever x is
            axes = reference.axes_of(x.ndim, own.get("channel_dims"), own.get("channel_wise", False))
            grad = x.grad.double().numpy()
            expected[i], states[i] = step(expected[i], grad, states[i], axes=axes, weight_decay=0.05, **options)
        optimizer.step()
    for x, right in zip(xs, expected, strict=True):
        assert_close(x.detach(), right, TOLERANCES[torch.float32][name])


def test_groups_lie_in_one_piece_where_they_come_first_in_memory():
    shape, contiguous, channels_last = (5, 3, 2, 2), (12, 4, 2, 1), (12, 1, 6, 3)
    assert has_rows(shape, contiguous, (1, 2, 3))
    assert has_rows(shape, channels_last, (1, 2, 3))
    assert has_rows(shape, contiguous, (2, 3))
    assert not has_rows(shape, channels_last, (2, 3))
    assert not has_rows(shape, contiguous, (0, 2, 3))
    assert not has_rows((5, 3), (6, 2), (1,))  # gaps
    assert has_rows((5, 3, 1, 1), (3, 1, 77, 77), (1, 2, 3))  # the stride of a dim of one element says nothing


def ways_taken(optimizer: torch.optim.Optimizer) -> list[Way]:
    (plan,) = optimizer._plans.values()
    return [update.way for update in plan.updates]


def test_the_fastest_way_that_fits_is_taken():
    xs = parameters(torch.float32, torch.contiguous_format)
    half = random_tensor(1, (4, 3), torch.bfloat16).requires_grad_()
    groups = [*groups_of(xs), {"params": [half], "channel_wise": True}]
    for x in (*xs, half):
        x.grad = torch.ones_like(x)
    (default := AdamSRT(groups)).step()
    in_pieces = [own.get("channel_dims") == [1] for _, own in TENSORS]
    assert ways_taken(default) == [Way.FOR_LOOP if each else Way.FOREACH for each in in_pieces] + [Way.FOR_LOOP]
    (asked := AdamSRT(groups, foreach=True)).step()
    assert ways_taken(asked) == ways_taken(default)
    for options in ({"foreach": False}, {"fused": False}):
        (loop := AdamSRT(groups, **options)).step()
        assert set(ways_taken(loop)) == {Way.FOR_LOOP}


@pytest.mark.parametrize(
    ("dtype", "size", "has_rows", "expected"),
    [
        (torch.float32, 1, True, Way.FUSED),  # single elements as well
        (torch.bfloat16, LARGEST_FUSED_GROUP, True, Way.FUSED),
        (torch.float32, LARGEST_FUSED_GROUP + 1, True, Way.FOREACH),
        (torch.bfloat16, LARGEST_FUSED_GROUP + 1, True, Way.FOR_LOOP),
        (torch.float32, 9, False, Way.FOR_LOOP),
    ],
)
def test_what_a_fused_step_takes(dtype, size, has_rows, expected):
    assert way_to_take(Way.FUSED, dtype, size, has_rows=has_rows) is expected


def test_fused_is_refused_on_the_cpu():
    x = random_tensor(1).requires_grad_()
    optimizer = AdamSRT([x], channel_wise=True, fused=True)
    x.grad = random_tensor(2)
    with pytest.raises(
        RuntimeError, match=r"^fused=True must have a GPU and Triton, got a parameter on cpu; fused=None"
    ):
        optimizer.step()
    assert torch.equal(x.detach(), random_tensor(1))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", GROUPED)
def test_a_state_dict_serves_every_way(name, first):
    xs = parameters(torch.float64, torch.contiguous_format)
    whole = GROUPED[name](groups_of(xs), weight_decay=0.05, lr=0.01, foreach=first)
    take_steps(whole, xs, 0, 3)
    ys = [x.detach().clone().requires_grad_() for x in xs]
    other = GROUPED[name](groups_of(ys))
    state = copy.deepcopy(whole.state_dict())
    for group in state["param_groups"]:
        group["foreach"] = not first
    other.load_state_dict(state)
    take_steps(whole, xs, 3, 6)
    take_steps(other, ys, 3, 6)
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(y.detach(), x.detach(), rtol=1e-9, atol=1e-12)


def take_steps(optimizer: torch.optim.Optimizer, xs: list[torch.Tensor], first: int, end: int) -> None:
    for k in range(first, end):
        for i, x in enumerate(xs):
            x.grad = random_tensor(100 + k * len(xs) + i, tuple(x.shape), x.dtype)
        optimizer.step()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("name", GROUPED)
def test_lr_as_a_tensor_follows_its_schedule(name, foreach, capturable):
    xs, ys = (parameters(torch.float64, torch.contiguous_format) for _ in range(2))
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer = GROUPED[name](groups_of(xs), lr=lr, foreach=foreach, capturable=capturable)
    other = GROUPED[name](groups_of(ys), lr=0.1, foreach=foreach)
    for k in range(4):
        take_steps(optimizer, xs, k, k + 1)
        take_steps(other, ys, k, k + 1)
        lr.mul_(0.5)
        for group in other.param_groups:
            group["lr"] *= 0.5
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(x.detach(), y.detach(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", GROUPED)
def test_what_changes_between_steps_is_seen(name):
    """Weights in new memory, a new memory format, new state and new options: as in a fresh optimizer."""
    x = random_tensor(1).requires_grad_()
    optimizer = GROUPED[name]([x], lr=0.02, channel_wise=True)
    y = random_tensor(1).requires_grad_()
    loop = GROUPED[name]([y], lr=0.02, channel_wise=True, foreach=False)
    walk(optimizer, x, steps=2)
    walk(loop, y, steps=2)

    def follow(first: int) -> None:
        walk(optimizer, x, steps=2, first=first)
        walk(loop, y, steps=2, first=first)
        np.testing.assert_allclose(x.detach(), y.detach(), rtol=1e-10, atol=1e-12)

    x.data = x.data.clone()
    follow(2)
    x.data = x.data.to(memory_format=torch.channels_last)
    follow(4)
    for each, parameter in ((optimizer, x), (loop, y)):
        each.state[parameter] = {key: value.clone() for key, value in each.state[parameter].items()}
        key = "exp_avg" if "exp_avg" in each.state[parameter] else "momentum_buffer"
        each.state[parameter][key].mul_(0.5)
    follow(6)
    for each in (optimizer, loop):
        each.state.clear()
        each.param_groups[0]["channel_dims"] = [0, 1]
    follow(8)


@pytest.mark.parametrize("name", GROUPED)
def test_the_optimizer_keeps_no_gradient(name):
    x = random_tensor(1).requires_grad_()
    optimizer = GROUPED[name]([x], channel_wise=True)
    walk(optimizer, x, steps=2)
    gradient = weakref.ref(x.grad.untyped_storage())
    x.grad = None
    gc.collect()
    assert gradient() is None


@pytest.mark.parametrize("weight_decay", [0, 0.1])
@pytest.mark.parametrize("name", GROUPED)
def test_a_step_allocates_next_to_nothing(name, weight_decay):
    xs = [random_tensor(seed, (64, 32, 3, 3), torch.float32).requires_grad_() for seed in range(4)]
    big = random_tensor(9, (300, 300), torch.float32).requires_grad_()
    optimizer = GROUPED[name]([{"params": xs, "channel_wise": True}, {"params": [big]}], weight_decay=weight_decay)
    for x in (*xs, big):
        x.grad = torch.ones_like(x)
    optimizer.step()  # makes the state and the scratch
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        optimizer.step()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in record.events())
    assert allocated < 0.05 * sum(x.nbytes for x in (*xs, big))


def test_the_state_of_adamsrt_is_half_of_adams():
    x = random_tensor(1, (64, 64, 3, 3), torch.float32).requires_grad_()
    sizes = []
    for optimizer in (AdamSRT([x], channel_wise=True), torch.optim.Adam([x])):
        walk(optimizer, x, steps=1)
        sizes.append(sum(value.nbytes for value in optimizer.state[x].values()))
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.002)


SMALL_TENSORS = ((5, 3, 3, 3), (6, 3, 3, 3), (4, 27), (8, 5), (40, 5), (3, 5))  # two lengths of rows, one large tensor


@pytest.mark.parametrize("block", [1 << 20, 150], ids=lambda size: f"blocks of {size}")
@pytest.mark.parametrize("name", GROUPED)
def test_tensors_that_are_copied_together_follow_the_reference(name, block, monkeypatch):
    monkeypatch.setattr(blocks, "LARGEST_BLOCK", block)
    monkeypatch.setattr(blocks, "SMALL", 199)
    step, options = REFERENCES[name]
    shapes = [*SMALL_TENSORS, (7,), (4, 3)]
    xs = [random_tensor(seed, shape, torch.float32).requires_grad_() for seed, shape in enumerate(shapes)]
    rows, elements = {"params": xs[:-2], "channel_wise": True}, {"params": xs[-2:]}
    optimizer = GROUPED[name]([rows, elements], weight_decay=0.05, **options)
    expected, states = [x.detach().double().numpy().copy() for x in xs], [{} for _ in xs]
    for k in range(50):
        for i, x in enumerate(xs):
            x.grad = random_tensor(100 + k * len(xs) + i, shapes[i], torch.float32)
            axes = reference.axes_of(x.ndim, None, x.ndim > 1 and i < len(SMALL_TENSORS))
            grad = x.grad.double().numpy()
            expected[i], states[i] = step(expected[i], grad, states[i], axes=axes, weight_decay=0.05, **options)
        optimizer.step()
    (plan,) = optimizer._plans.values()
    assert all(len(block.xs) < 4 for _, kept in plan.blocks for block in kept)
    for x, right in zip(xs, expected, strict=True):
        assert_close(x.detach(), right, TOLERANCES[torch.float32][name])
