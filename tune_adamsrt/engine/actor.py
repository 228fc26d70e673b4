"""The process that trains for all trials of a GPU: an `Engine` as a Ray actor, found by name, or started by who asks.

It belongs to nobody: if it were the first proxy's, it would end with that one's process, and every trial with it. So it
looks after itself: a proxy runs on the same machine, and one whose process is gone loses its slot; where none is left
the engine ends. It asks Ray for no GPU, since its proxies hold the parts of theirs.
"""

import contextlib
import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_adamsrt.engine.auto import have_queues_for_all_slots
from tune_adamsrt.trainable import TrialError, end_with_the_gpu, one_line

VISIBLE = "CUDA_VISIBLE_DEVICES"
START_TIMEOUT_S = 120.0
LOOK_EVERY_S = 1.0
IDLE_S = 20.0  # long enough for the next trials of the search, and for its confirmation
CALLS_BESIDE = 8  # at a time, beside one of each slot


@dataclasses.dataclass(frozen=True)
class Proxy:
    """A process on this machine that has a slot."""

    pid: int
    started: str | None  # in ticks of the machine's clock since it was booted

    @classmethod
    def of(cls, pid: int) -> "Proxy":
        """The process that has this number now."""
        return cls(pid, _started(pid))

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, and is no other process of the same number."""
        return self.started is not None and _started(self.pid) == self.started


def _started(pid: int) -> str | None:
    """When a process was started; None where none of this number runs."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else numbers[18]


class EngineLostError(RayActorError):
    """Ends a worker whose engine is gone: Tune goes on with its trial in another, as after any lost worker."""

    def __init__(self, message: str = "the process that trains for this GPU is gone") -> None:
        super().__init__(error_msg=message)

    def __reduce__(self) -> tuple[type["EngineLostError"], tuple[str]]:
        return type(self), (self.error_msg,)


class EngineActor:
    """What proxies call. Whatever a trial raises comes back as a `TrialError`.

    Args:
        slots, threads: see `Engine`.
        visible: the GPU, as CUDA_VISIBLE_DEVICES has it in the proxies; None where that is not set.
        idle_s: how long it stays without a proxy.
    """

    def __init__(self, slots: int, threads: int, visible: str | None, idle_s: float = IDLE_S) -> None:
        if visible is not None:  # Ray hides every GPU from an actor that asks for none
            os.environ[VISIBLE] = visible
        have_queues_for_all_slots()
        from tune_adamsrt.engine.engine import Engine  # torch sees the GPU from here on

        self._engine = Engine(slots, threads=threads)
        self._idle_s = idle_s
        threading.Thread(target=self._look_after_itself, name="looks-after-proxies", daemon=True).start()

    def ready(self) -> int:
        """Its process id, once it can be asked for a slot."""
        return os.getpid()

    def begin(self, proxy: Proxy, config: dict[str, Any]) -> None:
        self._free_slots_of_the_dead()
        with _as_trial_error():
            self._engine.begin(proxy, config)

    def run_epoch(self, proxy: Proxy) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train an epoch; give what it gave, and how far the training is."""
        with _as_trial_error():
            return self._engine.run_epoch(proxy), self._engine.progress(proxy)

    def save(self, proxy: Proxy, file: str) -> None:
        with _as_trial_error():
            self._engine.save(proxy, Path(file))

    def load(self, proxy: Proxy, file: str) -> dict[str, Any]:
        with _as_trial_error():
            self._engine.load(proxy, Path(file))
            return self._engine.progress(proxy)

    def save_best_weights(self, proxy: Proxy, file: str) -> None:
        with _as_trial_error():
            self._engine.save_best_weights(proxy, file)

    def end(self, proxy: Proxy) -> None:
        self._engine.end(proxy)

    def _free_slots_of_the_dead(self) -> None:
        for owner in self._engine.owners:
            if isinstance(owner, Proxy) and not owner.is_alive:
                self._engine.end(owner)

    def _look_after_itself(self) -> None:
        """Free the slots of dead proxies, for as long as any lives; then end the process."""
        needed_at = time.monotonic()
        while time.monotonic() - needed_at < self._idle_s:
            time.sleep(LOOK_EVERY_S)
            self._free_slots_of_the_dead()
            if self._engine.owners:
                needed_at = time.monotonic()
        os._exit(0)


class Connection:
    """A proxy's line to the engine of its GPU, which is started where there is none.

    Args:
        slots, threads: see `Engine`.
    Raises:
        EngineLostError: where it cannot be had, or is lost, here and in every call. TrialError: in every call.
    """

    def __init__(self, slots: int, threads: int) -> None:
        self._proxy = Proxy.of(os.getpid())
        self._engine = _find_or_start(slots, threads)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of `EngineActor` as this proxy."""
        try:
            return ray.get(getattr(self._engine, method).remote(self._proxy, *arguments))
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, TrialError) else error) from None
        except RayActorError as error:
            raise EngineLostError from error


def _find_or_start(slots: int, threads: int) -> Any:
    node_id, visible = ray.get_runtime_context().get_node_id(), os.environ.get(VISIBLE)
    options = {
        "name": f"engine of GPU {visible} on {node_id}, {slots} slots, {threads} threads",
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "num_gpus": 0,
        "max_restarts": 0,
        "max_concurrency": slots + CALLS_BESIDE,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
    }
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            engine: Any = ray.remote(EngineActor).options(**options).remote(slots, threads, visible)
            ray.get(engine.ready.remote(), timeout=max(1.0, deadline - time.monotonic()))
            return engine
        except (RayActorError, ValueError, GetTimeoutError) as error:
            # One that has just ended keeps its name for a moment.
            if time.monotonic() >= deadline:
                raise EngineLostError(f"no engine could be started for this GPU: {one_line(error)}") from error
            time.sleep(0.5)


@contextlib.contextmanager
def _as_trial_error() -> Any:
    """Turn what a trial raises into plain words; end the process where the GPU takes nothing any more."""
    try:
        yield
    except Exception as error:
        end_with_the_gpu(error)  # to every trial in it a lost worker
        raise TrialError(one_line(error)) from None
