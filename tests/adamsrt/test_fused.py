"""When a fused step copies its table to the device anew; what its kernels compute, `test_kernels` sees."""

import inspect

import pytest
import torch
from optimizer_steps import random_tensor

pytest.importorskip("triton")

from adamsrt.optimizers import SGDMRT, AdamSRT, fused, launch, ways
from adamsrt.optimizers.kernels.common import GRAD, STEP


class Launches:
    """Stands in for a GPU: counts the steps in the table, as `kernels.count` does, and updates nothing."""

    def __init__(self, monkeypatch) -> None:
        self.tables: list[torch.Tensor] = []
        self.counted: list[list[int]] = []
        self.breaks = False
        monkeypatch.setattr(ways, "why_not_fused", lambda kernel, device: None)
        monkeypatch.setattr(launch, "count", self.count)
        monkeypatch.setattr(launch, "update", lambda kernel, table, *others, **options: self.tables.append(table))

    def count(self, table, numbers, *, on_device) -> None:
        if self.breaks:
            raise KeyboardInterrupt
        table[:, STEP.value] += int(not on_device)
        self.counted.append(table[:, STEP.value].tolist())


@pytest.fixture
def launches(monkeypatch):
    return Launches(monkeypatch)


def build(optimizer=AdamSRT, **options):
    xs = [random_tensor(seed, (4, 8)).requires_grad_() for seed in range(2)]
    for x in xs:
        x.grad = torch.ones_like(x)
    return xs, optimizer(xs, channel_wise=True, fused=True, **options)


def test_steps_on_gradients_in_the_same_memory_share_a_table_that_counts_them(launches):
    xs, optimizer = build()
    for _ in range(3):
        optimizer.step()
    assert launches.counted == [[1, 1], [2, 2], [3, 3]] and len(set(map(id, launches.tables))) == 1
    xs[0].grad = xs[0].grad.clone()
    optimizer.step()
    assert launches.counted[-1] == [4, 4] and len(set(map(id, launches.tables))) == 2
    assert launches.tables[-1][:, GRAD.value].tolist() == [x.grad.data_ptr() for x in xs]


def test_a_gradient_in_another_memory_format_is_read_where_its_copy_lies(launches):
    xs, optimizer = build()
    xs[0].grad = torch.ones(8, 4, dtype=xs[0].dtype).T
    optimizer.step()
    first, second = launches.tables[-1][:, GRAD.value].tolist()
    assert first != xs[0].grad.data_ptr() and second == xs[1].grad.data_ptr()


@pytest.mark.parametrize("change", ["restart", "a step set back", "a parameter that paused", "a broken launch"])
def test_the_table_counts_on_from_what_the_state_says(change, launches):
    xs, optimizer = build()
    for _ in range(3):
        optimizer.step()
    if change == "restart":
        optimizer.restart()
    elif change == "a step set back":
        optimizer.state[xs[1]]["step"].fill_(1)
    elif change == "a parameter that paused":
        grad, xs[0].grad = xs[0].grad, None
        optimizer.step()
        xs[0].grad = grad
    else:
        launches.breaks = True
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        launches.breaks = False
    for _ in range(2):
        optimizer.step()
        assert launches.counted[-1] == [int(optimizer.state[x]["step"]) for x in xs]


@pytest.mark.parametrize("optimizer", [AdamSRT, SGDMRT])
def test_what_was_prepared_is_not_copied_in_a_capture(optimizer, launches, monkeypatch):
    xs, optimizer = build(optimizer, capturable=True)
    optimizer.step()
    for x in xs:
        x.grad = x.grad.clone()  # those of a captured backward pass
    optimizer.write_options()
    sent = []
    monkeypatch.setattr(fused.FusedStep, "_send", lambda step, host: sent.append(host) or host)
    monkeypatch.setattr(fused, "is_captured", lambda: True)
    optimizer.step()
    assert not sent
    assert launches.tables[-1][:, GRAD.value].tolist() == [x.grad.data_ptr() for x in xs]
    xs[0].grad = xs[0].grad.clone()
    optimizer.step()
    assert len(sent) == 1


def test_a_gradient_whose_strides_differ_in_a_dim_of_one_element_is_prepared_too(launches, monkeypatch):
    x = random_tensor(0, (4, 8, 1, 1)).to(memory_format=torch.channels_last).requires_grad_()
    x.grad = torch.ones(4, 8, 1, 1, dtype=x.dtype)
    assert x.grad.stride() != x.stride()
    optimizer = AdamSRT([x], channel_wise=True, fused=True, capturable=True)
    optimizer.step()
    x.grad = x.grad.clone()
    optimizer.write_options()
    monkeypatch.setattr(fused.FusedStep, "_send", None)
    monkeypatch.setattr(fused, "is_captured", lambda: True)
    optimizer.step()
    assert launches.tables[-1][:, GRAD.value].tolist() == [x.grad.data_ptr()]


class Compiled:
    """Stands in for a kernel, and for what Triton makes of it at its first launch."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.compiled, self.launched = [], []

    def __getitem__(self, grid):
        return lambda *tensors, **options: self.compiled.append((grid, tensors, options)) or self

    def run(self, *arguments) -> None:
        self.launched.append(arguments)


def test_a_kernel_is_compiled_once_and_then_launched_as_triton_does(monkeypatch):
    from triton.backends.nvidia.driver import CudaLauncher

    kernel = Compiled()
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(launch.kernels, "adam_srt", kernel)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: "stream", raising=False)
    table, numbers, programs = torch.zeros(2, 3), torch.zeros(1), torch.zeros(5)
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float32):
        launch.update("adam_srt", table, numbers, programs, dtype, is_short=False)
    assert [grid for grid, *_ in kernel.compiled] == [(5,), (5,)]  # one for each dtype
    first, second = kernel.launched
    constants = launch.constants_of("adam_srt", (torch.float32, False))
    head = (5, 1, 1, "stream", "function", "metadata", None, None, None)
    assert first == second == (*head, table, numbers, programs, *constants.values())
    names = list(inspect.signature(CudaLauncher.__call__).parameters)[1 : len(head) + 1]
    assert names == [
        *("gridX", "gridY", "gridZ", "stream", "function", "kernel_metadata"),
        *("launch_metadata", "launch_enter_hook", "launch_exit_hook"),
    ]


@pytest.mark.parametrize("name", ["count", "adam_srt", "adam_g", "sgd_mrt", "adam", "sgd"])
def test_constants_are_in_the_order_of_the_kernels_arguments(name):
    variant = True if name == "count" else (torch.float32, True)
    constants = list(launch.constants_of(name, variant))
    assert getattr(launch.kernels, name).arg_names[-len(constants) :] == constants
