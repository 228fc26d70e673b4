"""How many trials of a setting a GPU trains fastest: measured with 1, 2, 4, ... slots, and remembered.

The answer is kept beside the data cache, per GPU model, setting and precision (and version of torch).
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any, Protocol

GAIN = 1.05  # what twice as many slots must bring
SECONDS_EACH = 3.0
MAX_EXAMPLES = 20_000  # an epoch of a second or less
CACHE_FILE = "trials-per-gpu.json"


class Runs(Protocol):
    """As much of an `Engine` as is measured."""

    def begin(self, owner: Any, config: dict[str, Any]) -> None: ...
    def run_epoch(self, owner: Any) -> Any: ...
    def end(self, owner: Any) -> None: ...


class MemoryFullError(Exception):
    """The GPU holds no more trials."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was found: the number of slots, and epochs per second with each number that was tried."""

    slots: int
    epochs_per_second: Mapping[int, float]


def choose_slots(rate: Callable[[int], float], most: int) -> Measurement:
    """Double the slots until twice as many bring less than 5 %, the memory is full, or `most` is passed.

    Args:
        rate: epochs per second of all trials together with so many slots; raises MemoryFullError.
    Raises MemoryFullError where a single one does not fit.
    """
    rates = {1: rate(1)}
    slots = 1
    while 2 * slots <= most:
        try:
            rates[2 * slots] = rate(2 * slots)
        except MemoryFullError:
            break
        if rates[2 * slots] < GAIN * rates[slots]:
            break
        slots *= 2
    return Measurement(slots, rates)


def epochs_per_second(
    engine: Runs,
    config: dict[str, Any],
    slots: int,
    *,
    seconds: float = SECONDS_EACH,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Train so many trials side by side for a while, after an epoch of each; give the epochs of all per second."""
    together = Barrier(slots)
    started: list[float] = []

    def all_together() -> None:
        with contextlib.suppress(BrokenBarrierError):  # one has failed, and says so itself
            together.wait()

    def train(owner: int) -> tuple[int, float]:
        try:
            engine.begin(owner, config | {"seed": owner})
            engine.run_epoch(owner)
            all_together()
            begun = clock()
            engine.run_epoch(owner)
            started.append(clock() - begun)
            all_together()
            # As many for each, so that all of them are at work until the end.
            epochs = 0 if together.broken else max(1, round(seconds / max(started)))
            begun = clock()
            for _ in range(epochs):
                engine.run_epoch(owner)
            return epochs, clock() - begun
        except BaseException:
            together.abort()
            raise

    try:
        with ThreadPoolExecutor(slots) as pool:
            done = list(pool.map(train, range(slots)))
        return sum(epochs for epochs, _ in done) / max(took for _, took in done)
    finally:
        for owner in range(slots):
            engine.end(owner)


def measured_slots(setting: str, protocol: dict[str, Any], place: dict[str, Any], most: int) -> int:
    """Give the best number of slots on this process's GPU: the one remembered, else measured, in about a minute.

    Raises MemoryFullError where a single trial does not fit, and whatever the model or the data raises.
    """
    have_queues_for_all_slots()
    import torch

    from adamsrt.dataloaders.cache import cache_folder
    from tune_adamsrt.engine.engine import Engine

    file = cache_folder(place["data_root"]).parent / CACHE_FILE
    gpu = torch.cuda.get_device_name()
    key = "/".join((gpu, setting, str(protocol["batch_size"]), protocol.get("precision", "fp32"), torch.__version__))
    remembered = recall(file).get(key)
    if isinstance(remembered, dict) and isinstance(remembered.get("slots"), int):
        return min(int(remembered["slots"]), most)
    limit = min(MAX_EXAMPLES, protocol.get("limit_train_examples") or MAX_EXAMPLES)
    config = {
        "protocol": protocol | {"epochs": 10**6, "limit_train_examples": limit},
        "place": place,
        "hyper_parameters": {"lr": 1e-3},  # which every optimizer has
    }
    engine = Engine(most)

    def rate(slots: int) -> float:
        try:
            return epochs_per_second(engine, config, slots)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryFullError(str(error)) from error
            raise

    try:
        measurement = choose_slots(rate, most)
    finally:
        engine.close()
    remember(file, key, measurement)
    return measurement.slots


def have_queues_for_all_slots() -> None:
    """Let work of up to 32 streams go to the GPU side by side, where the user has set nothing else; by default CUDA
    has 8 queues, and streams that share one wait for each other. To be called before torch uses the GPU."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that the GPU's memory is full: torch's own, or a library's that torch passes on."""
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "ALLOC_FAILED" in text


def recall(file: Path) -> dict[str, Any]:
    """Read what was measured before; nothing where that cannot be read."""
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def remember(file: Path, key: str, measurement: Measurement) -> None:
    """Keep a measurement beside the others; a folder that cannot be written only means measuring again."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(recall(file) | {key: dataclasses.asdict(measurement)}, indent=1))
        unfinished.replace(file)
