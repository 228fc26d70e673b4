"""The Optuna study of one search: the record of every trial asked, every epoch reported and every state told.

Only the driver talks to it. The storage holds enough to rebuild every `TrialRecord`, so that another process
can show a search, and a restart can go on with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import uuid
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from tune_adamsrt.journal import Journal
from tune_adamsrt.records import EpochReport, HyperParameters, Observer, SearchInfo, TrialRecord, TrialState, best_of
from tune_adamsrt.storage import StudyError, recorded
from tune_adamsrt.stored_trials import STATES, load_record, read_test_accuracies

if TYPE_CHECKING:  # it brings torch along, which readers of a study need not wait for
    from tune_adamsrt.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)


_KEPT_AT_START = ("hyper_parameters", "seed", "origin", "started_at", "confirms")
_KEPT_AT_END = ("state", "reason", "ended_at", "host", "ray_trial_id")


def trial_seed(search_seed: int, number: int) -> int:
    """Derive a trial's own 31-bit seed from the search's seed and the trial's number."""
    return int(np.random.SeedSequence([search_seed, number]).generate_state(1)[0] >> 1)


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """A configuration to be trained as it is, on a seed of its own.

    Attributes:
        confirms: the number of the search's trial that it comes from; with the seed it names the run.
    """

    hyper_parameters: HyperParameters
    seed: int
    origin: str
    confirms: int


