"""Training steps as CUDA graphs: replayed, a step costs Python two launches instead of hundreds.

The forward and backward pass is one graph. It knows no hyper-parameter, so that it serves one training after the other
of the same model. The optimizer's step is another, a few launches that are captured anew for each training; the
learning rate is read from the device, where a drop of it is written.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamsrt.epoch import TrainStep
from adamsrt.optimizers.base import GroupedOptimizer

WARM_UP_STEPS = 3  # taken as steps of the training: graph or not, the numbers are the same
T = TypeVar("T")

# A capture begins by waiting for the whole device, which is an error while another thread captures.
_one_at_a_time = threading.Lock()


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None: ...


@dataclass(frozen=True)
class Passes:
    """The captured forward and backward pass: where it reads a batch from, and where it leaves what it gives."""

    graph: Graph
    images: Tensor
    labels: Tensor
    loss: Tensor
    logits: Tensor
    gradients: list[Tensor | None]


class GraphedStep:
    """Takes the steps of a `TrainStep` on batches of one size by replaying graphs; other batches as they come.

    Where something cannot be captured it says so once and goes on without that graph. The loss and logits that it gives
    are overwritten by the next step. Several may be at work in one process, each in a thread on a stream of its own.

    Args:
        step: its optimizer is made capturable, where it has that option; to be called before its first step.
        batch_size: of the batches that are worth a graph.
    """

    def __init__(self, step: TrainStep, batch_size: int) -> None:
        self._step, self._batch_size = step, batch_size
        self._parameters = list(step.model.parameters())
        self._works = True
        self._passes: Passes | None = None
        self._stream: torch.cuda.Stream | None = None
        self.go_on_with(step.optimizer)

    def go_on_with(self, optimizer: Optimizer) -> None:
        """Take the steps of another optimizer of the same parameters, which has taken none; the passes stay."""
        self._step.optimizer = optimizer
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        self._optimizer_works = True
        self.forget()

    def forget(self) -> None:
        """Drop the graph of the optimizer's step, as needed where the optimizer has got another state."""
        self._update: Graph | None = None
        self._steps_before_capture = WARM_UP_STEPS
        self._lrs: list[float] = []
        self._lrs_on_device: list[Tensor | None] = []
        self._has_its_gradients = False

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; give the mean loss and the logits (B, num_classes) before it."""
        if len(labels) != self._batch_size or not self._works:
            return self._without_graph(images, labels)
        if self._passes is None:
            if self._steps_before_capture > 0:
                self._steps_before_capture -= 1
                return self._aside(images.device, lambda: self._without_graph(images, labels))
            self._passes = self._capture_passes(images, labels)
            if self._passes is None:
                self._works = False
                return self._without_graph(images, labels)
        self._passes.images.copy_(images, non_blocking=True)
        self._passes.labels.copy_(labels, non_blocking=True)
        self._passes.graph.replay()
        if not self._has_its_gradients:
            for parameter, gradient in zip(self._parameters, self._passes.gradients, strict=True):
                parameter.grad = gradient
            self._has_its_gradients = True
        self._take_update(images.device)
        return self._passes.loss, self._passes.logits

    def _without_graph(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._has_its_gradients = False  # a backward pass makes new ones
        return self._step(images, labels)

    def _take_update(self, device: torch.device) -> None:
        """Take the optimizer's step on the gradients of the passes."""
        optimizer = self._step.optimizer
        lrs = [float(group["lr"]) for group in optimizer.param_groups]
        if self._update is not None and lrs != self._lrs:
            self._write(lrs)
        if self._update is None and self._optimizer_works:
            if self._steps_before_capture > 0:
                self._steps_before_capture -= 1
                self._aside(device, optimizer.step)
                return
            self._lrs = lrs
            self._lrs_on_device = [lr_on_device(optimizer, group, device) for group in optimizer.param_groups]
            self._update = self._capture_update(device)
            self._optimizer_works = self._update is not None
        if self._update is None:
            optimizer.step()
        else:
            self._update.replay()

    def _write(self, lrs: list[float]) -> None:
        """Have the next replay read other learning rates; where the graph holds the old ones, drop it."""
        if None in self._lrs_on_device:
            has_its_gradients = self._has_its_gradients
            self.forget()
            self._has_its_gradients = has_its_gradients
            return
        self._lrs = lrs
        for lr, on_device in zip(lrs, self._lrs_on_device, strict=True):
            if on_device is not None:
                on_device.fill_(lr)

    @contextlib.contextmanager
    def _read_from_device(self) -> Iterator[None]:
        """Let the optimizer read its learning rates from the device while this is open."""
        groups = self._step.optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            for group, on_device in zip(groups, self._lrs_on_device, strict=True):
                if on_device is not None:
                    group["lr"] = on_device
            yield
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr

    def _aside(self, device: torch.device, take: Callable[[], T]) -> T:
        """Do something on another stream than the default one, as is asked for before a capture."""
        current = torch.cuda.current_stream(device)
        if current != torch.cuda.default_stream(device):
            return take()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = take()
        current.wait_stream(self._stream)
        return result

    def _capture_passes(self, images: Tensor, labels: Tensor) -> Passes | None:
        """Capture a forward and backward pass, which trains nothing; None where that fails."""
        images, labels = images.to(memory_format=self._step.memory_format, copy=True), labels.clone()
        self._step.optimizer.zero_grad(set_to_none=True)
        captured = _capture(images.device, lambda: self._step.gradients(images, labels))
        if captured is None:
            self._step.optimizer.zero_grad(set_to_none=True)
            return None
        graph, (loss, logits) = captured
        return Passes(graph, images, labels, loss, logits, [parameter.grad for parameter in self._parameters])

    def _capture_update(self, device: torch.device) -> Graph | None:
        """Capture a step of the optimizer, which takes none; None where that fails."""
        with self._read_from_device():
            captured = _capture(device, self._step.optimizer.step)
        return None if captured is None else captured[0]


def lr_on_device(optimizer: Optimizer, group: dict[str, Any], device: torch.device) -> Tensor | None:
    """Put a group's learning rate where a graph can read it; None where the optimizer reads numbers only."""
    if "capturable" not in group:
        return None
    # Torch's own kernels read float32; ours compute with float64, as they do with a number.
    dtype = torch.float64 if isinstance(optimizer, GroupedOptimizer) else torch.float32
    return torch.tensor(float(group["lr"]), dtype=dtype, device=device)


def _capture(device: torch.device, take: Callable[[], T]) -> tuple[Graph, T] | None:
    """Capture what a function launches, and give what it returns; None, with a warning, where that fails."""
    graph: Any = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream(device)
    # On a thread's own stream where it has one: torch's stream for captures may be the one of another thread.
    stream = None if current == torch.cuda.default_stream(device) else current
    try:
        with (
            _one_at_a_time,
            torch.cuda.device(device),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            result = take()
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"training goes on without a CUDA graph ({reason})", stacklevel=3)
        return None
    return graph, result
