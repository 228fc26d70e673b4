"""The training loop of the published protocol, one epoch at a time; it prints nothing and writes nothing.

    training = Training(TrainingSpec("digits", "resnet20", "adamsrt", {"lr": 1e-3, "betas": (0.9, 0.99)}, epochs=15))
    while training.epoch < training.spec.epochs:
        result = training.run_epoch()
    print(training.test())

A user's own model and data need no `Training`: `train_epoch` and `evaluate` take any module and any loader.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamsrt.dataloaders import DATASETS
from adamsrt.dataloaders.loader import generator_for
from adamsrt.models import build_model
from adamsrt.optimizers import build_optimizer

LR_DROP_FACTOR = 0.1
LR_DROPS_AT = ((1, 3), (5, 9), (7, 9))  # fractions of all epochs: 135, 225 and 315 of 405
PLACES = ("data_root", "device", "num_workers")  # where and how a spec runs; all its other fields say what is computed

OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that determines one training.

    Args:
        hyper_parameters: the optimizer's own, e.g. {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0}.
        epochs: the full budget; the learning-rate schedule is laid out over it.
        seed: keys initial weights, shuffling and augmentation.
        split_seed: keys the train/validation split. valid_split: its fraction, None = the dataset's default.
        limit_train_examples: train on the first n only; validation and test stay whole.
    """

    dataset: str
    model: str
    optimizer: str
    hyper_parameters: Mapping[str, Any]
    epochs: int
    seed: int = 0
    data_root: str = "data"
    device: str = "cpu"
    batch_size: int = 128
    valid_split: float | None = None
    split_seed: int = 0
    limit_train_examples: int | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave; losses and accuracies are averaged per sample, accuracies are fractions in [0, 1].

    Args:
        epoch: epochs done, 1 after the first. lr: the learning rate in this epoch.
        train_loss, train_accuracy: averaged over the epoch's batches, each measured just before its step.
        seconds: training and validation together. train_images_per_second: training alone.
        weight_norm, grad_norm, effective_lr: of the scale-invariant weights after the epoch's last step; see `norms`.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    lr: float
    seconds: float
    train_images_per_second: float
    weight_norm: float
    grad_norm: float
    effective_lr: float

    @property
    def is_finite(self) -> bool:
        """False where a loss became infinite or NaN: the training has diverged."""
        return math.isfinite(self.train_loss) and math.isfinite(self.valid_loss)


@dataclass(frozen=True)
class TestResult:
    """Test loss and accuracy of the weights after `epoch`, the best on validation."""

    __test__ = False  # its name looks like a test class to pytest

    test_loss: float
    test_accuracy: float
    epoch: int


