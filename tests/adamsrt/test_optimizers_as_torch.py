"""The optimizers with groups behave as torch's own: gradients, groups, state dicts, schedulers, GradScaler."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from optimizer_steps import GROUPED, GROUPS, SHAPE, random_tensor, walk
from torch import nn

from adamsrt.optimizers import OPTIMIZERS, SGDMRT, AdamSRT


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
