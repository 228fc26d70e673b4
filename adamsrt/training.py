"""The training loop of the published protocol, one epoch at a time; it prints nothing and writes nothing.

    training = Training(TrainingSpec("digits", "resnet20", "adamsrt", {"lr": 1e-3, "betas": (0.9, 0.99)}, epochs=15))
    while training.epoch < training.spec.epochs:
        result = training.run_epoch()
    print(training.test())

A user's own model and data need no `Training`: `train_epoch` and `evaluate` take any module and any loader.
"""

import contextlib
import copy
import math
import threading
import time
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamsrt.dataloaders import DATASETS
from adamsrt.dataloaders.loader import Loader, Loaders, generator_for
from adamsrt.epoch import OnBatch, Step, TrainStep, evaluate, norms, train_epoch
from adamsrt.graph import GraphedStep
from adamsrt.models import ConvNet, build_model
from adamsrt.optimizers import OPTIMIZERS, build_optimizer
from adamsrt.optimizers.base import GroupedOptimizer
from adamsrt.precision import best_memory_format, check_precision

LR_DROP_FACTOR = 0.1
LR_DROPS_AT = ((1, 3), (5, 9), (7, 9))  # fractions of all epochs: 135, 225 and 315 of 405
# Where and how a spec runs; all its other fields say what is computed.
PLACES = ("data_root", "device", "num_workers", "cuda_graph")
# Of which data the loaders are: all that they depend on but the seed.
DATA = (
    "dataset",
    "data_root",
    "device",
    "batch_size",
    "valid_split",
    "split_seed",
    "limit_train_examples",
    "num_workers",
)
HOW_STEPS_ARE_TAKEN = {"foreach", "fused", "capturable"}  # options of an optimizer that depend on the device
# Images of an evaluation batch, times their pixels: on a CPU what stays in the cache, on a GPU what keeps it busy.
EVALUATION_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 21}

_drawing_weights = threading.Lock()  # torch's modules draw them from the generator of the whole process

__all__ = ["EpochResult", "TestResult", "Training", "TrainingSpec", "evaluate", "norms", "train_epoch"]


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that determines one training.

    Args:
        hyper_parameters: the optimizer's own, e.g. {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0}.
        epochs: the full budget; the learning-rate schedule is laid out over it.
        seed: keys initial weights, shuffling and augmentation.
        split_seed: keys the train/validation split. valid_split: its fraction, None = the dataset's default.
        limit_train_examples: train on the first n only; validation and test stay whole.
        precision: fp32, the reference, tf32 or bf16, of training, validation and test alike; see `adamsrt.precision`.
        cuda_graph: take the steps by replaying a CUDA graph, which in bf16 rounds less often; nothing without a GPU.
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
    precision: str = "fp32"
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


