"""What a further trial costs beyond its epochs, and that it is trained as if nothing had been before it."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from adamsrt.training import Training, TrainingSpec
from benchmarks.gpu_aims import MODELS
from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part
from benchmarks.gpu_training import images_like_cifar, largest_difference, loaders_of, spec_of, without_clock

EXAMPLES, TRIALS, EPOCHS_OF_EACH = 12_800, 7, 2


def time_starts(model: str, bench: Bench) -> None:
    """Train one after the other in the memory of the one before; subtract what the epochs take later on."""
    spec = spec_of(model, bench.device)
    loaders = loaders_of(images_like_cifar(100 if bench.small else EXAMPLES), spec)
    start_s = time.perf_counter()
    training = Training(spec, loaders=loaders)
    training.run_epoch()
    first_s = time.perf_counter() - start_s
    epoch_s = statistics.median(training.run_epoch().seconds for _ in range(2 if bench.small else 7))
    building, beyond = [], []
    for seed in range(1, 3 if bench.small else TRIALS + 1):
        Device(bench.device).synchronize()
        start_s = time.perf_counter()
        lr = 1e-3 * seed
        next_spec = dataclasses.replace(spec, seed=seed, hyper_parameters=dict(spec.hyper_parameters) | {"lr": lr})
        training = Training(next_spec, predecessor=training, loaders=loaders)
        building.append(time.perf_counter() - start_s)
        for _ in range(EPOCHS_OF_EACH):
            training.run_epoch()
        beyond.append(time.perf_counter() - start_s - EPOCHS_OF_EACH * epoch_s)
    bench.table(
        f"A further trial in one process, n = {len(beyond)}: median [smallest, largest]",
        *("model", "seconds beyond its epochs", "seconds to build it", "an epoch of these images", "the first trial"),
    )
    bench.row(
        MODELS[model],
        render_spread(beyond),
        render_spread(building),
        f"{epoch_s:.3f}",
        f"{first_s - epoch_s:.1f}",
        beyond=beyond,
        building=building,
        epoch=epoch_s,
    )
    bench.figure(f"start/{model}", beyond)


def compare_bits(bench: Bench) -> None:
    """Train the same spec afresh, again, and in the memory of trainings of other optimizers and seeds."""
    spec = spec_of("resnet20", bench.device, precision="fp32", seed=3)
    loaders = loaders_of(images_like_cifar(100 if bench.small else 2_700), spec)  # with a smaller last batch
    with Device(bench.device).deterministic():
        fresh = results_of(Training(spec, loaders=loaders))
        again = results_of(Training(spec, loaders=loaders))
        training = Training(other(spec, 4, "adamsrt"), loaders=loaders)
        results_of(training)
        for seed, optimizer in ((5, "sgd"), (6, "adamsrt")):
            training = Training(other(spec, seed, optimizer), predecessor=training, loaders=loaders)
            results_of(training)
        reused = results_of(Training(spec, predecessor=training, loaders=loaders))
    same_again = "" if again == fresh else "; BUT a fresh training taken twice is not the same either"
    bench.check("start/bits", reused == fresh, f"2 epochs, losses {difference(reused, fresh)}{same_again}")


def results_of(training: Training) -> list[dict[str, Any]]:
    return [without_clock(vars(training.run_epoch())) for _ in range(2)]


def other(spec: TrainingSpec, seed: int, optimizer: str) -> TrainingSpec:
    """Give a spec of the same kind of training."""
    hyper_parameters = {"lr": 0.01, "weight_decay": 1e-3} | ({"momentum": 0.5} if optimizer == "sgd" else {})
    return dataclasses.replace(spec, seed=seed, optimizer=optimizer, hyper_parameters=hyper_parameters)


def difference(results: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """Say how far the training losses differ."""
    largest = largest_difference(*([result["train_loss"] for result in each] for each in (results, others)))
    return "equal" if largest == 0 else f"within {largest:.1e}"


def part(model: str) -> Part:
    run: Callable[[Bench], None] = partial(time_starts, model)
    return Part(MODELS[model], run, 30.0)


PARTS = (Part("bits", compare_bits, 40.0), *(part(model) for model in MODELS))
