"""Ray Tune's Trainable for trials that share a GPU in one process: a proxy, which asks the `Engine` and needs no torch.

To Tune, the scheduler and the searcher a proxy is a worker like any other: an actor with a part of a GPU, whose
results, checkpoints and failures are those of `TrainingTrainable`. It is small, and starts in the time that Ray needs.
"""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tune_adamsrt.checkpoints import CheckpointedTrainable
from tune_adamsrt.engine.actor import Connection, EngineLostError


class TrainingInSlot:
    """A training in a slot of the engine; as much of `adamsrt.training.Training` as a trainable asks for."""

    def __init__(self, engine: Connection, config: dict[str, Any]) -> None:
        self._engine = engine
        self.spec = SimpleNamespace(epochs=config["protocol"]["epochs"])
        self.epoch = 0
        self.best_valid_accuracy = float("-inf")
        engine.ask("begin", config)

    def run_epoch(self) -> Any:
        """Train an epoch; give its `EpochResult`."""
        values, progress = self._engine.ask("run_epoch")
        self._note(progress)
        losses = values["train_loss"], values["valid_loss"]
        return SimpleNamespace(**values, is_finite=all(loss - loss == 0.0 for loss in losses))

    def save(self, file: Path) -> None:
        self._engine.ask("save", str(file))

    def load(self, file: Path) -> None:
        self._note(self._engine.ask("load", str(file)))

    def save_best_weights(self, file: str) -> None:
        self._engine.ask("save_best_weights", file)

    def _note(self, progress: dict[str, Any]) -> None:
        self.epoch, self.best_valid_accuracy = progress["epoch"], progress["best_valid_accuracy"]


class EngineTrainable(CheckpointedTrainable):
    """Trains one configuration in a slot. The configuration is that of `TrainingTrainable`, whose place also has
    engine_slots, the number of trials that share a GPU."""

    _engine: Connection | None = None

    def _prepare_process(self, config: dict[str, Any]) -> None:
        """Nothing is computed here."""

    def _start(self, config: dict[str, Any], predecessor: TrainingInSlot | None) -> TrainingInSlot:
        place = config["place"]
        if self._engine is None:
            self._engine = Connection(place["engine_slots"], max(1, int(place["cpus_per_trial"])))
        try:
            return TrainingInSlot(self._engine, config)
        except EngineLostError:
            self._engine = None  # whoever tries again finds the next one
            raise

    def _save(self, file: Path) -> None:
        self._training.save(file)

    def _load(self, file: Path) -> None:
        self._training.load(file)

    def _save_best_weights(self, file: str) -> None:
        self._training.save_best_weights(file)

    def cleanup(self) -> None:
        """Free the slot: the next proxy need not wait until the engine has seen that this one is gone."""
        if self._engine is not None:
            with contextlib.suppress(Exception):
                self._engine.ask("end")