class Training:
    """One model being trained on one dataset by one optimizer.

    Equal specs give equal weights, bit for bit on CPU with an equal number of threads. The initial weights are drawn
    from a seed of their own; the global random state stays as it was.

    Attributes:
        spec, model, optimizer: what it was built from, and the live objects.
        epoch: epochs done.
        best_epoch, best_valid_accuracy: the earliest epoch with the highest validation accuracy among those with
            finite losses; 0 and -inf before the first.
    Raises:
        ValueError: for a name, size or hyper-parameter that does not exist or fit, or data that cannot be had.
    """

    def __init__(self, spec: TrainingSpec) -> None:
        self.spec = spec
        dataset = DATASETS[spec.dataset]
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU: alike for every device
            torch.default_generator.manual_seed(generator_for(spec.seed, 0, "weights").initial_seed())
            self.model = build_model(
                spec.model,
                num_classes=dataset.num_classes,
                in_channels=dataset.in_channels,
                image_size=dataset.image_size,
            ).to(spec.device)
        self.optimizer = build_optimizer(spec.optimizer, self.model, **spec.hyper_parameters)
        self._scale_invariant = self.model.conv_params()
        self._scheduler = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, milestones=list(lr_drop_epochs(spec.epochs)), gamma=LR_DROP_FACTOR
        )
        optional = {} if spec.valid_split is None else {"valid_split": spec.valid_split}
        self._train, self._valid, self._test = dataset.get_dataloaders(
            train_batch_size=spec.batch_size,
            dataset_root_path=spec.data_root,
            num_workers=spec.num_workers,
            seed=spec.seed,
            split_seed=spec.split_seed,
            limit_train_examples=spec.limit_train_examples,
            device=spec.device,
            **optional,
        )
        self.epoch = 0
        self.best_epoch = 0
        self.best_valid_accuracy = -math.inf
        self._best_weights: dict[str, Tensor] | None = None

    def run_epoch(self, on_batch: OnBatch | None = None) -> EpochResult:
        """Train one epoch, validate, and keep the weights where they are the best so far.

        A diverged epoch is returned like any other, with `is_finite` False; what follows is the caller's decision.

        Args:
            on_batch: called after each training batch with (batches done, batches of the epoch).
        Raises RuntimeError after the last epoch of the spec.
        """
        if self.epoch >= self.spec.epochs:
            raise RuntimeError(f"run_epoch needs an epoch left, got {self.epoch} of {self.spec.epochs} done")
        start_s = time.perf_counter()
        lr = float(self.optimizer.param_groups[0]["lr"])
        self._train.set_epoch(self.epoch)
        train_loss, train_accuracy = train_epoch(self.model, self.optimizer, self._train, on_batch)
        train_s = time.perf_counter() - start_s
        self._scheduler.step()
        valid_loss, valid_accuracy = evaluate(self.model, self._valid)
        self.epoch += 1
        result = EpochResult(
            epoch=self.epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            lr=lr,
            seconds=time.perf_counter() - start_s,
            train_images_per_second=self._train.num_examples / train_s,
            **norms(self._scale_invariant, lr=lr),
        )
        if result.is_finite and valid_accuracy > self.best_valid_accuracy:
            self.best_epoch, self.best_valid_accuracy = self.epoch, valid_accuracy
            self._best_weights = _copy_tensors(self.model.state_dict())
        return result

    def test(self) -> TestResult:
        """Evaluate the best validation epoch's weights on the test set; the live weights stay as they are.

        Raises RuntimeError before the first epoch with finite losses.
        """
        if self._best_weights is None:
            raise RuntimeError(f"test needs an epoch with finite losses, got none in {self.epoch}; run_epoch first")
        loss, accuracy = evaluate(self.model, self._test, weights=self._best_weights)
        return TestResult(test_loss=loss, test_accuracy=accuracy, epoch=self.best_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Copy all that a resume needs: tensors and plain containers, fit for `torch.load(..., weights_only=True)`."""
        scheduler = self._scheduler.state_dict()
        del scheduler["milestones"]  # a Counter, not a plain container; it follows from the spec
        return copy.deepcopy(
            {
                "spec": _what_is_computed(self.spec),
                "epoch": self.epoch,
                "model": dict(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": scheduler,
                "best_epoch": self.best_epoch,
                "best_valid_accuracy": self.best_valid_accuracy,
                "best_weights": self._best_weights,
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of an equal spec, as if never interrupted; device, data root and workers may differ.

        Raises ValueError for a state of another spec, naming the first field that differs.
        """
        for name, value in _what_is_computed(self.spec).items():
            found = state["spec"].get(name)
            if found != value:
                raise ValueError(f"the state must be of the same spec, got {name} {found!r} where {value!r} is trained")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
        self.epoch = state["epoch"]
        self.best_epoch = state["best_epoch"]
        self.best_valid_accuracy = state["best_valid_accuracy"]
        best = state["best_weights"]
        self._best_weights = None if best is None else _copy_tensors(best, device=self.spec.device)


def lr_drop_epochs(epochs: int) -> tuple[int, ...]:
    """List the epochs after which the learning rate drops tenfold: 1/3, 5/9 and 7/9 of all, rounded, at least 1."""
    return tuple(max(1, round(epochs * numerator / denominator)) for numerator, denominator in LR_DROPS_AT)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_batch: OnBatch | None = None,
) -> tuple[float, float]:
    """Take one step of cross-entropy descent per batch.

    Args:
        batches: a sized iterable of images (B, C, H, W) and labels (B,), on the model's device.
        on_batch: called after each batch with (batches done, all batches).
    Returns:
        Loss and accuracy, averaged per sample.
    """
    model.train()
    totals = _Totals()
    num_batches = len(batches)  # type: ignore[arg-type]
    for index, (images, labels) in enumerate(batches, start=1):
        optimizer.zero_grad(set_to_none=True)
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals.add(loss.detach(), logits.detach(), labels)
        if on_batch is not None:
            on_batch(index, num_batches)
    return totals.averages()


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, weights: Mapping[str, Tensor] | None = None
) -> tuple[float, float]:
    """Measure loss and accuracy in eval mode, averaged per sample.

    Args:
        batches: images (B, C, H, W) and labels (B,), on the model's device.
        weights: parameters and buffers by name to use instead of the model's own, which stay as they are.
    """
    was_training = model.training
    model.eval()
    totals = _Totals()
    for images, labels in batches:
        logits = model(images) if weights is None else torch.func.functional_call(model, dict(weights), (images,))
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


def _copy_tensors(tensors: Mapping[str, Tensor], *, device: str | None = None) -> dict[str, Tensor]:
    return {name: tensor.detach().to(device=device, copy=True) for name, tensor in tensors.items()}


def _what_is_computed(spec: TrainingSpec) -> dict[str, Any]:
    """Give the spec's fields that determine the numbers, as plain values that survive torch.save and JSON alike."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec) if field.name not in PLACES}
    values["hyper_parameters"] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in spec.hyper_parameters.items()
    }
    return values
