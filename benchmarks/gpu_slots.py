"""Many trials on one GPU, for `benchmarks.gpu`: how many more it trains per hour, and that none notices the others.

All trials of a round train the same number of epochs side by side; the rate is that of all until the last has ended.
One trial at a time without a graph is what a search without --trials-per-gpu trains, less what Ray adds.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from types import ModuleType
from typing import Any

from adamsrt.dataloaders.loader import Loaders
from adamsrt.training import TrainingSpec
from benchmarks.gpu_aims import EPOCH_AIMS_S, MODELS, SLOT_AIMS
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_training import (
    BATCH_SIZE,
    EPOCHS_OF_A_TRIAL,
    HYPER_PARAMETERS,
    TRAINING_IMAGES,
    Arm,
    build_step,
    images_like_cifar,
    largest_difference,
    loaders_of,
    training_loader,
    without_clock,
)


def stand_in_for_ray() -> None:
    """Let the engine be imported where Ray is not installed: it takes from it a base class and two names."""
    try:
        import ray  # noqa: F401
    except ImportError:
        modules = {name: ModuleType(name) for name in ("ray", "ray.tune", "ray.tune.result", "ray.exceptions")}
        vars(modules["ray"])["tune"] = modules["ray.tune"]
        vars(modules["ray.tune"])["Trainable"] = object
        vars(modules["ray.tune.result"]).update(DONE="done", SHOULD_CHECKPOINT="should_checkpoint")
        vars(modules["ray.exceptions"])["RayActorError"] = type("RayActorError", (Exception,), {})
        sys.modules |= modules


stand_in_for_ray()
from tune_adamsrt.engine.auto import MAX_EXAMPLES  # noqa: E402
from tune_adamsrt.engine.engine import Engine  # noqa: E402

# The first ones matter most: time may end before the last.
SLOTS = {"resnet20": (1, 8, 16, 4), "resnet18": (1, 4, 2, 8)}
ROUNDS, SECONDS_PER_ROUND, MOST_EPOCHS = 3, 1.5, 10


def configuration(
    model: str, bench: Bench, *, precision: str, graph: bool, epochs: int, examples: int, seed: int = 0
) -> dict[str, Any]:
    """A trial's configuration, as a search would give it."""
    protocol = {"dataset": "cifar10", "model": model, "optimizer": "adamsrt", "epochs": epochs, "precision": precision}
    return {
        "protocol": protocol | {"batch_size": BATCH_SIZE, "limit_train_examples": examples},
        "place": {"device": bench.device, "cuda_graph": graph},
        "hyper_parameters": HYPER_PARAMETERS,
        "seed": seed,
    }


