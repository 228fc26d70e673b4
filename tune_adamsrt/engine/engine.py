"""Many trainings at a time in one process, in slots that share one copy of the data.

A small network leaves most of a GPU idle, and processes that share one take turns on it. Here each slot is a thread
with a stream of its own, whose steps are replays of its CUDA graphs (`adamsrt.graph`): their kernels run side by side.
A slot keeps its model and the graph of its passes from trial to trial; the next trial writes its weights there.

What a training computes does not depend on what runs beside it or ran before it: each has its own generators, and what
is the process's own (how many threads, how float32 is rounded, torch's generator) is the same for all, or locked.

On a CPU it does the same without graphs: for tests, since processes are as fast there.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from adamsrt.dataloaders.loader import Loaders
from adamsrt.precision import float32_products
from adamsrt.training import Training, TrainingSpec, build_loaders, what_data
from tune_adamsrt.trainable import load_training, save_best_weights, save_training, training_spec

MAX_SLOTS = 24  # torch hands out 32 streams in turn; with more slots two would share one
Owner = Hashable
T = TypeVar("T")


class NoFreeSlotError(RuntimeError):
    """Every slot has an owner."""


class Slot:
    """A thread, and on a GPU a stream, with what is kept from trial to trial.

    Args:
        threads: that a training may use on a CPU.
    """

    def __init__(self, number: int, threads: int) -> None:
        self.number = number
        self.training: Training | None = None  # the one under way, or the last one
        self.is_ready = False  # whether the one under way could be built
        self._stream: torch.cuda.Stream | None = None
        self._thread = ThreadPoolExecutor(1, f"slot-{number}", torch.set_num_threads, (threads,))

    def do(self, work: Callable[[], T], device: str | None = None) -> T:
        """Do something in the slot's thread and stream, after what was asked before; give what it gives.

        Args:
            device: of what begins; None for that of the training under way.
        """
        return self._thread.submit(self._within_stream, work, device).result()

    def _within_stream(self, work: Callable[[], T], device: str | None) -> T:
        if device is None and self.training is not None:
            device = self.training.spec.device
        if device is None or torch.device(device).type != "cuda":
            return work()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            return work()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class Engine:
    """K slots for trials. An owner, whoever that is, has at most one slot, from its first `begin` to its `end`.

    Args:
        slots: how many trainings there may be at a time.
        threads: that each may use on a CPU.
        load: builds the loaders of a kind of trials, once.
    Raises:
        ValueError: for a number of slots out of range.
    """

    def __init__(
        self, slots: int, *, threads: int = 1, load: Callable[[TrainingSpec], Loaders] = build_loaders
    ) -> None:
        if not 1 <= slots <= MAX_SLOTS:
            raise ValueError(f"trials per GPU must be 1 to {MAX_SLOTS}, got {slots}; choose fewer")
        torch.set_num_threads(threads)
        self._slots = [Slot(number, threads) for number in range(slots)]
        self._of_owner: dict[Owner, Slot] = {}
        self._load = load
        self._loaders: dict[Hashable, Loaders] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._first_epoch = threading.Lock()
        self._has_run = False
        self._precision: tuple[str, str] | None = None
        self._switches = contextlib.ExitStack()

    @property
    def owners(self) -> list[Owner]:
        """Those who have a slot now."""
        with self._lock:
            return list(self._of_owner)

    def begin(self, owner: Owner, config: dict[str, Any]) -> None:
        """Begin a trial in the owner's slot, in place of the one before.

        Args:
            config: as of `TrainingTrainable`.
        Raises:
            NoFreeSlotError; ValueError for another precision than that of trials under way; and whatever building the
            model or reading the data raises.
        """
        slot = self._slot_for(owner)
        slot.is_ready = False
        spec = training_spec(config)
        self._hold_precision(spec)

        def build() -> None:
            slot.training = Training(spec, predecessor=slot.training, loaders=self._loaders_for(spec))
            slot.is_ready = True

        slot.do(build, spec.device)

    def run_epoch(self, owner: Owner) -> dict[str, Any]:
        """Train an epoch; give its `EpochResult` as plain values."""
        return self._do(owner, lambda training: dataclasses.asdict(self._run_epoch(training)))

    def progress(self, owner: Owner) -> dict[str, Any]:
        """Tell how far the owner's training is: epoch, best_valid_accuracy."""
        return self._do(owner, lambda training: _progress(training))

    def save(self, owner: Owner, file: Path) -> None:
        """Write a checkpoint of the owner's training."""
        self._do(owner, lambda training: save_training(training, file))

    def load(self, owner: Owner, file: Path) -> None:
        """Go on from a checkpoint."""
        self._do(owner, lambda training: load_training(training, file))

    def save_best_weights(self, owner: Owner, file: str) -> None:
        """Write the weights of the best validation epoch to a path or URI. Raises OSError."""
        self._do(owner, lambda training: save_best_weights(training, file))

    def end(self, owner: Owner) -> None:
        """Free the owner's slot, after what it does now. What can be used again stays there."""
        with self._lock:
            slot = self._of_owner.pop(owner, None)
        if slot is not None:
            slot.is_ready = False

    def close(self) -> None:
        """End the threads."""
        for slot in self._slots:
            slot.close()
        self._switches.close()

    def _slot_for(self, owner: Owner) -> Slot:
        with self._lock:
            if owner not in self._of_owner:
                taken = {slot.number for slot in self._of_owner.values()}
                free = [slot for slot in self._slots if slot.number not in taken]
                if not free:
                    raise NoFreeSlotError(f"a trial must have a slot, and all {len(self._slots)} are taken")
                # One that was in use has a model and graphs to offer.
                self._of_owner[owner] = max(free, key=lambda slot: slot.training is not None)
            return self._of_owner[owner]

    def _do(self, owner: Owner, work: Callable[[Training], T]) -> T:
        with self._lock:
            slot = self._of_owner[owner]

        def take() -> T:
            if slot.training is None or not slot.is_ready:
                raise RuntimeError("a trial must begin before it goes on")
            return work(slot.training)

        return slot.do(take)

    def _run_epoch(self, training: Training) -> Any:
        """Run an epoch, the process's first one alone: kernels are compiled and libraries loaded in it."""
        with self._first_epoch:
            if not self._has_run:
                result = training.run_epoch()
                self._has_run = True
                return result
        return training.run_epoch()

    def _hold_precision(self, spec: TrainingSpec) -> None:
        """Set how float32 is rounded for as long as trials of this precision come: the switches are the process's own,
        so that trials that put them back would change what others compute."""
        with self._lock:
            wanted = (spec.precision, spec.device)
            if self._precision == wanted:
                return
            if any(slot.is_ready for slot in self._of_owner.values()):
                raise ValueError(f"trials that share a GPU must be of one precision, got {wanted} beside others")
            self._switches.close()
            self._switches.enter_context(float32_products(spec.precision, torch.device(spec.device)))
            self._precision = wanted

    def _loaders_for(self, spec: TrainingSpec) -> Loaders:
        """Give loaders of the trial's own seed over data that all slots share."""
        key = what_data(spec)
        with self._loading:
            if key not in self._loaders:
                self._loaders[key] = self._load(spec)
        train, valid, test = (loader.with_seed(spec.seed) for loader in self._loaders[key])
        return train, valid, test


def _progress(training: Training) -> dict[str, Any]:
    return {"epoch": training.epoch, "best_valid_accuracy": training.best_valid_accuracy}
