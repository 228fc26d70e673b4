"""The worker's side: Ray Tune's Trainable around `adamsrt.training.Training`, one epoch a step.

The process is kept between trials (`reset_config`): starting one costs several seconds, more than a short trial.
Workers get plain values and report plain values; they know nothing of Optuna or MLflow. Torch is imported by whoever
trains in this process: the driver and the proxies of `engine_trainable` do without.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from tune_adamsrt.records import EpochReport
from tune_adamsrt.weights import save_weights, weights_file

if TYPE_CHECKING:
    from adamsrt.training import EpochResult, TrainingSpec

CHECKPOINT_FILE = "training.pt"
_REPORT_FIELDS = tuple(field.name for field in dataclasses.fields(EpochReport) if field.name != "reported_at")


class TrainingTrainable(tune.Trainable):
    """Trains one configuration. The configuration:

    protocol: what all trials share (see `Plan.protocol`).
    place: data_root, device, cpus_per_trial, num_workers, checkpoint_epochs; they may differ after a restart. Where it
        has keep_weights, a folder or URI, the best weights are there as trial-N.pt before the last epoch is reported.
    trial_number, hyper_parameters, seed: the trial's own.
    checkpoint: path or URI of a folder to go on from after the driver was lost; None otherwise.

    Divergence and exceptions end the trial at once, as a result with a `failure`, so that Tune retries nothing but
    lost workers. Who trains is `_training`: an `adamsrt.training.Training` of this process, or what a subclass gives.
    """

    # A checkpoint is due when training since the last one took this many times what the last one cost: 2 % at most.
    TRAINING_PER_CHECKPOINT = 50.0
    FIRST_CHECKPOINT_AFTER_S = 30.0

    _training: Any = None

    def setup(self, config: dict[str, Any]) -> None:
        self._prepare_process(config)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._number: int = config["trial_number"]
        self._selection: str = config["protocol"]["selection"]
        self._checkpoint_epochs = frozenset(config["place"]["checkpoint_epochs"])
        self._keep_weights: str | None = config["place"].get("keep_weights")
        predecessor, self._training = self._training, None
        self._failure: str | None = None
        self._checkpoint_cost_s = self.FIRST_CHECKPOINT_AFTER_S / self.TRAINING_PER_CHECKPOINT
        self._checkpointed_at = time.monotonic()
        try:
            self._training = self._start(config, predecessor)
        except RayActorError:
            raise
        except Exception as error:
            end_with_the_gpu(error)
            self._failure = one_line(error)
            return
        if config.get("checkpoint") is not None:
            # A checkpoint that is gone or damaged costs epochs, not the trial.
            try:
                self._fetch(config["checkpoint"])
            except RayActorError:
                raise
            except Exception:
                return

    # What a subclass that trains elsewhere does in another way.

    def _prepare_process(self, config: dict[str, Any]) -> None:
        """Make the process ready for the first trial."""
        import torch

        from adamsrt.memory import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(max(1, int(config["place"]["cpus_per_trial"])))

    def _start(self, config: dict[str, Any], predecessor: Any) -> Any:
        """Give who trains the configuration. Raises whatever the model, the data or the machine raises.

        Args:
            predecessor: who trained the trial before in this process, None for the first.
        """
        from tune_adamsrt import trainable

        build: Any = trainable.Training  # comes with the first look, and torch with it
        return build(training_spec(config), predecessor=predecessor)

    def _save(self, file: Path) -> None:
        save_training(self._training, file)

    def _load(self, file: Path) -> None:
        load_training(self._training, file)

    def _save_best_weights(self, file: str) -> None:
        save_best_weights(self._training, file)

    def _fetch(self, checkpoint: str) -> None:
        """Go on from the checkpoint at a path or URI."""
        with tune.Checkpoint(checkpoint).as_directory() as folder:
            self.load_checkpoint(folder)

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        if self._training is None or self._failure is not None:
            return self._failed(self._failure or "nothing to train")
        try:
            result = self._training.run_epoch()
            if self._keep_weights is not None and result.epoch == self._training.spec.epochs and result.is_finite:
                self._save_best_weights(weights_file(self._keep_weights, self._number))
        except RayActorError:  # a lost worker, and no word about the trial
            raise
        except Exception as error:
            end_with_the_gpu(error)
            return self._failed(one_line(error))
        report = self._report(result)
        values = {"trial_number": self._number, **dataclasses.asdict(report)}
        if not report.is_finite:
            return values | {"failure": _divergence(report), DONE: True}
        done = result.epoch == self._training.spec.epochs
        return values | {DONE: done, SHOULD_CHECKPOINT: not done and self._is_checkpoint_due(result.epoch)}

    def _report(self, result: "EpochResult") -> EpochReport:
        best_so_far = self._selection == "best" and result.is_finite
        return EpochReport(
            value=self._training.best_valid_accuracy if best_so_far else result.valid_accuracy,
            **{name: getattr(result, name) for name in _REPORT_FIELDS if name != "value"},
        )

    def _failed(self, reason: str) -> dict[str, Any]:
        # The keys that Tune, the scheduler and the searcher look for, without an epoch's values.
        return {"trial_number": self._number, "epoch": 0, "value": float("nan"), "failure": reason, DONE: True}

    def _is_checkpoint_due(self, epoch: int) -> bool:
        if epoch in self._checkpoint_epochs:
            return True
        return time.monotonic() - self._checkpointed_at >= self.TRAINING_PER_CHECKPOINT * self._checkpoint_cost_s

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        started = time.monotonic()
        self._save(Path(checkpoint_dir) / CHECKPOINT_FILE)
        self._checkpointed_at = time.monotonic()
        self._checkpoint_cost_s = max(self._checkpointed_at - started, 0.1)

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]  # Tune passes the path
        if self._training is not None:
            self._load(Path(checkpoint) / CHECKPOINT_FILE)


def __getattr__(name: str) -> Any:
    if name == "Training":
        from adamsrt.training import Training

        return Training
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def save_training(training: Any, file: Path) -> None:
    """Write all that a resume needs."""
    import torch

    torch.save(training.state_dict(), file)


def load_training(training: Any, file: Path) -> None:
    """Go on from what `save_training` wrote; runs no code from the file."""
    import torch

    training.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def save_best_weights(training: Any, file: str) -> None:
    """Write the weights of the best validation epoch to a path or URI. Raises OSError."""
    save_weights(file, training.state_dict()["best_weights"])


def training_spec(config: dict[str, Any]) -> "TrainingSpec":
    """Build the library's spec from a trial's configuration."""
    from adamsrt.training import TrainingSpec

    known = config["protocol"] | config["place"]
    names = {field.name for field in dataclasses.fields(TrainingSpec)} & known.keys()
    return TrainingSpec(
        **{name: known[name] for name in names}, hyper_parameters=config["hyper_parameters"], seed=config["seed"]
    )


def epoch_report(result: dict[str, Any]) -> EpochReport | None:
    """Read an epoch's report from a Tune result; None where the trial failed before its epoch ended."""
    required = (field.name for field in dataclasses.fields(EpochReport) if field.default is dataclasses.MISSING)
    if not all(name in result for name in required):
        return None
    return EpochReport(**{name: result[name] for name in _REPORT_FIELDS if name in result})


def failure_of(result: dict[str, Any]) -> str | None:
    """Read why a trial failed from its last Tune result."""
    return result.get("failure")


def _divergence(report: EpochReport) -> str:
    name = next(name for name in ("train_loss", "valid_loss", "value") if not _is_finite(getattr(report, name)))
    return f"diverged: {name} is {getattr(report, name)} at epoch {report.epoch}"


def _is_finite(value: float) -> bool:
    return value - value == 0.0


class TrialError(Exception):
    """What a trial failed by in another process, in the words of `one_line`."""


def end_with_the_gpu(error: BaseException) -> None:
    """End the process at an error of a GPU after which every call in it fails, as all but a full memory are.

    The trial has lost a worker, which costs epochs; the trials that the process would be handed next cost nothing.
    """
    torch = sys.modules.get("torch")
    if torch is None or isinstance(error, torch.OutOfMemoryError):
        return
    if isinstance(error, torch.AcceleratorError):
        os._exit(1)


def one_line(error: BaseException) -> str:
    """Give an error's type and the first line of what it says."""
    if isinstance(error, TrialError):
        return str(error)
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
