"""How exactly a model computes: fp32, the reference; tf32 and bf16, which tensor cores take many times faster.

- fp32: float32 throughout; on a GPU also where torch's own default would take TF32 for convolutions.
- tf32: float32 whose products are rounded to 10 bits of mantissa on a GPU; elsewhere the same as fp32.
- bf16: torch's autocast to bfloat16; weights, their gradients, optimizer state and loss stay in float32. bfloat16 has
  the range of float32, so that no loss needs scaling and what diverges is seen as ever. Steps that are replayed as CUDA
  graphs round BatchNorm, what is added to it and ReLU once instead of two or three times; see `adamsrt.fused_norm`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str) -> None:
    """Raise ValueError for a name that is not in PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def best_memory_format(device: str | torch.device, precision: str) -> torch.memory_format:
    """Give the memory format for the weights and images of a convolutional model.

    channels_last is the faster one on a CPU (benchmarks/epoch.py) and what tensor cores work in.
    """
    with_channels_last = torch.device(device).type == "cpu" or precision != "fp32"
    return torch.channels_last if with_channels_last else torch.contiguous_format


@contextlib.contextmanager
def float32_products(precision: str | None, device: torch.device) -> Iterator[None]:
    """Round the products of float32 as `precision` says while this is open; None leaves them as the process has them.

    The switches of torch are those of the whole process; they are put back at the end.
    """
    if precision is None or device.type != "cuda":
        yield
        return
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def compute_logits(
    model: nn.Module,
    images: Tensor,
    precision: str | None,
    memory_format: torch.memory_format,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Give the model's logits, in float32 at least.

    Args:
        weights: parameters and buffers by name to use instead of the model's own.
    """
    images = images.to(memory_format=memory_format)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = torch.func.functional_call(model, dict(weights), (images,)) if weights else model(images)
    return logits.float() if precision == "bf16" else logits
