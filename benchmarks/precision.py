"""What does a lower precision cost in accuracy? The same trainings in fp32 and in another precision, seed by seed.

    .venv/bin/python -m benchmarks.precision                          # digits, bf16, 20 seeds: minutes on a CPU
    .venv/bin/python -m benchmarks.precision --dataset cifar10 --model resnet18 --epochs 30 --seeds 5 \
        --data-root data --precisions tf32 bf16 --device cuda

Both trainings of a pair have the same initial weights, order of images and augmentation. Printed: validation and test
accuracy of each precision, mean and standard deviation, and the paired difference to fp32 with its 95 % confidence
interval (Student's t). Beside it, as a yardstick, how far fp32 with another seed lies from fp32: what a choice of seed
is worth. See README.md for the results.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import t as students_t

from adamsrt.precision import PRECISIONS
from adamsrt.training import Training, TrainingSpec
from training_example import find_hyper_parameters, read_hyper_parameters

TUNED = Path(__file__).parents[1] / "results" / "best_hyper_parameters.py"
READ = ("validation", "test")


def train(arguments: argparse.Namespace, precision: str, seed: int) -> tuple[float, float]:
    """Train once. Returns the validation accuracy at the best epoch, and the test accuracy of its weights."""
    spec = TrainingSpec(
        dataset=arguments.dataset,
        model=arguments.model,
        optimizer=arguments.optimizer,
        hyper_parameters=arguments.hyper_parameters,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        data_root=str(arguments.data_root),
        valid_split=arguments.valid_split,
        device=arguments.device,
        precision=precision,
        seed=seed,
    )
    training = Training(spec)
    while training.epoch < spec.epochs:
        if not training.run_epoch().is_finite:
            break
    return training.best_valid_accuracy, training.test().test_accuracy


def paired(differences: Sequence[float]) -> str:
    """Render a mean difference in accuracy points with its 95 % confidence interval."""
    mean, count = statistics.mean(differences), len(differences)
    half = students_t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return f"{100 * mean:+.2f} [{100 * (mean - half):+.2f}, {100 * (mean + half):+.2f}]"


def spread_of(first: Sequence[float], second: Sequence[float]) -> str:
    """Render the standard deviation of the pairs' differences, in accuracy points."""
    return f"{100 * statistics.stdev(b - a for a, b in zip(first, second, strict=True)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--optimizer", default="adamsrt")
    parser.add_argument("--hyper-parameters", type=Path, default=TUNED, metavar="FILE", help="an exported module")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--valid-split", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="0 .. N - 1")
    parser.add_argument("--precisions", nargs="+", default=["bf16"], choices=PRECISIONS)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    tuned = read_hyper_parameters(arguments.hyper_parameters)
    arguments.hyper_parameters = find_hyper_parameters(tuned, arguments.dataset, arguments.model, arguments.optimizer)
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    names = ["fp32", *(name for name in arguments.precisions if name != "fp32")]
    found = {name: [train(arguments, name, seed) for seed in range(arguments.seeds)] for name in names}
    about = f"{arguments.model} on {arguments.dataset}, {arguments.optimizer}, {arguments.epochs} epochs"
    print(f"{about}, n = {arguments.seeds}")
    for index, what in enumerate(READ):
        values = {name: [pair[index] for pair in found[name]] for name in names}
        for name in names:
            mean, spread = statistics.mean(values[name]), statistics.stdev(values[name])
            line = f"{what:<11}{name:<5}{100 * mean:7.2f} +- {100 * spread:.2f} %"
            if name != "fp32":
                line += f"   minus fp32: {paired([b - a for a, b in zip(values['fp32'], values[name], strict=True)])}"
            print(line)
        others = values["fp32"][1:] + values["fp32"][:1]
        print(f"{what:<11}spread of the difference: {spread_of(values['fp32'], others)} with another seed, fp32")
        for name in names[1:]:
            print(
                f"{what:<11}spread of the difference: {spread_of(values['fp32'], values[name])} with {name}, same seed"
            )


if __name__ == "__main__":
    main()
