"""Capture of what is launched on a GPU as a CUDA graph, in a process whose other threads go on with their work."""

import contextlib
import threading
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

# Memory is given back by waiting for the whole device, which is an error while another thread captures; and torch keeps
# some state of a capture for the process.
_one_at_a_time = threading.Lock()


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None: ...


def capture(stream: torch.cuda.Stream, take: Callable[[], T], *, make_room: bool) -> tuple[Graph, T] | None:
    """Capture what a function launches, which runs nothing; None, with a warning, where that fails.

    `torch.cuda.graph` does the same, but always makes room, and waits for what other threads have launched.

    Args:
        stream: not the default one.
        make_room: first give unused memory back to the device, for the memory of the graph. All streams wait for that.
    Raises:
        OutOfMemoryError: the device has too little memory.
    Returns:
        The graph, and what the function returned. Tensors that it made lie in memory of the graph's own.
    """
    graph: Any = torch.cuda.CUDAGraph()
    try:
        with _one_at_a_time, torch.cuda.device(stream.device), torch.cuda.stream(stream):
            if make_room:
                torch.cuda.empty_cache()
            # thread_local: what other threads do meanwhile, such as getting memory, is none of this capture's business
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                result = take()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        cause = _cause(error)
        if isinstance(cause, torch.OutOfMemoryError):  # a step without a graph takes no less
            raise cause from None
        mend(stream)
        warnings.warn(f"training goes on without a CUDA graph ({_first_line(cause)})", stacklevel=3)
        return None
    return graph, result


def no_capture() -> contextlib.AbstractContextManager[Any]:
    """Have captures of other threads wait while this is open: for what waits for the device, which would break them."""
    return _one_at_a_time


def mend(stream: torch.cuda.Stream) -> None:
    """Make the device's random numbers work again after a failed capture, by one of nothing.

    Up to torch 2.11 at least the generator is left as in a capture, and draws nothing outside of one.
    """
    graph: Any = torch.cuda.CUDAGraph()
    with contextlib.suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the graph is empty
        with _one_at_a_time, torch.cuda.device(stream.device), torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            graph.capture_end()


def _cause(error: BaseException) -> BaseException:
    """Give what went wrong first: the end of a broken capture fails as well, and says nothing of the cause."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


class Aside:
    """The stream to warm up and to capture on: the current one, or one beside the default one.

    The default one cannot be captured. The warm-up is on the same stream, since cuBLAS has a workspace for each.
    """

    def __init__(self) -> None:
        self._own: torch.cuda.Stream | None = None

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        current = torch.cuda.current_stream(device)
        if current != torch.cuda.default_stream(device):
            return current
        if self._own is None:
            self._own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._own

    def take(self, device: torch.device, work: Callable[[], T]) -> T:
        """Do something on it, between what the current stream does before and after."""
        stream, current = self.stream(device), torch.cuda.current_stream(device)
        if stream == current:
            return work()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = work()
        current.wait_stream(stream)
        return result
