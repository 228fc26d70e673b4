"""Take steps with the Triton kernels, run by Triton's interpreter.

A process of its own, started with TRITON_INTERPRET=1, because Triton reads that when it is imported:

    TRITON_INTERPRET=1 python interpreted_kernels.py reference adamsrt float32 [capturable] [short]
    TRITON_INTERPRET=1 python interpreted_kernels.py replay adamsrt

`reference` follows the formulas for 50 steps, and prints the largest error. `replay` records the launches of a step, as
a CUDA graph does, and has them serve a second training; it prints the largest difference to a newly built optimizer
without options written to the device, which must be seen, and with them, which must be 0.

Every kind of row goes into one launch, and so do tensors of single elements; with `short` all rows are short.
"""

import sys

import numpy as np
import reference
import torch
from optimizer_steps import REFERENCES, STATE_NAMES
from torch.utils._python_dispatch import TorchDispatchMode

from adamsrt.optimizers import OPTIMIZERS, fused, launch
from adamsrt.optimizers.ways import Way

STEPS = 50
launch.SHORT, launch.LONG = 16, {torch.float32: 64, torch.float64: 32}  # every branch with few elements
# A program takes the interpreter tens of milliseconds: as few rows as show every kind.
TENSORS = [
    ((2, 4, 2, 2), {"channel_wise": True}),  # short, and channels_last
    ((1, 40), {"channel_wise": True, "weight_decay": 0.05}),  # longer, but in registers
    ((1, 3, 9), {"channel_dims": [], "lr": 1e-2}),  # not aligned, read in pieces
    ((3, 2), {"weight_decay": 0.05}),  # single elements
    ((4, 5), {"lr": 1e-2}),  # in two pieces, without momentum
    ((1, 8), {"channel_wise": True}),  # a row without momentum
]
LATE = (4, 5)  # tensors without a gradient at some steps: their counters are behind
WITHOUT_MOMENTUM = {"sgdmrt": {"momentum": 0.0, "dampening": 0.0}}


def own_options(name: str, i: int) -> dict[str, object]:
    """Give the hyper-parameters of a tensor that are its own."""
    own = {key: value for key, value in TENSORS[i][1].items() if key in ("lr", "weight_decay")}
    return own | (WITHOUT_MOMENTUM.get(name, {"betas": (0.0, 0.95), "eps": 1e-6}) if i in LATE else {})


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def build(
    name: str, dtype: torch.dtype, capturable: bool, **options: object
) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    xs = [draw(seed, shape, dtype).requires_grad_() for seed, (shape, _) in enumerate(TENSORS)]
    groups = [
        {"params": [x], **own, **own_options(name, i)} for i, (x, (_, own)) in enumerate(zip(xs, TENSORS, strict=True))
    ]
    return xs, OPTIMIZERS[name].build(groups, fused=True, capturable=capturable, **options)


def made_tables() -> list[torch.Tensor]:
    """Give the list that every table goes into which is made from now on."""
    made: list[torch.Tensor] = []
    send = fused.FusedStep._send
    fused.FusedStep._send = lambda step, host: made.append(host) or send(step, host)
    return made


def follow_the_reference(name: str, dtype: torch.dtype, capturable: bool) -> float:
    step, plain = REFERENCES[name]
    xs, optimizer = build(name, dtype, capturable, **plain)
    if capturable:
        for group in optimizer.param_groups[::2]:  # a scheduler's: a number in the others
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    expected, states = [x.detach().double().numpy().copy() for x in xs], [{} for _ in xs]
    made = made_tables()
    for k in range(STEPS):
        for i, (x, (shape, own)) in enumerate(zip(xs, TENSORS, strict=True)):
            if i in LATE and k % 10 == i:
                x.grad = None
                continue
            grad = draw(100 + k * len(xs) + i, shape, dtype)
            if x.grad is None or k % 10 == 9:
                x.grad = grad
            else:
                x.grad.copy_(grad)
            axes = reference.axes_of(x.ndim, own.get("channel_dims"), own.get("channel_wise", False))
            options = {**plain, **own_options(name, i), "axes": axes}
            expected[i], states[i] = step(expected[i], x.grad.double().numpy(), states[i], **options)
        optimizer.step()
    assert {update.way for plan in optimizer._plans.values() for update in plan.updates} == {Way.FUSED}
    assert 10 < len(made) < STEPS // 2, "a table is made anew where gradients lie elsewhere, and only there"
    largest = 0.0
    for x, right, state in zip(xs, expected, states, strict=True):
        if "k" in state:
            assert optimizer.state[x]["step"].item() == state["k"] >= STEPS - 5
        pairs = [(x, right)]
        pairs += [(optimizer.state[x][STATE_NAMES[key]], value) for key, value in state.items() if key != "k"]
        for result, value in pairs:
            error = np.abs(result.detach().double().numpy() - value).max() / np.abs(value).max()
            largest = max(largest, float(error))
    return largest


