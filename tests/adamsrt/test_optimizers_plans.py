"""What the optimizers keep from step to step: used for as long as it holds, and no longer."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import reference
import torch
from optimizer_steps import GROUPED, REFERENCES, STATE_NAMES, TOLERANCES, assert_close, random_tensor, walk

from adamsrt.optimizers import AdamSRT

COUNTING = [name for name in GROUPED if name != "sgdmrt"]
SHAPES = [(6, 4, 3, 3), (5, 4, 3, 3), (7,), (3, 2), (4, 4)]


def plan_of(optimizer):
    (plan,) = optimizer._plans.values()
    return plan


def exchange_gradient(optimizer, x):
    x.grad = x.grad.to(memory_format=torch.channels_last)


def follow_a_schedule(optimizer, x):
    optimizer.param_groups[0] |= {"lr": 0.01, "weight_decay": 0.1}


def move_weights(optimizer, x):
    x.data = x.data.clone()


def transpose_weights(optimizer, x):
    x.data = x.data.permute(0, 1, 3, 2)  # the address and the shape stay


def change_options(optimizer, x):
    optimizer.param_groups[0]["channel_dims"] = [0]


def replace_state(optimizer, x):
    optimizer.state[x] = copy.deepcopy(optimizer.state[x])


def empty_state(optimizer, x):
    optimizer.state[x].clear()


def move_momentum(optimizer, x):
    name = optimizer.MOMENTUM
    optimizer.state[x][name] = optimizer.state[x][name].clone()


@pytest.mark.parametrize(
    ("change", "lasts"),
    [
        (exchange_gradient, True),
        (follow_a_schedule, True),
        (move_weights, False),
        (transpose_weights, False),
        (change_options, False),
        (replace_state, False),
        (empty_state, False),
        (move_momentum, False),
    ],
)
@pytest.mark.parametrize("name", GROUPED)
def test_a_plan_lasts_until_something_changes(name, change, lasts):
    xs = [random_tensor(seed, (6, 4, 3, 3)).requires_grad_() for seed in (1, 1)]
    ours, loop = (
        GROUPED[name]([x], lr=0.02, channel_wise=True, foreach=f) for x, f in zip(xs, (None, False), strict=True)
    )
    for optimizer, x in zip((ours, loop), xs, strict=True):
        walk(optimizer, x, steps=2)
    plan = plan_of(ours)
    for k in range(2, 5):
        for optimizer, x in zip((ours, loop), xs, strict=True):
            x.grad = random_tensor(100 + k)
            if k == 3:
                change(optimizer, x)
            optimizer.step()
        assert (plan_of(ours) is plan) == (lasts or k < 3)
        np.testing.assert_allclose(xs[0].detach(), xs[1].detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", GROUPED)
def test_parameters_with_a_gradient_now_and_then_follow_the_reference(name):
    """Their steps differ, so that they cannot share a block; a plan for each set of gradients is kept."""
    step, options = REFERENCES[name]
    xs = [random_tensor(seed, shape).requires_grad_() for seed, shape in enumerate(SHAPES)]
    wise, rest = {"params": xs[:2], "channel_wise": True}, {"params": xs[2:]}
    optimizer = GROUPED[name]([wise, rest], weight_decay=0.05, **options)
    expected, states = [x.detach().numpy().copy() for x in xs], [{} for _ in xs]
    for k in range(20):
        for i, x in enumerate(xs):
            x.grad = None if k % 4 == i else random_tensor(1000 + 10 * k + i, SHAPES[i])
            if x.grad is not None:
                axes = reference.axes_of(x.ndim, None, i < 2)
                grad = x.grad.numpy()
                expected[i], states[i] = step(expected[i], grad, states[i], axes=axes, weight_decay=0.05, **options)
        if k == 10:
            kept = list(optimizer._plans.values())
        optimizer.step()
    assert len(kept) == 4
    assert list(optimizer._plans.values()) == kept
    for x, right, state in zip(xs, expected, states, strict=True):
        assert_close(x.detach(), right, TOLERANCES[torch.float64][name])
        for key, value in state.items():
            result = optimizer.state[x]["step" if key == "k" else STATE_NAMES[key]]
            assert_close(result, np.asarray(value), TOLERANCES[torch.float64][name])


@pytest.mark.parametrize("name", COUNTING)
def test_a_step_counter_is_one_of_torch_and_may_be_set(name):
    xs = [random_tensor(seed).requires_grad_() for seed in range(3)]
    optimizer = GROUPED[name](xs, lr=0.02, channel_wise=True)
    alone = [GROUPED[name]([x.detach().clone().requires_grad_()], lr=0.02, channel_wise=True) for x in xs]
    for k in range(6):
        if k == 2:
            optimizer.state[xs[0]]["step"].fill_(7)
            optimizer.state[xs[1]]["step"] = torch.tensor(9.0)
            for other, value in zip(alone, (7, 9), strict=False):
                other.state[other.param_groups[0]["params"][0]]["step"].fill_(value)
        for i, (x, other) in enumerate(zip(xs, alone, strict=True)):
            (y,) = other.param_groups[0]["params"]
            x.grad = y.grad = random_tensor(100 * k + i)
            other.step()
        optimizer.step()
    for x, other, steps in zip(xs, alone, (11, 13, 6), strict=True):
        counter = optimizer.state[x]["step"]
        assert (counter.shape, counter.dtype, counter.device.type, counter.item()) == ((), torch.float32, "cpu", steps)
        np.testing.assert_allclose(x.detach(), other.param_groups[0]["params"][0].detach(), rtol=1e-12)


def test_an_optimizer_counts_for_itself_whatever_it_loaded():
    x, y = (random_tensor(1).requires_grad_() for _ in range(2))
    first, second = AdamSRT([x]), AdamSRT([y])
    walk(first, x, steps=3)
    second.load_state_dict(first.state_dict())  # torch does not copy the counters
    walk(second, y, steps=2)
    assert (first.state[x]["step"].item(), second.state[y]["step"].item()) == (3, 5)


def test_a_parameter_that_changes_its_group_takes_its_options():
    xs = [random_tensor(seed).requires_grad_() for seed in range(3)]
    optimizer = AdamSRT([{"params": xs[:2]}, {"params": xs[2:], "lr": 0.0}])
    for x in xs:
        x.grad = torch.ones_like(x)
    optimizer.step()
    first, second = (group["params"] for group in optimizer.param_groups)
    second.insert(0, first.pop())
    before = [x.detach().clone() for x in xs]
    optimizer.step()
    assert [torch.equal(x.detach(), old) for x, old in zip(xs, before, strict=True)] == [False, True, True]


def test_state_that_is_dropped_is_freed():
    x, y = (random_tensor(seed).requires_grad_() for seed in (1, 2))
    optimizer = AdamSRT([x, y])
    x.grad = y.grad = random_tensor(3)
    optimizer.step()
    y.grad = None
    optimizer.step()
    momentum = weakref.ref(optimizer.state[x]["exp_avg"].untyped_storage())
    optimizer.state[x] = copy.deepcopy(optimizer.state[x])
    optimizer.step()
    gc.collect()
    assert momentum() is None


# The state of tiny parameters lies side by side, and is not copied together for a step.

TINY_SHAPES = [(7,), (5,), (3, 2), (64,), (5, 4, 3, 3), (9,)]


def tiny_optimizer(name):
    xs = [random_tensor(seed, shape).requires_grad_() for seed, shape in enumerate(TINY_SHAPES)]
    return xs, GROUPED[name]([{"params": [xs[4]], "channel_wise": True}, {"params": [*xs[:4], xs[5]]}], lr=0.02)


def step_alike(optimizers, step):
    """Take a step on the same gradients with every optimizer, all of whose parameters have the same order."""
    for optimizer in optimizers:
        xs = [x for group in optimizer.param_groups for x in group["params"]]
        for i, x in enumerate(xs):
            x.grad = random_tensor(1000 + 100 * step + i, tuple(x.shape)) + 0.5 * x.detach()
        optimizer.step()


def memories(optimizer, xs):
    return {optimizer.state[x][optimizer.MOMENTUM].untyped_storage().data_ptr() for x in xs}


@pytest.mark.parametrize("name", GROUPED)
def test_the_state_of_tiny_parameters_shares_a_memory_that_ends_with_theirs(name):
    xs, optimizer = tiny_optimizer(name)
    step_alike([optimizer], 1)
    tiny, others = [x for x in xs if x.ndim == 1], [x for x in xs if x.ndim > 1]
    assert len(memories(optimizer, tiny)) == 1
    assert len(memories(optimizer, others)) == len(others)
    begins = sorted(optimizer.state[x][optimizer.MOMENTUM].storage_offset() for x in tiny)
    assert begins == [0, 7, 12, 76]
    matrices = [m for _, blocks in plan_of(optimizer).blocks for block in blocks for m in block.ms]
    (shared,) = [m for m in matrices if m.untyped_storage().data_ptr() in memories(optimizer, tiny)]
    assert shared.shape == (85, 1)  # used where it lies, without a copy


def clone_a_state(optimizer, x):
    optimizer.state[x] = {key: value.clone() for key, value in optimizer.state[x].items()}


def empty_a_state(optimizer, x):
    optimizer.state[x].clear()


def load_own_state(optimizer, x):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def zero_all_state(optimizer, x):
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def write_a_momentum(optimizer, x):
    optimizer.state[x][optimizer.MOMENTUM].fill_(0.125)


def move_its_data(optimizer, x):
    momentum = optimizer.state[x][optimizer.MOMENTUM]
    momentum.data = momentum.data.clone()


@pytest.mark.parametrize(
    "change", [clone_a_state, empty_a_state, load_own_state, zero_all_state, write_a_momentum, move_its_data]
)
@pytest.mark.parametrize("name", GROUPED)
def test_state_side_by_side_may_be_changed_as_any_other(name, change):
    (xs, ours), (ys, loop) = tiny_optimizer(name), tiny_optimizer(name)
    for group in loop.param_groups:
        group["foreach"] = False
    for k in range(6):
        if k == 3:
            change(ours, xs[1])
            change(loop, ys[1])
        step_alike([ours, loop], k)
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(x.detach(), y.detach(), rtol=1e-10, atol=1e-12)
        for key, value in loop.state[y].items():
            np.testing.assert_allclose(ours.state[x][key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", GROUPED)
def test_copies_of_state_side_by_side_continue_the_same(name):
    _, optimizer = tiny_optimizer(name)
    step_alike([optimizer], 1)
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    stopped = [x.detach().clone() for x in others[0].param_groups[1]["params"]]
    for k in range(2, 5):
        step_alike([optimizer], k)
    for x, before in zip(others[0].param_groups[1]["params"], stopped, strict=True):
        assert torch.equal(x, before)  # no memory in common with the original
    for k in range(2, 5):
        step_alike(others, k)
    for other in others:
        for group, copied in zip(optimizer.param_groups, other.param_groups, strict=True):
            for x, y in zip(group["params"], copied["params"], strict=True):
                assert torch.equal(x, y)
                for key, value in optimizer.state[x].items():
                    assert torch.equal(value, other.state[y][key])


@pytest.mark.parametrize("name", GROUPED)
def test_tiny_parameters_that_come_later_or_pause_follow_the_for_loop(name):
    (xs, ours), (ys, loop) = tiny_optimizer(name), tiny_optimizer(name)
    for group in loop.param_groups:
        group["foreach"] = False
    pauses = {0: (0, 3), 2: (1,), 3: (1, 5), 5: (0,)}  # by step; the first steps make state in another order
    for k in range(8):
        for zs, optimizer in ((xs, ours), (ys, loop)):
            for i, z in enumerate(zs):
                paused = i in pauses.get(k, ())
                z.grad = None if paused else random_tensor(1000 + 100 * k + i, TINY_SHAPES[i]) + 0.5 * z.detach()
            optimizer.step()
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(x.detach(), y.detach(), rtol=1e-10, atol=1e-12)
