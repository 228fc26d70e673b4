"""Training steps as CUDA graphs: replayed, a step costs Python two copies and two launches instead of hundreds.

The forward and backward pass, with the sums over the epoch, is one graph. It knows no hyper-parameter, so that it
serves one training after the other of the same model. The optimizer's step is another, a few launches. Ours read their
options from the device, so that their graph serves the next training too; those of torch are captured anew for each.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamsrt.capture import Aside, Graph, capture, no_capture
from adamsrt.epoch import Totals, TrainStep
from adamsrt.optimizers.base import GroupedOptimizer

WARM_UP_STEPS = 3  # taken as steps of the training: graph or not, the numbers are the same
T = TypeVar("T")


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
    """Takes the steps of a `TrainStep` by replaying graphs: on batches of one size, and of one more that comes again.

    That other size is the one of an epoch's last batch. Where something cannot be captured it says so once and goes on
    without that graph. The loss and logits that it gives are overwritten by the next step. Several may be at work in
    one process, each in a thread on a stream of its own.

    Args:
        step: its optimizer is made capturable, where it has that option; to be called before its first step.
        batch_size: of nearly all batches.
    """

    def __init__(self, step: TrainStep, batch_size: int) -> None:
        self._step, self._batch_size = step, batch_size
        self._parameters = list(step.model.parameters())
        self._passes: dict[int, Passes] = {}  # by the size of the batch
        self._steps_of_size: Counter[int] = Counter()  # without a graph
        self._update: Graph | None = None
        self._lrs: list[float] = []  # those that the graph of the update reads, where there is one
        self._lrs_on_device: list[Tensor | None] = []
        self._aside = Aside()
        self._begin_with(step.optimizer)

    @property
    def totals(self) -> Totals:
        """The sums of the steps, replayed or not."""
        return self._step.totals

    @property
    def replayed_sizes(self) -> list[int]:
        """The sizes of batches whose passes are replayed from now on."""
        return list(self._passes)

    def go_on_with(self, optimizer: Optimizer) -> None:
        """Take the steps of the next training of the model, with fresh gradients; the passes stay.

        Args:
            optimizer: another one of the same parameters, which has taken no step; or the same, restarted: then the
                graph of its step stays as well.
        """
        if optimizer is not self._step.optimizer:
            self._begin_with(optimizer)
            return
        self._begin()
        self._lrs = []  # all options may have changed

    def forget(self) -> None:
        """Drop the graph of the optimizer's step, as needed where the optimizer has got another state."""
        self._update = None
        self._steps_before_update = WARM_UP_STEPS
        self._lrs, self._lrs_on_device = [], []
        self._has_its_gradients = False

    def _begin_with(self, optimizer: Optimizer) -> None:
        self._step.optimizer = optimizer
        make_capturable(optimizer)
        self._begin()
        self.forget()

    def _begin(self) -> None:
        self._works = self._update_works = True
        self._has_its_gradients = False

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; give the mean loss and the logits (B, num_classes) before it."""
        passes = self._passes.get(len(labels))
        if passes is None:
            if not self._is_due(len(labels)):
                return self._without_graph(images, labels)
            passes = self._capture_passes(images, labels)
            if passes is None:
                self._works = False
                return self._without_graph(images, labels)
            self._passes[len(labels)] = passes
        passes.images.copy_(images)
        passes.labels.copy_(labels)
        passes.graph.replay()
        if not self._has_its_gradients:
            for parameter, gradient in zip(self._parameters, passes.gradients, strict=True):
                parameter.grad = gradient
            self._has_its_gradients = True
        self._take_update(images.device)
        return passes.loss, passes.logits

    def _is_due(self, size: int) -> bool:
        """Tell whether the passes of a batch size are to be captured now."""
        has_a_place = size == self._batch_size or list(self._passes) == [self._batch_size]
        return self._works and has_a_place and self._steps_of_size[size] >= WARM_UP_STEPS

    def _without_graph(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        is_first = not self._steps_of_size
        self._steps_of_size[len(labels)] += 1
        self._steps_before_update -= 1
        self._has_its_gradients = False  # a backward pass makes new ones
        if not self._works:
            return self._step(images, labels)
        # In a thread's first step libraries set themselves up for it, which may wait for the device.
        with no_capture() if is_first else contextlib.nullcontext():
            return self._warm_up(images.device, lambda: self._step(images, labels))

    def _take_update(self, device: torch.device) -> None:
        """Take the optimizer's step on the gradients of the passes."""
        optimizer = self._step.optimizer
        lrs = [float(group["lr"]) for group in optimizer.param_groups]
        if lrs != self._lrs:
            self._lrs = lrs
            self._renew_options()
        if self._update is None and self._update_works and self._steps_before_update <= 0:
            self._update = self._capture_update(device)
            self._update_works = self._update is not None
        if self._update is not None:
            self._update.replay()
        elif self._update_works:
            self._steps_before_update -= 1
            self._warm_up(device, optimizer.step)
        else:
            optimizer.step()

    def _renew_options(self) -> None:
        """Have a capture, or the next replay, read the options as they are now; where it would not, drop the graph."""
        optimizer = self._step.optimizer
        if isinstance(optimizer, GroupedOptimizer):
            are_read = optimizer.write_options()
            if not are_read and self._update is not None:  # a fused step is to be taken once before each capture
                self._steps_before_update = 1
        else:
            are_read = None not in self._lrs_on_device
            for lr, on_device in zip(self._lrs, self._lrs_on_device, strict=False):  # none before the capture
                if on_device is not None:
                    on_device.fill_(lr)
        if not are_read:
            self._update = None

    @contextlib.contextmanager
    def _read_from_device(self) -> Iterator[None]:
        """Let an optimizer of torch read its learning rates from the device while this is open."""
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

    def _gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take the passes, and leave the gradients of every batch size where the optimizer's graph reads them."""
        given = self._step.gradients(images, labels)
        if self._batch_size in self._passes:
            common = self._passes[self._batch_size].gradients
            pairs = [
                (place, parameter.grad)
                for place, parameter in zip(common, self._parameters, strict=True)
                if place is not None and parameter.grad is not None
            ]
            torch._foreach_copy_([place for place, _ in pairs], [gradient for _, gradient in pairs])
            for place, parameter in zip(common, self._parameters, strict=True):
                parameter.grad = place
        return given

    def _capture_passes(self, images: Tensor, labels: Tensor) -> Passes | None:
        """Capture a forward and backward pass, which trains nothing and adds nothing; None where that fails."""
        images, labels = images.to(memory_format=self._step.memory_format, copy=True), labels.clone()
        self._step.optimizer.zero_grad(set_to_none=True)
        self._has_its_gradients = False
        captured = self._capture(images.device, lambda: self._gradients(images, labels), make_room=True)
        if captured is None:
            self._step.optimizer.zero_grad(set_to_none=True)
            return None
        graph, (loss, logits) = captured
        return Passes(graph, images, labels, loss, logits, [parameter.grad for parameter in self._parameters])

    def _capture_update(self, device: torch.device) -> Graph | None:
        """Capture a step of the optimizer, which takes none; None where that fails."""
        optimizer = self._step.optimizer
        self._lrs_on_device = [lr_on_device(optimizer, group, device) for group in optimizer.param_groups]
        with self._read_from_device():
            captured = self._capture(device, optimizer.step, make_room=False)
        return None if captured is None else captured[0]

    def _warm_up(self, device: torch.device, take: Callable[[], T]) -> T:
        """Do something without a graph on the stream of its capture."""
        return self._aside.take(device, take)

    def _capture(self, device: torch.device, take: Callable[[], T], *, make_room: bool) -> tuple[Graph, T] | None:
        return capture(self._aside.stream(device), take, make_room=make_room)


def make_capturable(optimizer: Optimizer) -> None:
    """Set the options by which a step can be captured, and is a few launches; before the first step.

    Where torch's own optimizers are left to choose they take foreach, which raises beta to the number of the step in a
    launch for each parameter if it is to be captured.
    """
    is_ours = isinstance(optimizer, GroupedOptimizer)
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        if not is_ours and "fused" in group and group["fused"] is None and group["foreach"] is None:
            group["fused"] = True


def lr_on_device(optimizer: Optimizer, group: dict[str, Any], device: torch.device) -> Tensor | None:
    """Put a group's learning rate where a graph of torch's own optimizer reads it; None where it reads numbers only.

    Ours keep all of their options on the device themselves.
    """
    if isinstance(optimizer, GroupedOptimizer) or "capturable" not in group:
        return None
    return torch.full((), float(group["lr"]), dtype=torch.float32, device=device)  # waits for nothing
