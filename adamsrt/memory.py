"""Freed memory stays with the process: each step of a training on a CPU asks for the same large buffers again.

By default glibc's allocator gives a large buffer back to the system as soon as it is freed. The next step gets fresh
pages, which the system clears first: about a tenth of the CPU time of a step of ResNet20 (benchmarks/epoch.py).
"""

import ctypes
import os

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# By these a user has chosen otherwise.
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; gives whether it does from now on.

    For processes that train and do little else: what one of them holds, no other gets. Nothing happens without glibc,
    or where the environment configures its allocator.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
