"""The worker's side: Ray Tune's Trainable around `adamsrt.training.Training`, one epoch a step.

The process is kept between trials (`reset_config`): starting one costs several seconds, more than a short trial.
Workers get plain values and report plain values; they know nothing of Optuna or MLflow.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from adamsrt.training import EpochResult, Training, TrainingSpec
from tune_adamsrt.records import EpochReport
from tune_adamsrt.weights import save_weights, weights_file

_REPORT_FIELDS = tuple(field.name for field in dataclasses.fields(EpochReport) if field.name != "reported_at")


class TrainingTrainable(tune.Trainable):
    """Trains one configuration. The configuration:

    protocol: what all trials share (see `Plan.protocol`).
    place: data_root, device, cpus_per_trial, num_workers, checkpoint_epochs; they may differ after a restart. Where it
        has keep_weights, a folder or URI, the best weights are there as trial-N.pt before the last epoch is reported.
    trial_number, hyper_parameters, seed: the trial's own.
    checkpoint: path or URI of a folder to go on from after the driver was lost; None otherwise.

    Divergence and exceptions end the trial at once, as a result with a `failure`, so that Tune retries nothing but
    lost workers.
    """

    # A checkpoint is due when training since the last one took this many times what the last one cost: 2 % at most.
    TRAINING_PER_CHECKPOINT = 50.0
    FIRST_CHECKPOINT_AFTER_S = 30.0

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(max(1, int(config["place"]["cpus_per_trial"])))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._number: int = config["trial_number"]
        self._selection: str = config["protocol"]["selection"]
        self._checkpoint_epochs = frozenset(config["place"]["checkpoint_epochs"])
        self._keep_weights: str | None = config["place"].get("keep_weights")
        self._training: Training | None = None
        self._failure: str | None = None
        self._checkpoint_cost_s = self.FIRST_CHECKPOINT_AFTER_S / self.TRAINING_PER_CHECKPOINT
        self._checkpointed_at = time.monotonic()
        try:
            self._training = Training(training_spec(config))
        except Exception as error:
            self._failure = _one_line(error)
            return
        if config.get("checkpoint") is not None:
            # A checkpoint that is gone or damaged costs epochs, not the trial.
            with contextlib.suppress(Exception):
                self._fetch(config["checkpoint"])

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
                weights = self._training.state_dict()["best_weights"]
                save_weights(weights_file(self._keep_weights, self._number), weights)
        except Exception as error:
            return self._failed(_one_line(error))
        report = self._report(result)
        values = {"trial_number": self._number, **dataclasses.asdict(report)}
        if not report.is_finite:
            return values | {"failure": _divergence(report), DONE: True}
        done = result.epoch == self._training.spec.epochs
        return values | {DONE: done, SHOULD_CHECKPOINT: not done and self._is_checkpoint_due(result.epoch)}

    def _report(self, result: EpochResult) -> EpochReport:
        assert self._training is not None
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
        assert self._training is not None
        started = time.monotonic()
        torch.save(self._training.state_dict(), Path(checkpoint_dir) / "training.pt")
        self._checkpointed_at = time.monotonic()
        self._checkpoint_cost_s = max(self._checkpointed_at - started, 0.1)

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]  # Tune passes the path
        if self._training is None:
            return
        state = torch.load(Path(checkpoint) / "training.pt", map_location="cpu", weights_only=True)
        self._training.load_state_dict(state)


def training_spec(config: dict[str, Any]) -> TrainingSpec:
    """Build the library's spec from a trial's configuration."""
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


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
