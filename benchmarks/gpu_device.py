"""The GPU that is measured: its clock, its memory, its graphs. A CPU stands in for it in tests."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from adamsrt.capture import mend

WARM_UP_STEPS = 3


class Device:
    """Args: name: "cuda" or "cpu"; on a CPU nothing is captured, and no memory counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gpu = name.startswith("cuda")

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, take: Callable[[], Any]) -> float:
        """Give the time on the clock until all that it launched is done."""
        self.synchronize()
        start_s = time.perf_counter()
        take()
        self.synchronize()
        return time.perf_counter() - start_s

    def seconds_per_step(self, take: Callable[[], Any], steps: int) -> tuple[float, float]:
        """Give what a step takes, after one unseen: the GPU by its own clock, and Python until all are launched."""
        take()
        self.synchronize()
        if not self.is_gpu:
            seconds = self.seconds(lambda: [take() for _ in range(steps)]) / steps
            return seconds, seconds
        event: Any = torch.cuda.Event
        start, end = (event(enable_timing=True) for _ in range(2))
        start.record()
        start_s = time.perf_counter()
        for _ in range(steps):
            take()
        launched_s = time.perf_counter() - start_s
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / steps, launched_s / steps

    def captured(self, take: Callable[[], Any]) -> Callable[[], Any]:
        """Give the replay of what it launches, captured after some calls on another stream."""
        if not self.is_gpu:
            return take
        new_stream: Any = torch.cuda.Stream
        stream = new_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                take()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                take()
        except RuntimeError:
            mend(stream)
            raise

        def replay(keep_alive: Any = take) -> None:  # with the tensors that the graph reads and writes
            graph.replay()

        return replay

    @contextlib.contextmanager
    def deterministic(self) -> Iterator[None]:
        """Have cuDNN compute the same bits again while this is open."""
        before = torch.backends.cudnn.deterministic
        torch.backends.cudnn.deterministic = True
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = before

    @contextlib.contextmanager
    def tried_algorithms(self, wanted: bool) -> Iterator[None]:
        """Have cuDNN try its algorithms and take the fastest while this is open."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = wanted
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def raise_at_waits(self, wanted: bool) -> None:
        """Have torch raise RuntimeError where it would wait for the GPU, or wait again."""
        if self.is_gpu:
            torch.cuda.set_sync_debug_mode("error" if wanted else "default")

    def allocated_bytes(self) -> int:
        """Give what tensors occupy now."""
        self.synchronize()
        return torch.cuda.memory_allocated() if self.is_gpu else 0

    def forget_peak(self) -> None:
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> tuple[int, int]:
        """Give the most that tensors occupied since the last `forget_peak`, and the most that torch held."""
        if not self.is_gpu:
            return 0, 0
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def clean_up(self) -> None:
        """Give back all memory. Raises where the GPU takes nothing any more."""
        gc.collect()
        has_used_gpu: Any = torch.cuda.is_initialized
        if self.is_gpu and has_used_gpu():
            self.synchronize()
            torch.cuda.empty_cache()


def render_spread(values: Sequence[float], digits: int = 3) -> str:
    """Give median [smallest, largest]."""
    return f"{statistics.median(values):.{digits}g} [{min(values):.{digits}g}, {max(values):.{digits}g}]"
