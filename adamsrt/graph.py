"""A training step as one CUDA graph: replayed, it costs Python a single launch instead of hundreds."""

import warnings

import torch
from torch import Tensor

from adamsrt.epoch import TrainStep

WARM_UP_STEPS = 3  # taken as steps of the training: graph or not, the numbers are the same


class GraphedStep:
    """Takes the steps of a `TrainStep` on batches of one size by replaying a graph; other batches as they come.

    A change of a learning rate is seen, and captured anew. Where a step cannot be captured it says so once and goes on
    without a graph. The loss and logits that it gives are overwritten by the next step.

    Args:
        step: its optimizer is made capturable, where it has that option; to be called before its first step.
        batch_size: of the batches that are worth a graph.
    """

    def __init__(self, step: TrainStep, batch_size: int) -> None:
        self._step, self._batch_size = step, batch_size
        self._works = True
        for group in step.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        self.forget()

    def forget(self) -> None:
        """Drop the graph, as needed where the optimizer has got another state."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps_before_capture = WARM_UP_STEPS
        self._lrs: list[float] = []

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; give the mean loss and the logits (B, num_classes) before it."""
        if len(labels) != self._batch_size or not self._works:
            return self._step(images, labels)
        lrs = [group["lr"] for group in self._step.optimizer.param_groups]
        if lrs != self._lrs:
            self.forget()
            self._lrs = lrs
        if self._steps_before_capture > 0:
            self._steps_before_capture -= 1
            return self._step_aside(images, labels)
        if self._graph is None:
            self._graph = self._capture(images, labels)
            if self._graph is None:
                return self._step(images, labels)
        self._images.copy_(images, non_blocking=True)
        self._labels.copy_(labels, non_blocking=True)
        self._graph.replay()
        return self._loss, self._logits

    def _step_aside(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step on another stream, as is asked for before a capture."""
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            result = self._step(images, labels)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        return result

    def _capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph | None:
        """Capture a step, which takes none; None where that fails."""
        self._images, self._labels = images.to(memory_format=self._step.memory_format, copy=True), labels.clone()
        graph = torch.cuda.CUDAGraph()
        self._step.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.device(images.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._loss, self._logits = self._step(self._images, self._labels)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"training goes on without a CUDA graph ({reason})", stacklevel=2)
            self._step.optimizer.zero_grad(set_to_none=True)
            self._works = False
            return None
        return graph
