"""An optimizer that restarts takes the very steps of a newly built one, in the memory that it has."""

import copy
import pickle

import pytest
import torch
from optimizer_steps import GROUPED, random_tensor
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from adamsrt.optimizers import SGDMRT, AdamS, AdamSRT

SHAPES = [(6, 4, 3, 3), (5, 4, 3, 3), (4, 6, 2, 2), (7,), (3, 2)]
FIRST = {"lr": 0.1, "weight_decay": 0.3}
SECOND = {name: {"lr": 0.02, "betas": (0.7, 0.9), "eps": 1e-6} for name in GROUPED}
SECOND["sgdmrt"] = {"lr": 0.02, "momentum": 0.8, "dampening": 0.1}


def parameters():
    return [random_tensor(seed, shape, torch.float32).requires_grad_() for seed, shape in enumerate(SHAPES)]


def build(name, xs, foreach=None, **options):
    groups = [
        {"params": xs[:2], "channel_wise": True},
        {"params": xs[2:3], "channel_dims": [1], "weight_decay": 0.05, "name": "in pieces"},
        {"params": xs[3:]},
    ]
    return GROUPED[name](groups, foreach=foreach, **options)


def take_steps(optimizer, xs, first, end, *, late=True):
    """Take steps; with `late`, some parameters have no gradient at some of them, so that their counters differ."""
    for k in range(first, end):
        for i, x in enumerate(xs):
            x.grad = None if late and k % 3 == i else random_tensor(100 * k + i, tuple(x.shape), x.dtype)
        optimizer.step()


def begin_again(xs):
    for x, initial in zip(xs, parameters(), strict=True):
        x.data.copy_(initial.data)


def assert_equal_training(ours, xs, theirs, ys, *, late=True):
    take_steps(ours, xs, 10, 15, late=late)
    take_steps(theirs, ys, 10, 15, late=late)
    for x, y in zip(xs, ys, strict=True):
        assert torch.equal(x, y)
        assert ours.state[x].keys() == theirs.state[y].keys()
        assert all(torch.equal(value, theirs.state[y][key]) for key, value in ours.state[x].items())


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("name", GROUPED)
def test_the_steps_are_those_of_a_new_optimizer(name, foreach, late, capturable):
    xs, ys = parameters(), parameters()
    ours = build(name, xs, foreach, capturable=capturable, **FIRST)
    for trial in range(2):
        take_steps(ours, xs, 5 * trial, 5 * trial + 4, late=trial == 1)
        begin_again(xs)
        ours.restart(**SECOND[name])
    assert_equal_training(ours, xs, build(name, ys, foreach, capturable=capturable, **SECOND[name]), ys, late=late)


@pytest.mark.parametrize("name", GROUPED)
def test_state_and_plan_stay_where_they_are(name):
    xs = parameters()
    optimizer = build(name, xs, **FIRST)
    take_steps(optimizer, xs, 0, 3, late=False)
    (plan,) = optimizer._plans.values()
    addresses = [value.data_ptr() for x in xs for value in optimizer.state[x].values()]
    optimizer.restart(lr=0.2)
    assert all((value == 0).all() for x in xs for value in optimizer.state[x].values())
    take_steps(optimizer, xs, 3, 5, late=False)
    assert [value.data_ptr() for x in xs for value in optimizer.state[x].values()] == addresses
    assert list(optimizer._plans.values()) == [plan]
    if name != "sgdmrt":
        assert {optimizer.state[x]["step"].item() for x in xs} == {2.0}


