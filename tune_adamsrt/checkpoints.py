"""Checkpoints of trials: where they lie, when they go, and how training goes on while their storage is away."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyarrow.fs import FileSelector
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from tune_adamsrt.cluster.draining import NodeLeavingError, node_is_leaving
from tune_adamsrt.cluster.lost_workers import LostWorkers
from tune_adamsrt.cluster.versions import has_other_versions
from tune_adamsrt.trainable import TrainingTrainable
from tune_adamsrt.uris import below

if TYPE_CHECKING:  # the workers need neither the study nor Optuna
    from tune_adamsrt.study import Study

CHECKPOINT_FAILURE = "checkpoint_failure"  # the key in a Tune result


class CheckpointedTrainable(TrainingTrainable):
    """The trainable whose trials survive what happens to machines.

    That a checkpoint can be neither kept nor fetched costs epochs only: Tune itself would count each as a lost worker,
    and give the trial up after a few. A trial on a node that is about to be taken away leaves it at the end of its
    epoch, with a checkpoint: that costs nothing.
    """

    FETCH_FOR_S = 90.0  # a storage that is away comes back, and to train all again costs more

    _checkpoint_failure: str | None = None
    _kept_epoch = 0  # where the trial would go on after a loss
    _is_leaving = False

    def _begin(self, config: dict[str, Any]) -> None:
        super()._begin(config)
        self._kept_epoch = self._epoch
        # A kept process may be handed its next trial on a node that leaves; one with other versions trains nothing.
        self._is_leaving = node_is_leaving() or has_other_versions(config.get("place", {}).get("versions"))

    @property
    def _epoch(self) -> int:
        return 0 if self._training is None else self._training.epoch

    def step(self) -> dict[str, Any]:
        """Train one epoch; the result also says why the last checkpoint was not kept.

        Raises NodeLeavingError where the trial is better off on another node.
        """
        if self._is_leaving and self._epoch == self._kept_epoch:
            raise NodeLeavingError
        result = super().step()
        self._is_leaving = node_is_leaving()
        if self._is_leaving and not result.get(DONE):
            result[SHOULD_CHECKPOINT] = True
        if self._checkpoint_failure is not None:
            result[CHECKPOINT_FAILURE] = self._checkpoint_failure
            self._checkpoint_failure = None
        return result

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Keep a checkpoint; a result without one where that fails."""
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                kept = super().save(checkpoint_dir or folder)
            self._kept_epoch = self._epoch
            return kept
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
            self._patiently(super().restore, checkpoint_path)
            self._kept_epoch = self._epoch
        except Exception:
            self._begin(self.config)

    def _fetch(self, checkpoint: str) -> None:
        self._patiently(super()._fetch, checkpoint)

    def _patiently(self, fetch: Callable[[Any], None], checkpoint: Any) -> None:
        """Fetch a checkpoint, again and again while its storage is away. Raises OSError where it stays away."""
        deadline, pause = time.monotonic() + self.FETCH_FOR_S, 0.5
        while True:
            try:
                return fetch(checkpoint)
            except OSError:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 10.0)


class Checkpoints(tune.Callback):
    """Notes in the study where a running trial can go on from, and removes the checkpoints of ended ones.

    Args:
        folder: path or URI below which Tune keeps the checkpoints.
        note: tells the user one line.
        lost_workers: is told which trials lose theirs, and which get further.
    """

    def __init__(
        self, study: "Study", folder: str, note: Callable[[str], None], lost_workers: LostWorkers | None = None
    ) -> None:
        self._study = study
        self._folder = folder
        self._note = note
        self._lost_workers = lost_workers or LostWorkers()
        self._has_noted = False

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._study.trials[trial.config["trial_number"]]
        self._lost_workers.add(record.number)
        where = "from its last checkpoint" if trial.latest_checkpoint_result or record.checkpoint else "from the start"
        self._note(f"trial {record.number} lost its worker after epoch {record.epoch}, and goes on {where}")

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        # Tune gives the path within its file system. Another process needs the URI, with host and endpoint.
        name = checkpoint.path.removeprefix(trial.storage.storage_fs_path).lstrip("/")
        number = trial.config["trial_number"]
        self._study.note_checkpoint(number, below(self._folder, name))
        # What Tune counts against its max_failures is what was lost since then.
        self._lost_workers.forget(number)
        trial.run_metadata.num_failures = 0

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
