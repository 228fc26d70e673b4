"""Time of an epoch relative to the published loop, on one core and on all.

    .venv/bin/python -m benchmarks.epoch                                # ResNet20 in batches of 128, about 8 minutes
    .venv/bin/python -m benchmarks.epoch --models resnet18 --rounds 3 --threads 1

The published loop, written for this comparison: the PIL pipeline of `benchmarks.data_loading` with its one worker
process, a model in torch's default memory format, AdamSRT as its formulas read, one tensor and one operation after
another, `.item()` on loss and number of correct images after every step, evaluation in batches of 512. Ours is what
`training_example.py` and the workers of a search do. All work on random images of the size of CIFAR-10, each in a
process of its own, and take turns in every round. An epoch is 47,500 images to train on and 2,500 to validate, its time
computed from that of a few batches of each.

With one thread, time is CPU time of the process and its data worker: what one core needs, which others on the machine
disturb less than the clock. With more threads (default: 1, then one per core) it is the clock, and the worker has
no core of its own. Starting and ending the worker does not count. A ratio is that of two arms in one round; median
[quartiles] over the rounds.

At the end, the start of a trial in a process that has trained before: `Training` on the digits, given its predecessor.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader

from adamsrt.dataloaders.images import ImageLoader, ImageSet, normalization_table
from adamsrt.epoch import TrainStep, evaluate, train_epoch
from adamsrt.memory import keep_freed_memory
from adamsrt.models import build_model
from adamsrt.optimizers import build_optimizer
from adamsrt.precision import best_memory_format
from adamsrt.training import Training, TrainingSpec, evaluation_batch_size
from benchmarks.data_loading import MEAN, STD, PILImages
from benchmarks.optimizer_step import MODELS, render_quartiles, render_row

BATCH_SIZE, PUBLISHED_EVALUATION_BATCH_SIZE = 128, 512
TRAINING_IMAGES, VALIDATION_IMAGES = 47_500, 2_500
BATCHES_TIMED = 8
HYPER_PARAMETERS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 1e-4}

# What takes a pass, of training or evaluation, and gives the seconds that it took.
Passes = tuple[Callable[[], float], Callable[[], float]]


class PlainAdamSRT(Optimizer):
    """arXiv:2006.13382, Algorithm 1, read off the paper; v is kept in the shape of the weights."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "channel_wise": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for x in group["params"]:
                state = self.state[x]
                if not state:
                    state.update(step=0, m=torch.zeros_like(x), v=torch.zeros_like(x))
                state["step"] += 1
                grad = x.grad + group["weight_decay"] * x
                is_split = group["channel_wise"]
                dims = tuple(range(1, x.ndim)) if is_split else ()
                d = x[0].numel() if is_split else 1
                m = beta1 * state["m"] + (1 - beta1) * grad
                v = beta2 * state["v"] + (1 - beta2) * inner(grad, grad, dims)
                m_hat, v_hat = m / (1 - beta1 ** state["step"]), v / (1 - beta2 ** state["step"])
                new = x - group["lr"] * d**0.5 * m_hat / (v_hat.sqrt() + 1e-8)
                if is_split:
                    square = inner(new, new, dims) + 1e-8
                    v = v * inner(x, x, dims) / square
                    m = (inner(x, new, dims) * m - inner(m, new, dims) * x) / square
                x.copy_(new)
                state["m"], state["v"] = m, v


def inner(x: Tensor, y: Tensor, dims: tuple[int, ...]) -> Tensor:
    product = x * y
    return product.sum(dims, keepdim=True).expand_as(x) if dims else product


