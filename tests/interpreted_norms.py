"""Run BatchNorm's Triton kernels by Triton's interpreter, and print how far they are from float64.

A process of its own, started with TRITON_INTERPRET=1, because Triton reads that when it is imported:

    TRITON_INTERPRET=1 python interpreted_norms.py values     # a line per case: name and largest error
    TRITON_INTERPRET=1 python interpreted_norms.py model      # the same of a whole model, from torch's float32
    TRITON_INTERPRET=1 python interpreted_norms.py step       # of a step in bf16, with these kernels and without
"""

import contextlib
import itertools
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamsrt import fused_norm
from adamsrt.epoch import TrainStep
from adamsrt.models import build_model
from adamsrt.optimizers import build_optimizer

SHAPES = {
    "one tile": (2, 16, 3, 5),
    "pieces, the last one short": (4, 16, 8, 13),
    "blocks of channels, the last one short": (3, 70, 8, 8),
    "fewer channels than a block": (2, 3, 9, 9),
    "images of one pixel": (33, 48, 1, 1),
}
MOMENTUM, EPS = 0.3, 1e-3


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def passes(function, inputs: list[Tensor | None], grad: Tensor, running: list[Tensor], relu: bool) -> list[Tensor]:
    """Give the output, the gradients of all inputs, and the running statistics."""
    inputs = [None if each is None else each.detach().clone().requires_grad_() for each in inputs]
    running = [each.clone() for each in running]
    y = function(*inputs, *running, MOMENTUM, EPS, relu)
    y.backward(grad)
    return [y.detach(), *(each.grad for each in inputs if each is not None), *running]


def exact(x, other, weight, bias, mean, var, momentum, eps, relu) -> Tensor:
    y = functional.batch_norm(x, mean, var, weight, bias, True, momentum, eps)
    y = y if other is None else y + other
    return y.relu() if relu else y


def errors(shape: tuple[int, ...], dtype: torch.dtype, adds: bool, relu: bool, offset: float) -> list[float]:
    """Give the error of each result, relative to its largest value."""
    channels = shape[1]
    x, other = (draw(shape, seed).to(dtype).to(memory_format=torch.channels_last) for seed in (0, 1))
    x = x + offset
    grad = draw(shape, 2).to(dtype)  # contiguous: brought into channels_last
    inputs = [x, other if adds else None, draw((channels,), 3), draw((channels,), 4)]
    running = [draw((channels,), 5), draw((channels,), 6).abs()]
    given = passes(fused_norm.norm, inputs, grad, running, relu)
    assert given[0].dtype == dtype and given[0].is_contiguous(memory_format=torch.channels_last)
    in_double = [None if each is None else each.double() for each in inputs]
    expected = passes(exact, in_double, grad.double(), [each.double() for each in running], relu)
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(given, expected, strict=True)]


def print_values() -> None:
    fused_norm.TILE_OF_MOMENTS, fused_norm.TILE = 512, 256  # pieces of several tiles with few elements
    for name, shape in SHAPES.items():
        for dtype, (adds, relu) in itertools.product(
            (torch.float32, torch.bfloat16), ((False, False), (False, True), (True, True))
        ):
            print(name, adds, relu, dtype, max(errors(shape, dtype, adds, relu, 0.0)), sep=" / ")
    print("a mean far from 0", max(errors((4, 16, 8, 13), torch.float32, False, False, 1000.0)), sep=" / ")
    x = draw((2, 16, 3, 5), 0).requires_grad_()
    x.data[0, 3, 1, 1] = torch.nan
    y = fused_norm.norm(x, None, *(torch.ones(16) for _ in range(4)), MOMENTUM, EPS, True)
    y.sum().backward()
    for tensor in (y, x.grad):
        assert tensor[:, 3].isnan().all() and not tensor[:, [0, 1, 2, 4]].isnan().any()
    try:
        fused_norm.norm(torch.ones(1, 16, 1, 1), None, *(torch.ones(16) for _ in range(4)), MOMENTUM, EPS, True)
    except ValueError as error:
        print("one value per channel", error, sep=" / ")


def images_and_labels() -> tuple[Tensor, Tensor]:
    return draw((4, 3, 8, 8), 10).to(memory_format=torch.channels_last), torch.tensor([0, 3, 5, 9])


def build() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("resnet20", num_classes=10, in_channels=3, image_size=8)
    return model.to(memory_format=torch.channels_last)


def print_model() -> None:
    """Compare gradients and statistics of a whole model in float32."""
    results = []
    for as_wanted in (fused_norm.norms_fused, contextlib.nullcontext):
        model, (images, labels) = build(), images_and_labels()
        with as_wanted():
            functional.cross_entropy(model(images), labels).backward()
        results.append(model.state_dict() | {f"{name}.grad": each.grad for name, each in model.named_parameters()})
    fused, plain = results
    for ending in ("grad", "running_mean", "running_var"):
        pairs = [(fused[name], plain[name]) for name in plain if name.endswith(ending)]
        print(ending, len(pairs), max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs), sep=" / ")


def print_step() -> None:
    """Compare the logits of a step in bf16 with those of float32: fused, then torch's own; and what is then counted."""
    images, labels = images_and_labels()
    exact = build()(images).detach()
    fused_norm.why_not_fused(images.device)  # calls it as well
    norm, calls = fused_norm.norm, []
    fused_norm.norm = lambda *arguments: calls.append(arguments) or norm(*arguments)
    for fused_norms in (True, False):
        calls.clear()
        model = build()
        optimizer = build_optimizer("adamsrt", model, lr=1e-3)
        step = TrainStep(model, optimizer, precision="bf16", fused_norms=fused_norms)
        _, logits = step(images, labels)
        counts = {int(value) for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
        print(len(calls), counts, float((logits - exact).norm() / exact.norm()), sep=" / ")


if __name__ == "__main__":
    {"values": print_values, "model": print_model, "step": print_step}[sys.argv[1]]()