@pytest.mark.parametrize("scheduler", [MultiStepLR, OneCycleLR])
@pytest.mark.parametrize("name", GROUPED)
def test_the_options_are_those_of_a_new_optimizer_whatever_a_scheduler_left(name, scheduler):
    xs = parameters()
    optimizer = build(name, xs, foreach=True, capturable=True, **FIRST)
    extra = {"milestones": [1]} if scheduler is MultiStepLR else {"max_lr": 0.5, "total_steps": 9}
    momentum = {"momentum": 0.9} if name == "sgdmrt" else {}
    optimizer.restart(**FIRST, **momentum)
    schedule = scheduler(optimizer, **extra)
    for k in range(3):
        take_steps(optimizer, xs, k, k + 1)
        schedule.step()
    optimizer.restart(**SECOND[name])
    new = build(name, xs, foreach=True, capturable=True, **SECOND[name])
    assert optimizer.param_groups == new.param_groups
    assert optimizer.defaults == new.defaults
    assert optimizer.param_groups[1]["weight_decay"] == 0.05  # the group's own
    scheduler(optimizer, **extra)
    scheduler(new, **extra)
    assert optimizer.param_groups == new.param_groups


def test_what_is_not_given_takes_the_defaults_of_the_constructor():
    x = random_tensor(1).requires_grad_()
    srt, s, sgd = AdamSRT([x], rt=False, eps=1.0), AdamS([x], eps=1.0), SGDMRT([x], momentum=0.9)
    srt.restart(rt=True)
    s.restart(lr=0.5)
    sgd.restart()
    names = ("lr", "betas", "eps", "weight_decay", "rt")
    assert [srt.param_groups[0][name] for name in names] == [1e-3, (0.9, 0.999), 1e-8, 0, True]
    assert [s.param_groups[0][name] for name in names] == [0.5, (0.9, 0.999), 1e-8, 0, False]
    assert [sgd.param_groups[0][name] for name in ("lr", "momentum")] == [0.1, 0]


BAD = [
    ("adamsrt", {"lr": -1}, "lr must be finite and >= 0, got -1"),
    ("adamg", {"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1.0"),
    ("sgdmrt", {"lr": 0.3, "momentum": 2}, r"momentum must be in \[0, 1\), got 2"),
    ("adams", {"rt": True}, "hyper-parameters must be among lr, betas, eps, weight_decay, got rt"),
    ("adamsrt", {"channel_wise": True}, "hyper-parameters must be among .*, got channel_wise"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_a_bad_hyper_parameter_is_refused_and_nothing_has_changed(name, options, message):
    xs = parameters()
    optimizer = build(name, xs, **FIRST)
    take_steps(optimizer, xs, 0, 2)
    before = copy.deepcopy((optimizer.state_dict(), optimizer.defaults))
    with pytest.raises(ValueError, match=f"^{message}$"):
        optimizer.restart(**options)
    after = optimizer.state_dict()
    assert (after["param_groups"], optimizer.defaults) == (before[0]["param_groups"], before[1])
    for index, state in before[0]["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in state.items())


@pytest.mark.parametrize("name", GROUPED)
def test_a_copy_and_a_loaded_state_restart_alike(name):
    xs = parameters()
    optimizer = build(name, xs, **FIRST)
    take_steps(optimizer, xs, 0, 3)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), build(name, parameters())):
        other.load_state_dict(optimizer.state_dict())
        zs, ys = [z for group in other.param_groups for z in group["params"]], parameters()
        begin_again(zs)
        other.restart(**SECOND[name])
        assert_equal_training(other, zs, build(name, ys, **SECOND[name]), ys)


def test_a_learning_rate_that_is_a_tensor_stays_that_tensor():
    lr, own = (torch.tensor(value, dtype=torch.float64) for value in (0.1, 0.2))
    x, y = (random_tensor(seed).requires_grad_() for seed in (1, 2))
    optimizer = AdamSRT([{"params": [x]}, {"params": [y], "lr": own}], lr=lr, capturable=True)
    lr.mul_(0.5)
    own.mul_(0.5)  # a scheduler
    optimizer.restart(lr=0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.2]
    assert optimizer.param_groups[0]["lr"] is lr and optimizer.param_groups[1]["lr"] is own


@pytest.mark.parametrize(("capturable", "is_read"), [(False, True), (True, False)])
def test_captured_steps_read_new_options_unless_something_is_not_fused(capturable, is_read):
    xs = parameters()
    optimizer = build("adamsrt", xs, capturable=capturable)
    assert optimizer.write_options()  # nothing was captured yet
    take_steps(optimizer, xs, 0, 1)
    assert optimizer.write_options() == is_read