def published(name: str, num_images: int, *, with_adam: bool = False, num_workers: int = 1) -> Passes:
    """Give the passes of the published loop."""
    model = seeded_model(name)
    groups = [{"params": model.conv_params(), "channel_wise": True}, {"params": model.other_params()}]
    optimizer = Adam(model.parameters(), **HYPER_PARAMETERS) if with_adam else PlainAdamSRT(groups, **HYPER_PARAMETERS)
    pictures = PILImages(np.ascontiguousarray(random_pixels(num_images).transpose(0, 2, 3, 1)))
    batches = DataLoader(pictures, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers)
    in_order = DataLoader(pictures, batch_size=PUBLISHED_EVALUATION_BATCH_SIZE, num_workers=num_workers)

    def train() -> float:
        model.train()
        loss_sum, correct = 0.0, 0.0
        clock = Clock()
        for images, labels in batches:
            clock.batch_is_there()
            optimizer.zero_grad()
            logits = model(images)
            loss = functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            correct += (logits.argmax(1) == labels).sum().item()
            clock.step_is_done()
        return clock.seconds

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        clock = Clock()
        for images, labels in in_order:
            clock.batch_is_there()
            logits = model(images)
            functional.cross_entropy(logits, labels).item()
            (logits.argmax(1) == labels).sum().item()
            clock.step_is_done()
        return clock.seconds

    return train, validate


def ours(
    name: str, num_images: int, *, precision: str = "fp32", channels_last: bool = True, keeps_memory: bool = True
) -> Passes:
    """Give the passes that `Training` takes."""
    if keeps_memory:
        keep_freed_memory()
    model = seeded_model(name)
    memory_format = best_memory_format("cpu", precision) if channels_last else torch.contiguous_format
    model.to(memory_format=memory_format)
    optimizer = build_optimizer("adamsrt", model, **HYPER_PARAMETERS)
    table = normalization_table(MEAN, STD)
    image_set = ImageSet(torch.from_numpy(random_pixels(num_images)), torch.zeros(num_images, dtype=torch.int64))
    batches = ImageLoader(image_set, table, batch_size=BATCH_SIZE, shuffle=True, padding=4, flip=True)
    in_order = ImageLoader(image_set, table, batch_size=evaluation_batch_size("cpu", BATCH_SIZE, 32))
    step = TrainStep(model, optimizer, precision=precision, memory_format=memory_format)
    return (
        lambda: seconds_of(lambda: train_epoch(model, optimizer, batches, step=step)),
        lambda: seconds_of(lambda: evaluate(model, in_order, precision=precision, memory_format=memory_format)),
    )


class Clock:
    """Seconds of a pass in this process and its data worker, if any, whose start and end do not count."""

    def __init__(self) -> None:
        self._starts_s = seconds()
        self._batches = 0

    def batch_is_there(self) -> None:
        if self._batches == 0 and multiprocessing.active_children():
            self._starts_s = seconds()
        self._batches += 1

    def step_is_done(self) -> None:
        self._own_s, self._worker_s = (now - start for now, start in zip(seconds(), self._starts_s, strict=True))

    @property
    def seconds(self) -> float:
        return self._own_s + self._worker_s * self._batches / (self._batches - 1)  # its first batch was there before


def seconds() -> tuple[float, float]:
    """Give the CPU time of this process and that of the running ones it started (Linux); with threads the clock, 0."""
    if torch.get_num_threads() > 1:
        return time.perf_counter(), 0.0
    clocks = ((~child.pid << 3) | 2 for child in multiprocessing.active_children() if child.pid)  # see clock_getres(2)
    return time.process_time(), sum(time.clock_gettime(clock) for clock in clocks)


def seconds_of(take: Callable[[], Any]) -> float:
    start_s, _ = seconds()
    take()
    return seconds()[0] - start_s


def seeded_model(name: str) -> Any:
    torch.manual_seed(0)
    model: nn.Module = build_model(name, num_classes=10, in_channels=3, image_size=32)
    return model


