"""Trials side by side once more, with as many hardware queues as CUDA allows.

CUDA opens 8 queues by default, so that with more streams than that some wait for others that they do not depend on. The
driver reads the number when a process begins to use the GPU: see `gpu.environment_of`.
"""

import os
from functools import partial

from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_slots import time_slots

VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"


def time_with_queues(model: str, numbers: tuple[int, ...], bench: Bench) -> None:
    bench.note(f"{VARIABLE}={os.environ.get(VARIABLE, 'not set')}")
    time_slots(model, bench, numbers, is_aim=False)


PARTS = (Part("ResNet20", partial(time_with_queues, "resnet20", (1, 16, 8)), 60.0),)
