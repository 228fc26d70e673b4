"""One pass over the data: steps of training, evaluation, and what is measured of the weights after it.

Nothing here waits for the device before the pass has ended.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamsrt.precision import compute_logits, float32_products

OnBatch = Callable[[int, int], None]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainStep:
    """A step of cross-entropy descent on one batch.

    Args:
        precision: see `adamsrt.precision`; None computes as the process is set up.
        memory_format: what images are brought into; that of the model's weights is the fastest.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.precision, self.memory_format = precision, memory_format

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; give the mean loss and the logits (B, num_classes) before it."""
        loss, logits = self.gradients(images, labels)
        self.optimizer.step()
        return loss, logits

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the mean loss in the parameters; give that loss and the logits (B, num_classes)."""
        self.optimizer.zero_grad(set_to_none=True)
        with float32_products(self.precision, images.device):
            logits = compute_logits(self.model, images, self.precision, self.memory_format)
            loss = functional.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()


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
    Returns:
        Loss and accuracy, averaged per sample, each measured just before its step.
    """
    model.train()
    step = step or TrainStep(model, optimizer)
    totals = _Totals()
    num_batches = len(batches)  # type: ignore[arg-type]
    for index, (images, labels) in enumerate(batches, start=1):
        totals.add(*step(images, labels), labels)
        if on_batch is not None:
            on_batch(index, num_batches)
    return totals.averages()


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
    totals = _Totals()
    for images, labels in batches:
        with float32_products(precision, images.device):
            logits = compute_logits(model, images, precision, memory_format, weights)
        totals.add(functional.cross_entropy(logits, labels), logits, labels)
    model.train(was_training)
    return totals.averages()


@torch.no_grad()
def norms(weights: Sequence[nn.Parameter], *, lr: float) -> dict[str, float]:
    """Measure scale-invariant weights, averaged over their spheres, one per output channel.

    Args:
        weights: (C_out, ...) each, with the gradients of the last step.
    Returns:
        weight_norm: mean of ||x||. grad_norm: mean of ||gradient|| (0 where there is none). effective_lr: mean of
        lr / ||x||^2, what the step size of SGD comes to on the unit sphere (arXiv:2006.13382).
    """
    rows = [weight.flatten(1) for weight in weights]
    squares = torch.cat([row.double().square().sum(dim=1) for row in rows])
    grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    grad_squares = torch.cat([grad.flatten(1).double().square().sum(dim=1) for grad in grads])
    measured = torch.stack([squares.sqrt().mean(), grad_squares.sqrt().mean(), (lr / squares).mean()]).tolist()
    return dict(zip(("weight_norm", "grad_norm", "effective_lr"), measured, strict=True))


class _Totals:
    """Sums over an epoch that stay on the device until its end: one wait per epoch, not one per batch."""

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0
        self._correct: Tensor | float = 0.0
        self._examples = 0

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self._loss = self._loss + mean_loss.double() * len(labels)
        self._correct = self._correct + (logits.argmax(dim=1) == labels).sum()
        self._examples += len(labels)

    def averages(self) -> tuple[float, float]:
        if self._examples == 0:
            raise ValueError("a loader must give at least one batch, got none")
        return float(self._loss) / self._examples, float(self._correct) / self._examples