class Study:
    """One search's trials, told to Optuna and to observers in the same breath.

    An existing study of that name goes on: ended trials stay as they are, and those that an earlier driver left running
    are in `interrupted`, to be trained first.

    Args:
        name: the study's name in the storage.
        sampler: see `samplers.SAMPLERS`.
        seed: the search's seed; sampler and trials derive theirs from it.
        protocol: what every trial has in common (data, epochs, batch size, ...). Kept with the study.
        first_points: hyper-parameters and where they come from, tried before the sampler's own; each counts as a trial.
        listed: what a confirmation trains, and nothing else. Runs that the study knows already are not added again.
        confirms: the search whose best are confirmed; None for a search.
    Raises:
        StudyError: the study was made for another space, protocol, sampler or seed.
        StorageLostError: the storage does not take what it is told, at any time.
    """

    def __init__(
        self,
        name: str,
        *,
        storage: BaseStorage,
        space: SearchSpace,
        sampler: str,
        seed: int,
        protocol: Mapping[str, Any],
        first_points: Sequence[tuple[HyperParameters, str]] = (),
        listed: Sequence[ListedRun] = (),
        confirms: Study | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.name = name
        self.epochs: int = protocol["epochs"]
        self.trials: dict[int, TrialRecord] = {}
        self.interrupted: deque[TrialRecord] = deque()
        self.paused: dict[int, int] = {}  # trial -> the rung (epoch) where it waits to be promoted
        self.pausing: dict[int, int] = {}  # the same, while Tune still saves their checkpoints
        self.epochs_spent = 0  # by all trials, stopped and failed ones and epochs trained twice included
        self.stop_reasons: dict[int, str] = {}  # why the scheduler ends a trial; read when its end is told
        self._space = space
        self._seed = seed
        self._observers = observers
        self._sampler_name = sampler
        self._storage = storage
        self._not_sampled: deque[FrozenTrial] = deque()  # that an earlier driver began, and did not get to sample
        self._ids: dict[int, int] = {}  # Optuna's own ids of the trials that have not ended
        self._optuna = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
        self.is_resumed = "description" in self._optuna.user_attrs
        description = {"space": space.to_json(), "protocol": dict(protocol), "sampler": sampler, "seed": seed}
        if confirms is None:
            self._describe(description, key=uuid.uuid4().hex)
        else:
            # The key begins with the search's, so that whatever is kept of both is found together.
            key = f"{confirms.key}/{name.removeprefix(confirms.name).strip('.')}"
            self._describe(description | {"confirms": confirms.name}, key=key)
        found = self._optuna.get_trials(deepcopy=False)
        from tune_adamsrt.samplers import build_sampler  # brings torch along as well

        self._optuna.sampler = build_sampler(sampler, space, seed, trials_so_far=len(found))
        for trial in found:
            if trial.state in STATES:
                self._take_over(trial)
        if not self._optuna.user_attrs.get("has_first_points"):
            for point, origin in first_points:
                params = self._space.encode(point)
                self._optuna.enqueue_trial(params, user_attrs={"origin": origin}, skip_if_exists=True)
            self._optuna.set_user_attr("has_first_points", True)
        self.listed = self._list(listed) if listed else []  # all runs that a confirmation has: (confirms, seed)

    def _list(self, runs: Sequence[ListedRun]) -> list[tuple[int, int]]:
        """Have these trained, those left out that the study knows: a driver before this one may have listed some."""
        known = [(record.confirms, record.seed) for record in self.trials.values() if record.confirms is not None]
        waiting = self._optuna.get_trials(deepcopy=False, states=(OptunaState.WAITING,))
        begun_or_not = [*waiting, *self._not_sampled]
        known += [(trial.user_attrs["confirms"], trial.user_attrs["seed"]) for trial in begun_or_not]
        for run in runs:
            if (run.confirms, run.seed) not in known:
                attributes = {"origin": run.origin, "seed": run.seed, "confirms": run.confirms}
                self._optuna.enqueue_trial(self._space.encode(run.hyper_parameters), user_attrs=attributes)
                known.append((run.confirms, run.seed))
        return known

    def _describe(self, description: dict[str, Any], *, key: str) -> None:
        """Keep what the study is for, or refuse where it was made for something else."""
        text = json.dumps(description, sort_keys=True)
        attributes = self._optuna.user_attrs
        if "description" not in attributes:
            self._optuna.set_user_attr("key", key)
            self._optuna.set_user_attr("description", text)
        elif attributes["description"] != text:
            difference = ", ".join(_differences(json.loads(attributes["description"]), json.loads(text)))
            raise StudyError(f"study {self.name!r} was made for another search ({difference}); choose another --study")

    @property
    def key(self) -> str:
        """Tells this study from others of the same name in other storages."""
        return str(self._optuna.user_attrs["key"])

    @recorded
    def note_start(self, info: SearchInfo) -> None:
        """Keep what other processes may want to know of this search while it runs: status, report, sync."""
        self._note_search(info, {"started_at": time.time(), "ended_by": None, "ended_at": None})

    @recorded
    def note_end(self, info: SearchInfo, ended_by: str) -> None:
        """Keep why the search ended. Without it, it still runs or its driver was lost."""
        kept = self._optuna.user_attrs.get("search", {})
        self._note_search(info, {"started_at": kept.get("started_at"), "ended_by": ended_by, "ended_at": time.time()})

    def _note_search(self, info: SearchInfo, times: Mapping[str, Any]) -> None:
        known = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
        del known["restored"]  # the trials themselves are there
        self._optuna.set_user_attr("search", {**known, "space": dict(info.space), "tags": dict(info.tags), **times})

    def add_observer(self, observer: Observer) -> None:
        """Have someone told of what comes from now on."""
        self._observers = [*self._observers, observer]

    @recorded
    def note_test(self, candidate: int, accuracies: Sequence[float]) -> None:
        """Keep what the test set says of a search's trial, so that nobody reads it again."""
        kept = {str(number): values for number, values in self.test_accuracies.items()}
        self._optuna.set_user_attr("test_accuracies", kept | {str(candidate): list(accuracies)})

    @property
    def test_accuracies(self) -> dict[int, list[float]]:
        """What the test set said of the search's trials that were tested, per run."""
        return read_test_accuracies(self._optuna.user_attrs)

    def _take_over(self, trial: FrozenTrial) -> None:
        """Take up a trial from the storage; one that runs there has lost its driver."""
        record = load_record(trial)
        self.epochs_spent += record.epochs_spent
        if record.state is TrialState.RUNNING:
            self._ids[record.number] = trial._trial_id
            end = trial.user_attrs.get("end")
            if not record.hyper_parameters:  # killed between ask and the first word about the trial
                self._not_sampled.append(trial)
                return
            self.trials[record.number] = record
            if end is not None:  # killed between the last words and tell
                self._tell(record, TrialState(end["state"]), reason=end["reason"])
            elif record.epoch == self.epochs:
                self.tell_complete(record.number)
            else:
                self.interrupted.append(record)
        elif record.hyper_parameters:
            self.trials[record.number] = record

    # --- asked and told by the searcher -------------------------------------------------------------------------

    @recorded
    def ask(self) -> TrialRecord:
        """Start a new trial, or go on with one that an earlier driver left running."""
        if self.interrupted:
            return self.interrupted.popleft()
        with self._in_one_write():
            begun = self._not_sampled.popleft()._trial_id if self._not_sampled else None
            trial = self._optuna.ask() if begun is None else optuna.Trial(self._optuna, begun)
            record = TrialRecord(
                number=trial.number,
                hyper_parameters=self._space.suggest(trial),
                seed=trial.user_attrs.get("seed", trial_seed(self._seed, trial.number)),
                origin=trial.user_attrs.get("origin", f"sampled by {self._sampler_name}"),
                started_at=time.time(),
                confirms=trial.user_attrs.get("confirms"),
            )
            self._ids[record.number] = trial._trial_id
            self._note(record, "trial", {name: getattr(record, name) for name in _KEPT_AT_START})
        self.trials[record.number] = record
        for observer in self._observers:
            observer.trial_started(record)
        return record

    @recorded
    def give_back_not_sampled(self) -> None:
        """End the trials that an earlier driver began and never got to sample, where nothing can train them now."""
        while self._not_sampled:
            trial = self._not_sampled.popleft()
            self._optuna.tell(trial.number, state=OptunaState.FAIL)
            if "fixed_params" in trial.system_attrs:
                self._optuna.enqueue_trial(trial.system_attrs["fixed_params"], user_attrs=trial.user_attrs)

    def pause(self, number: int, epoch: int) -> None:
        """Let a trial wait at a rung."""
        self.trials[number].state = TrialState.PAUSED
        self.paused[number] = epoch

    def promote(self, number: int) -> TrialRecord:
        """Go on with a paused trial."""
        del self.paused[number]
        record = self.trials[number]
        record.state = TrialState.RUNNING
        return record

    def pause_interrupted(self, rungs: Collection[int]) -> None:
        """Of the trials that an earlier driver left, let those that stood at a rung wait there again."""
        for record in [record for record in self.interrupted if record.epoch in rungs]:
            self.interrupted.remove(record)
            self.pause(record.number, record.epoch)

    @recorded
    def report(self, number: int, report: EpochReport, host: str = "") -> None:
        """Record one epoch. An epoch known already was trained again after a lost worker: it is only counted."""
        record = self.trials[number]
        if record.has_ended:
            return
        record.host = host or record.host
        self.epochs_spent += 1
        if report.epoch <= record.epoch:
            record.epochs_repeated += 1
            self._note(record, "epochs_repeated", record.epochs_repeated)
            return
        report = dataclasses.replace(report, reported_at=time.time())
        record.epochs.append(report)
        with self._in_one_write():
            self._note(record, f"epoch:{report.epoch}", vars(report))
            if report.is_finite:
                self._storage.set_trial_intermediate_value(self._ids[number], report.epoch, report.value)
        for observer in self._observers:
            observer.epoch_reported(record, report)

    @recorded
    def note_checkpoint(self, number: int, uri: str) -> None:
        """Remember where a running trial can go on from."""
        record = self.trials[number]
        if not record.has_ended:
            record.checkpoint = uri
            self._note(record, "checkpoint", uri)

    def tell_complete(self, number: int) -> None:
        """End a trial at its full budget; its value is the one at that epoch."""
        record = self.trials[number]
        assert record.epoch == self.epochs, (record.epoch, self.epochs)
        self._tell(record, TrialState.COMPLETE)

    def tell_stopped(self, number: int, reason: str) -> None:
        """End a trial early for the scheduler or a budget: PRUNED with its per-epoch values, without a final one."""
        self._tell(self.trials[number], TrialState.STOPPED, reason=reason)

    def tell_failed(self, number: int, reason: str) -> None:
        """End a trial that diverged, raised, or whose workers were lost too often."""
        self._tell(self.trials[number], TrialState.FAILED, reason=reason)

    @recorded
    def _tell(self, record: TrialRecord, state: TrialState, *, reason: str = "") -> None:
        if record.has_ended:
            return
        self.paused.pop(record.number, None)
        record.state, record.reason, record.ended_at = state, reason, time.time()
        optuna_state = next(theirs for theirs, ours in STATES.items() if ours is state)
        value = record.value if state is TrialState.COMPLETE else None
        with self._in_one_write():
            self._note(record, "end", {name: getattr(record, name) for name in _KEPT_AT_END})
            self._optuna.tell(record.number, values=value, state=optuna_state)
        del self._ids[record.number]
        for observer in self._observers:
            observer.trial_ended(record)

    def _in_one_write(self) -> contextlib.AbstractContextManager[None]:
        """Write what is told in this block at once, where the storage can: each write waits for the disk."""
        return self._storage.together() if isinstance(self._storage, Journal) else contextlib.nullcontext()

    def _note(self, record: TrialRecord, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._ids[record.number], key, value)

    # --- read by whoever wants to know ---------------------------------------------------------------------------

    def in_state(self, state: TrialState) -> list[TrialRecord]:
        return [record for record in self.trials.values() if record.state is state]

    @property
    def best(self) -> TrialRecord | None:
        """The candidate with the highest value at the full budget; the earliest trial where several share it."""
        return best_of(self.in_state(TrialState.COMPLETE))


def _differences(known: Any, asked: Any, path: str = "") -> list[str]:
    if isinstance(known, dict) and isinstance(asked, dict):
        keys = sorted(known.keys() | asked.keys())
        return [
            line for key in keys for line in _differences(known.get(key), asked.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if known == asked else [f"{path}: {known} there, {asked} now"]