DEFAULTS = {field.name: field.default for field in fields(TrainingSpec) if field.default is not MISSING}


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

    Equal specs give equal weights, bit for bit on CPU with an equal number of threads, whatever else runs in the
    process or ran there before. The initial weights are drawn from a seed of their own; the global random state stays
    as it was.

    Args:
        predecessor: a training that has ended. Where it was of the same kind, its model, an optimizer of ours of the
            same name, and what was captured of both as CUDA graphs are taken over, with fresh weights and state; where
            it had the same data, these. It must not be trained any further.
        loaders: those of `build_loaders` for this spec, where others share their data.
    Attributes:
        spec, model, optimizer: what it was built from, and the live objects.
        epoch: epochs done.
        best_epoch, best_valid_accuracy: the earliest epoch with the highest validation accuracy among those with
            finite losses; 0 and -inf before the first.
    Raises:
        ValueError: for a name, size or hyper-parameter that does not exist or fit, or data that cannot be had.
    """

    def __init__(
        self, spec: TrainingSpec, *, predecessor: "Training | None" = None, loaders: Loaders | None = None
    ) -> None:
        self.spec = spec
        self._memory_format = best_memory_format(spec.device, spec.precision)
        kin = predecessor if predecessor is not None and _kind(predecessor.spec) == _kind(spec) else None
        if kin is not None:
            self.model: ConvNet = kin.model
            with _initial_weights(spec.seed):
                self.model.redraw()
            self.model.train().zero_grad(set_to_none=True)
        else:
            self.model = _new_model(spec)
            self.model.to(device=spec.device, memory_format=self._memory_format)  # type: ignore[call-overload]
        self.optimizer = _optimizer(spec, self.model, kin)
        self._step: Step
        if kin is not None and isinstance(kin._step, GraphedStep):
            self._step = kin._step
            self._step.go_on_with(self.optimizer)
        else:
            takes_graph = _takes_graph(spec)
            step = TrainStep(
                self.model,
                self.optimizer,
                precision=spec.precision,
                memory_format=self._memory_format,
                fused_norms=takes_graph,
            )
            self._step = GraphedStep(step, spec.batch_size) if takes_graph else step
        self._scale_invariant = self.model.conv_params()
        self._scheduler = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, milestones=list(lr_drop_epochs(spec.epochs)), gamma=LR_DROP_FACTOR
        )
        self._train, self._valid, self._test = _loaders(spec, predecessor) if loaders is None else loaders
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
        train_loss, train_accuracy = train_epoch(self.model, self.optimizer, self._train, on_batch, step=self._step)
        train_s = time.perf_counter() - start_s
        self._scheduler.step()
        valid_loss, valid_accuracy = self._evaluate(self._valid)
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
        loss, accuracy = self._evaluate(self._test, weights=self._best_weights)
        return TestResult(test_loss=loss, test_accuracy=accuracy, epoch=self.best_epoch)

    def _evaluate(self, batches: Loader, *, weights: Mapping[str, Tensor] | None = None) -> tuple[float, float]:
        return evaluate(
            self.model, batches, weights=weights, precision=self.spec.precision, memory_format=self._memory_format
        )

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
            found = state["spec"].get(name, DEFAULTS.get(name))  # a state of a version without this field
            if found != value:
                raise ValueError(f"the state must be of the same spec, got {name} {found!r} where {value!r} is trained")
        self.model.load_state_dict(state["model"])
        optimizer_state = copy.deepcopy(state["optimizer"])
        for saved, own in zip(optimizer_state["param_groups"], self.optimizer.param_groups, strict=True):
            saved |= {name: own[name] for name in HOW_STEPS_ARE_TAKEN & own.keys()}
        self.optimizer.load_state_dict(optimizer_state)
        if isinstance(self._step, GraphedStep):
            self._step.forget()
        self._scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
        self.epoch = state["epoch"]
        self.best_epoch = state["best_epoch"]
        self.best_valid_accuracy = state["best_valid_accuracy"]
        best = state["best_weights"]
        self._best_weights = None if best is None else _copy_tensors(best, device=self.spec.device)


def build_loaders(spec: TrainingSpec) -> Loaders:
    """Build the (train, validation, test) loaders of a training. Raises ValueError for data that cannot be had."""
    dataset = DATASETS[spec.dataset]
    optional = {} if spec.valid_split is None else {"valid_split": spec.valid_split}
    return dataset.get_dataloaders(
        train_batch_size=spec.batch_size,
        test_batch_size=evaluation_batch_size(spec.device, spec.batch_size, dataset.image_size),
        dataset_root_path=spec.data_root,
        num_workers=spec.num_workers,
        seed=spec.seed,
        split_seed=spec.split_seed,
        limit_train_examples=spec.limit_train_examples,
        device=spec.device,
        **optional,
    )


def what_data(spec: TrainingSpec) -> Hashable:
    """Give what tells the data of a training from that of others; equal for specs that may share loaders."""
    return tuple(getattr(spec, name) for name in DATA)


def evaluation_batch_size(device: str, batch_size: int, image_size: int) -> int:
    """Give the size of the batches that evaluation is fastest with; at least that of training."""
    pixels = EVALUATION_PIXELS.get(torch.device(device).type, 0)
    return max(batch_size, pixels // image_size**2)


def lr_drop_epochs(epochs: int) -> tuple[int, ...]:
    """List the epochs after which the learning rate drops tenfold: 1/3, 5/9 and 7/9 of all, rounded, at least 1."""
    return tuple(max(1, round(epochs * numerator / denominator)) for numerator, denominator in LR_DROPS_AT)


@contextlib.contextmanager
def _initial_weights(seed: int) -> Iterator[None]:
    """Have torch's modules draw the initial weights of this seed while this is open, on the CPU: alike everywhere."""
    with _drawing_weights, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator_for(seed, 0, "weights").initial_seed())
        yield


def _new_model(spec: TrainingSpec) -> ConvNet:
    dataset = DATASETS[spec.dataset]
    with _initial_weights(spec.seed):
        return build_model(
            spec.model,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            image_size=dataset.image_size,
        )


def _takes_graph(spec: TrainingSpec) -> bool:
    return spec.cuda_graph and torch.device(spec.device).type == "cuda"


def _optimizer(spec: TrainingSpec, model: ConvNet, predecessor: Training | None) -> Optimizer:
    """Give the optimizer for a model: that of the predecessor, restarted, where it is one of ours and of that name."""
    fresh = build_optimizer(spec.optimizer, model, **spec.hyper_parameters)  # for its checks in any case
    if predecessor is None or predecessor.spec.optimizer != spec.optimizer:
        return fresh
    kept = predecessor.optimizer
    if not isinstance(kept, GroupedOptimizer):
        return fresh
    kept.restart(**{name: fresh.defaults[name] for name in OPTIMIZERS[spec.optimizer].hyper_parameters})
    return kept


def _loaders(spec: TrainingSpec, predecessor: Training | None) -> Loaders:
    """Give the loaders of a training: those of the predecessor, by this seed, where they are of the same data."""
    if predecessor is None or what_data(predecessor.spec) != what_data(spec):
        return build_loaders(spec)
    kept = (predecessor._train, predecessor._valid, predecessor._test)
    train, valid, test = (loader.with_seed(spec.seed) for loader in kept)
    return train, valid, test


def _kind(spec: TrainingSpec) -> tuple[Any, ...]:
    """What two trainings must share for one to go on in the memory, and with the graph, of the other."""
    return spec.dataset, spec.model, spec.device, spec.precision, spec.batch_size, spec.cuda_graph


def _copy_tensors(tensors: Mapping[str, Tensor], *, device: str | None = None) -> dict[str, Tensor]:
    return {name: tensor.detach().to(device=device, copy=True) for name, tensor in tensors.items()}


def _what_is_computed(spec: TrainingSpec) -> dict[str, Any]:
    """Give the spec's fields that determine the numbers, as plain values that survive torch.save and JSON alike."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec) if field.name not in PLACES}
    values["hyper_parameters"] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in spec.hyper_parameters.items()
    }
    return values
