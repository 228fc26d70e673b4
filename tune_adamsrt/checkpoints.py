"""Checkpoints of trials: where they lie, when they go, and how training goes on while their storage is away."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyarrow.fs import FileSelector
from ray import tune
from ray.train._internal.session import _TrainingResult

from tune_adamsrt.trainable import TrainingTrainable
from tune_adamsrt.uris import below

if TYPE_CHECKING:  # the workers need neither the study nor Optuna
    from tune_adamsrt.study import Study

CHECKPOINT_FAILURE = "checkpoint_failure"  # the key in a Tune result


class CheckpointedTrainable(TrainingTrainable):
    """The trainable whose trials survive that a checkpoint can be neither kept nor fetched: that costs epochs only.

    Tune itself would count each as a lost worker, and give the trial up after a few.
    """

    _checkpoint_failure: str | None = None

    def step(self) -> dict[str, Any]:
        """Train one epoch; the result also says why the last checkpoint was not kept."""
        result = super().step()
        if self._checkpoint_failure is not None:
            result[CHECKPOINT_FAILURE] = self._checkpoint_failure
            self._checkpoint_failure = None
        return result

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Keep a checkpoint; a result without one where that fails."""
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                return super().save(checkpoint_dir or folder)
        except Exception as error:
            self._checkpoint_failure = " ".join(str(error).split()) or type(error).__name__
            return _TrainingResult(checkpoint=None, metrics=dict(self._last_result or {}))
        finally:
            # Sending it counts as well, and so does waiting for a storage that is away.
            self._checkpointed_at = time.monotonic()
            self._checkpoint_cost_s = max(self._checkpointed_at - started, 0.1)

    def restore(self, checkpoint_path: Any) -> None:
        """Go on from a checkpoint after a lost worker; from the start where it cannot be fetched."""
        try:
            super().restore(checkpoint_path)
        except Exception:
            self._begin(self.config)


class Checkpoints(tune.Callback):
    """Notes in the study where a running trial can go on from, and removes the checkpoints of ended ones.

    Args:
        folder: path or URI below which Tune keeps the checkpoints.
        note: tells the user one line.
    """

    def __init__(self, study: "Study", folder: str, note: Callable[[str], None]) -> None:
        self._study = study
        self._folder = folder
        self._note = note
        self._has_noted = False

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        # Tune gives the path within its file system. Another process needs the URI, with host and endpoint.
        name = checkpoint.path.removeprefix(trial.storage.storage_fs_path).lstrip("/")
        self._study.note_checkpoint(trial.config["trial_number"], below(self._folder, name))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        failure = result.get(CHECKPOINT_FAILURE)
        if failure is not None and not self._has_noted:
            self._has_noted = True
            self._note(f"a checkpoint could not be kept, training goes on ({failure})")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["trial_number"]
        if not self._study.trials[number].has_ended:
            return  # paused
        # Tune ends the whole search where a callback raises; a folder left behind is no reason to.
        with contextlib.suppress(Exception):
            storage = trial.storage
            selector = FileSelector(storage.experiment_fs_path)
            for folder in storage.storage_filesystem.get_file_info(selector):
                if folder.base_name.startswith(f"trial-{number:05d}-"):
                    storage.storage_filesystem.delete_dir(folder.path)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; ours are made anew at a restart
