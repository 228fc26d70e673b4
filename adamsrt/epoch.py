"""One pass over the data: steps of training, evaluation, and what is measured of the weights after it.

Nothing here waits for the device before the pass has ended.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamsrt.fused_norm import norms_fused, why_not_fused
from adamsrt.models.base import ConvNet
from adamsrt.precision import compute_logits, float32_products
from adamsrt.together import cast, counted_together, norms_to_count, weights_to_cast

OnBatch = Callable[[int, int], None]


class Totals:
    """Sums of the loss and of the correct predictions, on the device: one wait when they are read, not one per batch.

    They stay where they are and are added to in place, so that a CUDA graph can do it as a part of a step.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (2,), made on the device of what is added first

    def reset(self) -> None:
        """Begin at zero."""
        if self._sums is not None:
            self._sums.zero_()

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, which needs no gradient, its logits (B, num_classes) and labels (B,)."""
        if self._sums is None:
            self._sums = torch.zeros(2, dtype=torch.float64, device=mean_loss.device)
        loss, correct = self._sums[0], self._sums[1]
        loss.add_(mean_loss, alpha=len(labels))
        correct.add_((logits.argmax(dim=1) == labels).sum())

    def averages(self, examples: int) -> tuple[float, float]:
        """Give loss and accuracy per example of so many, those added since the last reset; waits for the device."""
        if self._sums is None or examples == 0:
            raise ValueError("a loader must give at least one batch, got none")
        if self._sums.is_cuda:
            # Asleep: to read a tensor is to wait in a loop, of nearly an epoch, on a core that another trial may need.
            reached = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            reached.record(torch.cuda.current_stream(self._sums.device))
            reached.synchronize()
        loss, correct = self._sums.tolist()
        return loss / examples, correct / examples


class Step(Protocol):
    """What `train_epoch` asks of a step."""

    @property
    def totals(self) -> Totals:
        """What every step adds its batch to, as it was just before the step."""
        ...

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; give the mean loss and the logits (B, num_classes) before it."""
        ...


class TrainStep:
    """A step of cross-entropy descent on one batch; a `Step`.

    Args:
        precision: see `adamsrt.precision`; None computes as the process is set up.
        memory_format: what images are brought into; that of the model's weights is the fastest.
        fused_norms: in bf16, have BatchNorm of a model of ours done by kernels that round less often, where they work:
            for steps that are captured, since Python takes longer to launch them than torch its own.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
        fused_norms: bool = False,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.precision, self.memory_format = precision, memory_format
        self.totals = Totals()
        self._to_cast = weights_to_cast(model) if precision == "bf16" else {}
        self._norms = norms_to_count(model)
        self._fuses_norms = fused_norms and precision == "bf16" and isinstance(model, ConvNet)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; give the mean loss and the logits (B, num_classes) before it."""
        loss, logits = self.gradients(images, labels)
        self.optimizer.step()
        return loss, logits

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the mean loss in the parameters and add the batch to the totals.

        Returns:
            The mean loss and the logits (B, num_classes).
        """
        self.optimizer.zero_grad(set_to_none=True)
        with float32_products(self.precision, images.device):
            weights = cast(self._to_cast, torch.bfloat16)
            with counted_together(self._norms), self._norms_fused_on(images.device):
                logits = compute_logits(self.model, images, self.precision, self.memory_format, weights)
            loss = functional.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        loss, logits = loss.detach(), logits.detach()
        self.totals.add(loss, logits, labels)
        return loss, logits

    def _norms_fused_on(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        is_fused = self._fuses_norms and why_not_fused(device) is None
        return norms_fused() if is_fused else contextlib.nullcontext()


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_batch: OnBatch | None = None,
    *,
    step: Step | None = None,
) -> tuple[float, float]:
    """Take one step of cross-entropy descent per batch.

    Args:
        batches: a sized iterable of images (B, C, H, W) and labels (B,), on the model's device.
        on_batch: called after each batch with (batches done, all batches).
        step: how a step is taken: a `TrainStep` of model and optimizer (the default), or what does the same faster.
            Its totals begin anew.
    Returns:
        Loss and accuracy, averaged per sample, each measured just before its step.
    """
    model.train()
    step = step or TrainStep(model, optimizer)
    step.totals.reset()
    examples = 0
    num_batches = len(batches)  # type: ignore[arg-type]
    for index, (images, labels) in enumerate(batches, start=1):
        step(images, labels)
        examples += len(labels)
        if on_batch is not None:
            on_batch(index, num_batches)
    return step.totals.averages(examples)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    weights: Mapping[str, Tensor] | None = None,
    precision: str | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> tuple[float, float]:
    """Measure loss and accuracy in eval mode, averaged per sample.

    Args:
        batches: images (B, C, H, W) and labels (B,), on the model's device.
        weights: parameters and buffers by name to use instead of the model's own, which stay as they are.
        precision, memory_format: as for `TrainStep`.
    """
    was_training = model.training
    model.eval()
    totals = Totals()
    examples = 0
    for images, labels in batches:
        with float32_products(precision, images.device):
            logits = compute_logits(model, images, precision, memory_format, weights)
        totals.add(functional.cross_entropy(logits, labels), logits, labels)
        examples += len(labels)
    model.train(was_training)
    return totals.averages(examples)


@torch.no_grad()
def norms(weights: Sequence[nn.Parameter], *, lr: float) -> dict[str, float]:
    """Measure scale-invariant weights, averaged over their spheres, one per output channel.

    Args:
        weights: (C_out, ...) each, with the gradients of the last step.
    Returns:
        weight_norm: mean of ||x||. grad_norm: mean of ||gradient|| (0 where there is none). effective_lr: mean of
        lr / ||x||^2, what the step size of SGD comes to on the unit sphere (arXiv:2006.13382).
    """
    grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    lengths, grad_lengths = (
        torch.cat([torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), dtype=torch.float64) for x in tensors])
        for tensors in (weights, grads)
    )
    measured = torch.stack([lengths.mean(), grad_lengths.mean(), (lr / lengths.square()).mean()]).tolist()
    return dict(zip(("weight_norm", "grad_norm", "effective_lr"), measured, strict=True))