def random_pixels(num_images: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.random.default_rng(0).integers(256, size=(num_images, 3, 32, 32), dtype=np.uint8)


Build = Callable[..., Passes]
ARMS: dict[str, tuple[Build, dict[str, Any]]] = {
    "published loop": (published, {}),
    "published loop without a worker": (published, {"num_workers": 0}),
    "published loop, torch's Adam": (published, {"with_adam": True}),
    "adamsrt, contiguous": (ours, {"channels_last": False, "keeps_memory": False}),
    "adamsrt, channels_last": (ours, {"keeps_memory": False}),
    "adamsrt, channels_last, freed memory kept": (ours, {}),
    "the same in bf16": (ours, {"precision": "bf16"}),
}


def serve(turns: Connection, arm: str, model: str, num_images: int, threads: int) -> None:
    """Be an arm's process: take both passes at every turn, and send the seconds per image of each."""
    torch.set_num_threads(threads)
    build, options = ARMS[arm]
    passes = build(model, num_images, **options)
    while turns.recv():
        turns.send([take() / num_images for take in passes])


def measure(model: str, num_images: int, threads: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Give the seconds per image of training and evaluation, of every arm in every round, after one round unseen."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    processes = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        turns = {}
        for name in ARMS:
            turns[name], theirs = processes.Pipe()
            process = processes.Process(target=serve, args=(theirs, name, model, num_images, threads))
            process.start()
            stack.callback(process.join)
            stack.callback(turns[name].send, False)
        for first in (True, *[False] * rounds):
            for name, turn in turns.items():
                turn.send(True)
                train_s, validate_s = turn.recv()
                if not first:
                    measured[name].append((train_s, validate_s))
    return measured


def trial_starts(name: str, rounds: int) -> list[float]:
    """Give the CPU milliseconds of every `Training` in this process that follows another."""
    spec = TrainingSpec("digits", name, "adamsrt", HYPER_PARAMETERS, epochs=1)
    training, milliseconds = Training(spec), []
    for _ in range(rounds):
        training.run_epoch()
        start_s = time.process_time()
        training = Training(spec, predecessor=training)
        milliseconds.append(1e3 * (time.process_time() - start_s))
    return milliseconds


def render(measured: dict[str, list[tuple[float, float]]]) -> str:
    """Render a Markdown table of speeds relative to the first arm."""
    peer = next(iter(measured.values()))
    lines = [
        render_row(
            ["loop", "images / s", "training, times as fast", "evaluation, times as fast", "epoch, times as fast"]
        ),
        "|---" * 5 + "|",
    ]
    for name, values in measured.items():
        parts = [[a[part] / b[part] for a, b in zip(peer, values, strict=True)] for part in range(2)]
        epochs = [epoch_seconds(*a) / epoch_seconds(*b) for a, b in zip(peer, values, strict=True)]
        rate = TRAINING_IMAGES / statistics.median(epoch_seconds(*each) for each in values)
        lines.append(render_row([name, f"{rate:,.0f}", *(render_quartiles(each) for each in (*parts, epochs))]))
    return "\n".join(lines)


def epoch_seconds(train_s: float, validate_s: float) -> float:
    return TRAINING_IMAGES * train_s + VALIDATION_IMAGES * validate_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=("resnet20",))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=BATCHES_TIMED, help="of 128 images, of each pass, 8 or more")
    all_threads = sorted({1, torch.get_num_threads()})
    parser.add_argument("--threads", nargs="+", type=int, default=all_threads, help="of torch; 1: CPU time, else clock")
    arguments = parser.parse_args()
    if arguments.batches < BATCHES_TIMED:  # the published loop's evaluation needs two batches of 512 or more
        parser.error(f"--batches must be at least {BATCHES_TIMED}, got {arguments.batches}")
    print(f"torch {torch.__version__}, batches of {BATCH_SIZE}, n = {arguments.rounds} rounds")
    for model in arguments.models:
        for threads in arguments.threads:
            measured = measure(model, arguments.batches * BATCH_SIZE, threads, arguments.rounds)
            print(f"\n{model}, {'CPU time of one thread' if threads == 1 else f'{threads} threads, by the clock'}\n")
            print(render(measured), flush=True)
    torch.set_num_threads(1)
    keep_freed_memory()
    for model in arguments.models:
        if model != "vgg16":  # too deep for the digits
            starts = render_quartiles(trial_starts(model, arguments.rounds))
            print(f"\nA trial of {model} on the digits starts in {starts} ms.", flush=True)


if __name__ == "__main__":
    main()