def load(spec: TrainingSpec) -> Loaders:
    """Build loaders as those of CIFAR-10, over images of our own."""
    assert spec.limit_train_examples is not None
    return loaders_of(images_like_cifar(spec.limit_train_examples + spec.limit_train_examples // 19 + 1), spec)


def rates(engine: Engine, config: dict[str, Any], slots: int, rounds: int) -> list[float]:
    """Give the epochs per second of so many trials together, one value per round."""
    begun = Barrier(slots)

    def begin(owner: int) -> None:
        engine.begin(owner, config | {"seed": owner})
        engine.run_epoch(owner)

    def train(owner: int, epochs: int) -> None:
        begun.wait(60.0)
        for _ in range(epochs):
            engine.run_epoch(owner)

    with ThreadPoolExecutor(slots) as pool:

        def seconds(epochs: int) -> float:
            start_s = time.perf_counter()
            list(pool.map(partial(train, epochs=epochs), range(slots)))
            return time.perf_counter() - start_s

        list(pool.map(begin, range(slots)))
        epochs = min(MOST_EPOCHS, max(1, round(SECONDS_PER_ROUND / seconds(1))))
        return [slots * epochs / seconds(epochs) for _ in range(rounds)]


def time_slots(model: str, bench: Bench, numbers: tuple[int, ...] = (), *, is_aim: bool = True) -> None:
    """Time trials side by side, so many at a time; without a number all of SLOTS, for the aim."""
    numbers = (1, 2) if bench.small else numbers or SLOTS[model]
    examples, rounds = (64, 2) if bench.small else (MAX_EXAMPLES, ROUNDS)
    device = Device(bench.device)
    bench.table(
        f"{MODELS[model]}, bf16: whole epochs per second of all trials together, n = {rounds}",
        *(
            "trials at a time",
            "epochs / s",
            f"trials of {EPOCHS_OF_A_TRIAL} epochs per hour",
            "against one",
            "GiB each",
        ),
    )
    with_one: dict[bool, list[float]] = {}
    best = 0.0
    for slots, graph in (*([(1, False)] if is_aim else []), *((slots, True) for slots in numbers)):
        if bench.is_late:
            bench.note("no time for the rest")
            return
        config = configuration(model, bench, precision="bf16", graph=graph, epochs=10**6, examples=examples)
        engine = Engine(slots, load=load)
        device.forget_peak()
        try:
            values = [rate * examples / TRAINING_IMAGES for rate in rates(engine, config, slots, rounds)]
        except Exception as error:  # the others still count
            device.synchronize()
            bench.row(f"{slots}", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200], "", "", "")
            continue
        finally:
            engine.close()
            peak, _ = device.peak_bytes()
            del engine
            device.clean_up()
        if slots == 1:
            with_one[graph] = values
        one = with_one.get(True, values)
        against = [value / statistics.median(one) for value in values]
        per_hour = 3600 * statistics.median(values) / EPOCHS_OF_A_TRIAL
        bench.row(
            f"{slots}{', graphs' if graph else ', no graph'}",
            render_spread(values),
            f"{per_hour:.1f}",
            f"{statistics.median(against):.2f}",
            f"{peak / slots / 2**30:.2f}",
            rates=values,
        )
        if is_aim and slots > 1 and statistics.median(values) > best:
            best = statistics.median(values)
            for is_graph, key in ((True, f"slots/{model}"), (False, f"slots against no graph/{model}")):
                if is_graph in with_one:
                    bench.figure(key, [value / statistics.median(with_one[is_graph]) for value in values])


def compare_bits(bench: Bench) -> None:
    """Train a trial alone, alone again, and beside others in a slot that others used before."""
    slots, examples = (2, 40) if bench.small else (4, 2_000)

    def train(engine: Engine, seed: int) -> list[dict[str, Any]]:
        engine.begin(
            seed,
            configuration("resnet20", bench, precision="fp32", graph=True, epochs=3, examples=examples, seed=seed),
        )
        results = [without_clock(engine.run_epoch(seed)) for _ in range(3)]
        engine.end(seed)
        return results

    with Device(bench.device).deterministic():
        alone, again = (train(Engine(1, load=load), 0) for _ in range(2))
        engine = Engine(slots, load=load)
        with ThreadPoolExecutor(slots) as pool:
            for seeds in (range(slots, 2 * slots), range(slots)):
                [beside, *_] = list(pool.map(partial(train, engine), seeds))
    largest = largest_difference(*([result["train_loss"] for result in each] for each in (beside, alone)))
    same_again = "" if again == alone else "; BUT alone it is not the same twice either"
    bench.check("slots/bits", beside == alone, f"beside {slots - 1}, losses within {largest:.1e}{same_again}")


def time_python(bench: Bench) -> None:
    """Time what Python needs to launch a step: in one process the sum over all slots, since they share its lock."""
    device = Device(bench.device)
    bench.table(
        "A training step: what Python needs to launch it, median [smallest, largest]",
        *("model", "step", "launching, microseconds", "done, microseconds", "most epochs / s of one process"),
    )
    for model, graph in itertools.product(EPOCH_AIMS_S, (True, False)):
        if bench.is_late or (bench.small and model != "resnet20"):
            continue
        plain, step = build_step(model, Arm("bf16", graph), bench.device, lr=1e-3)
        plain.model.train()
        size = 8 if bench.small else BATCH_SIZE
        images, labels = next(iter(training_loader(images_like_cifar(size), bench.device)))
        take: Callable[[], Any] = partial(step, images, labels)
        for _ in range(6):
            take()
        times = [device.seconds_per_step(take, 2 if bench.small else 40) for _ in range(2 if bench.small else 9)]
        launching = [1e6 * launched_s for _, launched_s in times]
        bench.row(
            MODELS[model],
            "graph" if graph else "no graph",
            render_spread(launching, 4),
            render_spread([1e6 * done_s for done_s, _ in times], 4),
            f"{1e6 / statistics.median(launching) / (TRAINING_IMAGES / BATCH_SIZE):.1f}",
            launching=launching,
        )
        del plain, step, take
        device.clean_up()


def part(model: str) -> Part:
    run: Callable[[Bench], None] = partial(time_slots, model)
    return Part(MODELS[model], run, 75.0)


PARTS = (
    Part("bits", compare_bits, 40.0),
    *(part(model) for model in SLOT_AIMS),
    Part("Python", time_python, 40.0),
)
