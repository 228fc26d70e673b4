"""Follow the reference for 50 steps with the Triton kernels, run by Triton's interpreter: prints the largest error.

A process of its own, started with TRITON_INTERPRET=1, because Triton reads that when it is imported:

    TRITON_INTERPRET=1 python interpreted_kernels.py adamsrt float32 [capturable]

Every kind of row goes into one launch, with single elements beside them.
"""

import sys

import numpy as np
import reference
import torch
from optimizer_steps import REFERENCES, STATE_NAMES

from adamsrt.optimizers import OPTIMIZERS, launch

STEPS = 50
launch.SHORT, launch.LONG = 16, {torch.float32: 64, torch.float64: 32}  # every branch with few elements
# A program takes the interpreter tens of milliseconds: as few rows as show every kind.
TENSORS = [
    ((2, 4, 2, 2), {"channel_wise": True}),  # short, and channels_last
    ((1, 40), {"channel_wise": True, "weight_decay": 0.05}),  # longer, but in registers
    ((1, 3, 9), {"channel_dims": [], "lr": 1e-2}),  # not aligned, read in pieces
    ((3, 2), {"weight_decay": 0.05}),  # single elements
]


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def main(name: str, dtype: torch.dtype, capturable: bool) -> None:
    step, plain = REFERENCES[name]
    xs = [draw(seed, shape, dtype).requires_grad_() for seed, (shape, _) in enumerate(TENSORS)]
    groups = [{"params": [x], **own} for x, (_, own) in zip(xs, TENSORS, strict=True)]
    optimizer = OPTIMIZERS[name].build(groups, fused=True, capturable=capturable, **plain)
    if capturable:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    expected, states = [x.detach().double().numpy().copy() for x in xs], [{} for _ in xs]
    for k in range(STEPS):
        for i, (x, (shape, own)) in enumerate(zip(xs, TENSORS, strict=True)):
            x.grad = draw(100 + k * len(xs) + i, shape, dtype)
            axes = reference.axes_of(x.ndim, own.get("channel_dims"), own.get("channel_wise", False))
            changed = {key: value for key, value in own.items() if key in ("lr", "weight_decay")}
            options = {**plain, **changed, "axes": axes}
            expected[i], states[i] = step(expected[i], x.grad.double().numpy(), states[i], **options)
        optimizer.step()
    largest = 0.0
    for x, right, state in zip(xs, expected, states, strict=True):
        pairs = [(x, right)]
        pairs += [(optimizer.state[x][STATE_NAMES[key]], value) for key, value in state.items() if key != "k"]
        for result, value in pairs:
            error = np.abs(result.detach().double().numpy() - value).max() / np.abs(value).max()
            largest = max(largest, float(error))
    print(largest)


if __name__ == "__main__":
    main(sys.argv[1], getattr(torch, sys.argv[2]), "capturable" in sys.argv[3:])
