"""The ways to compute a step, and which of them a parameter takes."""

import enum
import functools
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)
FOREACH_DTYPES = (torch.float32, torch.float64)
FUSED_DTYPES = (*FOREACH_DTYPES, torch.bfloat16, torch.float16)
# Elements in a group. The kernel gives a group to one program: a larger group would keep the rest of the GPU waiting.
LARGEST_FUSED_GROUP = 1 << 16


class Way(enum.Enum):
    """How a step is computed; see `GroupedOptimizer`."""

    FUSED = enum.auto()
    FOREACH = enum.auto()
    FOR_LOOP = enum.auto()


def way_asked_for(x: Tensor, group: dict[str, Any], kernel: str) -> Way:
    """Give the way that the options ask for; by default the fastest one that works on the device of x.

    Args:
        kernel: that of the fused step.
    Raises:
        RuntimeError: for fused=True where the kernel does not work.
    """
    foreach, fused = group["foreach"], group["fused"]
    if foreach is None and fused is None:
        return Way.FUSED if x.is_cuda and why_not_fused(kernel, x.device) is None else Way.FOREACH
    if fused:
        if reason := why_not_fused(kernel, x.device):
            raise RuntimeError(f"fused=True must have a GPU and Triton, got {reason}; fused=None takes what there is")
        return Way.FUSED
    return Way.FOREACH if foreach else Way.FOR_LOOP


def way_to_take(asked: Way, dtype: torch.dtype, size: int, *, has_rows: bool) -> Way:
    """Give the way that was asked for, or the next one that takes a parameter.

    Args:
        size: the number of elements in a group. has_rows: whether each group lies in one piece in memory.
    """
    if asked is Way.FOR_LOOP or not has_rows:
        return Way.FOR_LOOP
    if asked is Way.FUSED and size <= LARGEST_FUSED_GROUP and dtype in FUSED_DTYPES:
        return Way.FUSED
    return Way.FOREACH if dtype in FOREACH_DTYPES else Way.FOR_LOOP


@functools.cache
def why_not_fused(kernel: str, device: torch.device) -> str | None:
    """Say why a kernel does not work on a device; None where it does. The first call launches it once.

    Warns where there is a GPU whose speed is not used.
    """
    try:
        from adamsrt.optimizers import kernels, launch
    except ImportError:
        reason = "no Triton"
    else:
        if device.type != "cuda" and not kernels.INTERPRETED:
            return f"a parameter on {device}"
        try:
            launch.try_out(kernel, device)
            return None
        except Exception as error:  # Triton compiles here: without a C compiler or on an old GPU it fails in many ways
            reason = f"{type(error).__name__} from Triton: {str(error).strip().partition(chr(10))[0]}"
    if device.type == "cuda":
        warnings.warn(f"the optimizer takes foreach instead of fused steps on {device} ({reason})", stacklevel=2)
        return reason
    return f"a parameter on {device}"


def is_captured() -> bool:
    """Tell whether what is launched on this stream is being captured in a CUDA graph."""
    has_used_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return has_used_gpu and torch.cuda.is_current_stream_capturing()


def partition(items: Iterable[T], key: Callable[[T], Key]) -> dict[Key, list[T]]:
    """Collect items by their key, in order."""
    parts: dict[Key, list[T]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return parts