class Recorder(TorchDispatchMode):
    """Keeps copies into a tensor for later, and does all else."""

    def __init__(self, tensor: torch.Tensor, work: list[tuple]) -> None:
        super().__init__()
        self._memory, self._work = tensor.untyped_storage().data_ptr(), work

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default and args[0].untyped_storage().data_ptr() == self._memory:
            self._work.append((function, args, {}))
            return args[0]
        return function(*args, **(kwargs or {}))


def record(optimizer: torch.optim.Optimizer) -> list[tuple]:
    """Give what a capture keeps of a step, which is not taken: its launches, and its copies to where numbers lie."""
    taken, work = (launch.count, launch.update), []
    ((fused_step,),) = [plan.fused_steps for plan in optimizer._plans.values()]
    launch.count = lambda *args, **options: work.append((taken[0], args, options))
    launch.update = lambda *args, **options: work.append((taken[1], args, options))
    fused.is_captured = lambda: True
    try:
        with Recorder(fused_step._numbers, work):
            optimizer.step()
    finally:
        (launch.count, launch.update), fused.is_captured = taken, lambda: False
    return work


def replay(name: str) -> tuple[float, float]:
    """Give the differences without and with options that were written to the device."""
    momentum = {"momentum": 0.5} if name == "sgdmrt" else {"betas": (0.7, 0.9)}
    first, second = {"lr": 0.1}, {"lr": 0.02, "weight_decay": 0.1, **momentum}
    xs, optimizer = build(name, torch.float32, True, **first)
    grads = [draw(900 + i, shape, torch.float32) for i, (shape, _) in enumerate(TENSORS)]
    for x, grad in zip(xs, grads, strict=True):
        x.grad = grad
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)  # a replay reads it where it lies
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.5
    try:
        record(optimizer)
    except RuntimeError as error:
        assert "call write_options() before it" in str(error)
    else:
        raise AssertionError("a capture must not copy numbers")
    for x in xs:
        x.grad = x.grad.clone()
    made = made_tables()
    assert optimizer.write_options() and len(made) == 1
    work = record(optimizer)
    assert len(made) == 1, "what is captured copies no table"
    assert len(work) == (3 if name == "sgdmrt" else 4)  # the copy of one lr, count, rows, elements
    differences = []
    for is_written in (False, True):
        ys, fresh = build(name, torch.float32, True, **second)
        for x, y in zip(xs, ys, strict=True):
            x.data.copy_(y.data)
        optimizer.restart(**second)
        for k in range(4):
            if k == 2:
                for group in (*optimizer.param_groups, *fresh.param_groups):
                    group["lr"] *= 0.1
            if is_written and k in (0, 2):
                assert optimizer.write_options()
            for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
                y.grad = draw(200 + k * len(xs) + i, TENSORS[i][0], torch.float32)
                x.grad.copy_(y.grad)
            for do, args, options in work:
                do(*args, **options)
            fresh.step()
        pairs = list(zip(xs, ys, strict=True))
        differences.append(max(float((x - y).detach().abs().max()) for x, y in pairs))
        for x, y in pairs if is_written else ():
            assert all(torch.equal(value, fresh.state[y][key]) for key, value in optimizer.state[x].items())
    return differences[0], differences[1]


if __name__ == "__main__":
    what, name, *options = sys.argv[1:]
    if "short" in options:
        TENSORS[1], TENSORS[2] = ((2, 16), TENSORS[1][1]), ((1, 3, 5), TENSORS[2][1])  # the second is not aligned
    if what == "reference":
        print(follow_the_reference(name, getattr(torch, options[0]), "capturable" in options))
    else:
        print(*replay(name))
