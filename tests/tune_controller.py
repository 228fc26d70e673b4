"""Ray Tune's controller without Ray: the calls that it makes to a searcher, a scheduler and callbacks, in its order."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher


class Tune:
    """The calls for each trial and each result (ray.tune.execution.tune_controller, _process_trial_result, stop_trial).

    Args:
        storage: what callbacks find as `trial.storage`.
    """

    def __init__(
        self, searcher: Searcher, scheduler: TrialScheduler, callbacks: Sequence[Callback] = (), storage: Any = None
    ) -> None:
        self.searcher, self.scheduler, self.callbacks = searcher, scheduler, callbacks
        self._storage = storage
        self._trials: dict[str, Any] = {}

    def start(self, trial_id: str) -> Any:
        """Give what the searcher suggests."""
        suggested = self.searcher.suggest(trial_id)
        if isinstance(suggested, dict):
            trial = SimpleNamespace(trial_id=trial_id, config=suggested, storage=self._storage)
            self._trials[trial_id] = trial
            self.scheduler.on_trial_add(None, trial)
        return suggested

    def result(self, trial_id: str, result: dict[str, Any]) -> str:
        """Give the scheduler's decision, or STOP where the trainable is done."""
        trial = self._trials[trial_id]
        if result.get("done"):
            decision = TrialScheduler.STOP
        else:
            decision = self.scheduler.on_trial_result(None, trial, result)
        if decision == TrialScheduler.STOP:
            result = result | {"done": True}
        else:  # a result that stops a trial never reaches searcher.on_trial_result
            self.searcher.on_trial_result(trial_id, result)
        trials = list(self._trials.values())
        for callback in self.callbacks:
            callback.on_trial_result(iteration=0, trials=trials, trial=trial, result=result)
        if decision == TrialScheduler.STOP:
            self.scheduler.on_trial_complete(None, trial, result)
            self.searcher.on_trial_complete(trial_id, result=result)
            for callback in self.callbacks:
                callback.on_trial_complete(iteration=0, trials=trials, trial=trial)
        return decision
