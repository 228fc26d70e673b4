"""Many trials on one GPU, for `benchmarks.gpu`: how many more it trains per hour, and that none notices the others.

The images are random ones of the size of CIFAR-10, as in `benchmarks.gpu_epochs`. One trial at a time without a graph
is what a search without --trials-per-gpu trains, less what Ray adds.
"""

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from adamsrt.dataloaders.images import build_image_loaders, normalization_table
from adamsrt.dataloaders.loader import Loaders
from adamsrt.training import TrainingSpec, evaluation_batch_size
from benchmarks.gpu_epochs import MEAN, STD, random_images
from benchmarks.optimizer_step import render_row
from tune_adamsrt.engine import Engine
from tune_adamsrt.engine_auto import MAX_EXAMPLES, epochs_per_second

EPOCHS_OF_A_TRIAL = 405
SLOTS = {"resnet20": (1, 2, 4, 8, 16), "resnet18": (1, 2, 4, 8)}
AIMS = {"resnet20": 3.0, "resnet18": 1.3}
CLOCK = ("seconds", "train_images_per_second")


def configuration(
    model: str, *, precision: str, graph: bool, epochs: int, examples: int, device: str, seed: int = 0
) -> dict[str, Any]:
    """A trial's configuration, as a search would give it."""
    protocol = {"dataset": "cifar10", "model": model, "optimizer": "adamsrt", "epochs": epochs, "precision": precision}
    return {
        "protocol": protocol | {"batch_size": 128, "limit_train_examples": examples},
        "place": {"device": device, "cuda_graph": graph},
        "hyper_parameters": {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4},
        "seed": seed,
    }


def load_random(spec: TrainingSpec) -> Loaders:
    """Build loaders as those of CIFAR-10, over random images."""
    assert spec.limit_train_examples is not None
    images = random_images(spec.limit_train_examples + spec.limit_train_examples // 19)  # 5 % to validate
    return build_image_loaders(
        images,
        random_images(128),
        normalization_table(MEAN, STD),
        padding=4,
        flip=True,
        valid_split=0.05,
        train_batch_size=spec.batch_size,
        test_batch_size=evaluation_batch_size(spec.device, spec.batch_size, 32),
        seed=spec.seed,
        split_seed=spec.split_seed,
        limit_train_examples=spec.limit_train_examples,
        device=spec.device,
    )


def rates(deadline_s: float, *, device: str = "cuda", examples: int = MAX_EXAMPLES) -> Iterator[str]:
    """Time trials side by side; give the rows of a table."""
    full_epoch = examples / 47_500
    for model, numbers in SLOTS.items():
        one = None
        for slots, graph in [(1, False), *((slots, True) for slots in numbers)]:
            if time.perf_counter() > deadline_s:
                yield render_row([model, "no time for the rest", "", "", ""])
                break
            config = configuration(model, precision="bf16", graph=graph, epochs=10**6, examples=examples, device=device)
            engine = Engine(slots, load=load_random)
            try:
                rate = epochs_per_second(engine, config, slots) * full_epoch
            except Exception as error:  # the others still count
                yield render_row([model, str(slots), f"{type(error).__name__}: {error}".partition("\n")[0], "", ""])
                continue
            finally:
                engine.close()
                del engine
                gc.collect()
                if device == "cuda":
                    torch.cuda.empty_cache()
            one = one or rate
            name = f"{slots}, bf16" if graph else "1, bf16, without a graph"
            per_hour = 3600 * rate / EPOCHS_OF_A_TRIAL
            against = f"{rate / one:.2f}" + (f" (aim {AIMS[model]})" if slots == numbers[-1] else "")
            yield render_row([model, name, f"{rate:.2f}", f"{per_hour:.1f}", against])


def compare_with_alone(*, device: str = "cuda", examples: int = 2_000, slots: int = 4) -> str:
    """Train the same trial alone, then beside others in a slot that was used before; say how far the results differ."""
    torch.backends.cudnn.deterministic = True

    def train(engine: Engine, seed: int) -> list[dict[str, Any]]:
        config = configuration(
            "resnet20", precision="fp32", graph=True, epochs=3, examples=examples, device=device, seed=seed
        )
        engine.begin(seed, config)
        results = [engine.run_epoch(seed) for _ in range(3)]
        engine.end(seed)
        return [{name: value for name, value in result.items() if name not in CLOCK} for result in results]

    try:
        engines = [Engine(1, load=load_random), Engine(slots, load=load_random)]
        alone = train(engines[0], 0)
        with ThreadPoolExecutor(slots) as pool:
            for seeds in (range(slots, 2 * slots), range(slots)):
                beside = list(pool.map(lambda seed: train(engines[1], seed), seeds))
    finally:
        torch.backends.cudnn.deterministic = False
    if beside[0] == alone:
        return f"a trial beside {slots - 1} others, in a slot used before, is that trial alone, bit for bit"
    pairs = [(a["train_loss"], b["train_loss"]) for a, b in zip(alone, beside[0], strict=True)]
    largest = max(abs(a - b) / abs(a) for a, b in pairs)
    return f"a trial beside {slots - 1} others: losses within {largest:.1e} of those alone"
