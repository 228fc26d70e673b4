"""What the state of every optimizer occupies on the GPU, relative to Adam's."""

from collections.abc import Callable
from functools import partial

from torch.optim import Adam, Optimizer

from benchmarks.gpu_aims import GROUPED, MODELS
from benchmarks.gpu_device import Device
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_steps import model_on, ours
from benchmarks.optimizer_step import state_bytes


def measure_states(bench: Bench) -> None:
    """Allocate the state by a first step, of every optimizer for every model."""
    device = Device(bench.device)
    bench.table(
        "State of the optimizers",
        *("model", "optimizer", "allocated, MiB", "relative to Adam's", "the tensors' own bytes, MiB", "relative"),
    )
    for model, text in MODELS.items():
        adam = state_of(partial(adam_of, bench.device, model), device)
        for name, optimizer in {"adam": "Adam", **GROUPED}.items():
            sizes = adam if name == "adam" else state_of(partial(ours, bench.device, model, name), device)
            allocated, own = sizes
            relative = allocated / adam[0] if device.is_gpu else own / adam[1]
            mebibytes = [f"{each / 2**20:.2f}" for each in sizes]
            bench.row(text, optimizer, mebibytes[0], f"{relative:.3f}", mebibytes[1], f"{own / adam[1]:.3f}")
            if name == "adamsrt":
                bench.figure(f"memory/{model}", [relative])


def adam_of(device: str, model: str) -> Optimizer:
    return Adam(model_on(device, model).parameters(), fused=True)


def state_of(build: Callable[[], Optimizer], device: Device) -> tuple[int, int]:
    """Give what a first step leaves allocated, and the bytes of the state's tensors."""
    optimizer = build()
    before = device.allocated_bytes()
    optimizer.step()
    return device.allocated_bytes() - before, state_bytes(optimizer)


PARTS = (Part("states", measure_states, 40.0),)
