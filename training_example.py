"""Train one model on one dataset with the best known hyper-parameters, and test it.

python training_example.py --optimizer=adamsrt --model=resnet18 --dataloader=cifar100
"""

import os
import signal

if __name__ == "__main__":
    # The imports below take seconds: Ctrl-C meanwhile ends the process without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import ast
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adamsrt.dataloaders import DATASETS
from adamsrt.memory import keep_freed_memory
from adamsrt.models import MODELS
from adamsrt.optimizers import OPTIMIZERS
from adamsrt.precision import PRECISIONS
from adamsrt.training import EpochResult, TestResult, Training, TrainingSpec
from best_hyper_parameters import BEST_HYPER_PARAMETERS


@dataclass(frozen=True)
class Protocol:
    """How long and in what batches a dataset is trained; the defaults are the published ones."""

    epochs: int = 405
    batch_size: int = 128
    num_workers: int = 0


PROTOCOLS = {
    "imagenet": Protocol(batch_size=256, num_workers=4),
    "digits": Protocol(epochs=10, batch_size=32),  # as in search_spaces/resnet20-digits.yaml
}
TUNED_HERE = {"digits": ("resnet20",)}  # nothing is published for these: their entries come from a search


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser; the choices are the registries' names."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamsrt", help="default: adamsrt")
    parser.add_argument("--model", choices=list(MODELS), default="resnet18", help="default: resnet18")
    parser.add_argument("--dataloader", choices=list(DATASETS), default="cifar10", help="default: cifar10")
    epochs = f"default: the published {Protocol().epochs}; {PROTOCOLS['digits'].epochs} for digits"
    parser.add_argument("--epochs", type=int, metavar="N", help=epochs)
    parser.add_argument("--data-root", default="data", help="folder that holds the data (default: data)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--seed", type=int, default=0, help="keys initial weights, order and augmentation (default: 0)")
    parser.add_argument(
        "--limit-train-examples", type=int, metavar="N", help="train on N images only, for a quick look"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the published one; 32 for digits")
    parser.add_argument(
        "--valid-split", type=float, metavar="FRACTION", help="held out for validation (default: as published)"
    )
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="keys what is held out (default: 0)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of training, validation and test (default: fp32)"
    )
    parser.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on a GPU, replay the training step as a CUDA graph (default: yes)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="on a CPU; another number gives other last bits (default: torch's)"
    )
    parser.add_argument(
        "--hyper-parameters", metavar="FILE", help="another file of that kind (default: best_hyper_parameters.py)"
    )
    parser.add_argument("--json", metavar="FILE", help="write every epoch and the test there, one JSON object per line")
    return parser


def read_hyper_parameters(path: Path) -> Mapping[str, Any]:
    """Read a file of the best hyper-parameters as data, without executing it; raises ValueError where it is none."""
    try:
        assigned = {
            target.id: statement.value
            for statement in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        found: Mapping[str, Any] = ast.literal_eval(assigned["BEST_HYPER_PARAMETERS"])
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--hyper-parameters must be a file that a search has exported, got {path} ({reason})"
        ) from None
    return found


def find_hyper_parameters(
    best: Mapping[str, Mapping[str, Mapping[str, Any]]], dataset: str, model: str, optimizer: str
) -> Mapping[str, Any]:
    """Look up the hyper-parameters of one combination; raises ValueError with those that exist where it has none."""
    by_model = best.get(dataset, {})
    by_optimizer = by_model.get(model, {})
    if optimizer in by_optimizer:
        found: Mapping[str, Any] = by_optimizer[optimizer]
        return found
    asked = f"no hyper-parameters for {optimizer} with {model} on {dataset}"
    if model in TUNED_HERE.get(dataset, ()):
        search = f"python -m tune_adamsrt.search --setting {model}-{dataset} --optimizer {optimizer}"
        raise ValueError(f"{asked} yet; run `{search}` first")
    if by_optimizer:
        raise ValueError(f"{asked}; the optimizers for {model} on {dataset} are {', '.join(by_optimizer)}")
    models = sorted({*by_model, *TUNED_HERE.get(dataset, ())})
    raise ValueError(f"{asked}; the models for {dataset} are {', '.join(models)}")


def choose_device(name: str | None) -> str:
    """Check the device asked for, or pick one; raises ValueError for one that does not exist here."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise ValueError(f"--device must exist on this machine, got {name!r}; here there are {here}") from None
    return name


def build_training(arguments: argparse.Namespace) -> Training:
    """Build the training asked for; raises ValueError for whatever the user got wrong, missing data included."""
    dataset, model, optimizer = arguments.dataloader, arguments.model, arguments.optimizer
    file = arguments.hyper_parameters
    best = BEST_HYPER_PARAMETERS if file is None else read_hyper_parameters(Path(file))
    hyper_parameters = find_hyper_parameters(best, dataset, model, optimizer)
    protocol = PROTOCOLS.get(dataset, Protocol())
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads must be >= 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    spec = TrainingSpec(
        dataset,
        model,
        optimizer,
        hyper_parameters,
        epochs=protocol.epochs if arguments.epochs is None else arguments.epochs,
        seed=arguments.seed,
        data_root=arguments.data_root,
        device=choose_device(arguments.device),
        batch_size=protocol.batch_size if arguments.batch_size is None else arguments.batch_size,
        valid_split=arguments.valid_split,
        split_seed=arguments.split_seed,
        limit_train_examples=arguments.limit_train_examples,
        num_workers=protocol.num_workers,
        precision=arguments.precision,
        cuda_graph=arguments.cuda_graph,
    )
    return Training(spec)


def render_heading(spec: TrainingSpec) -> str:
    """Render the line that says what is trained, with what, where."""
    values = ", ".join(f"{name}={value}" for name, value in spec.hyper_parameters.items())
    return (
        f"{spec.model} on {spec.dataset} with {spec.optimizer} ({values}): "
        f"{spec.epochs} epochs, batches of {spec.batch_size}, seed {spec.seed}, on {spec.device}"
        f"{'' if spec.precision == 'fp32' else f' in {spec.precision}'}"
    )


def render_epoch(result: EpochResult, epochs: int) -> str:
    """Render one epoch's line."""
    return (
        f"epoch {result.epoch:>{len(str(epochs))}}/{epochs}  "
        f"train loss {result.train_loss:.4f}, accuracy {result.train_accuracy:.2%}  "
        f"valid loss {result.valid_loss:.4f}, accuracy {result.valid_accuracy:.2%}  "
        f"lr {result.lr:.3g}  {result.seconds:.1f} s"
    )


def train(training: Training, console: Console, records: TextIO | None = None) -> int:
    """Train to the last epoch, test, and show both; returns the exit code (1 where the training diverged).

    Args:
        records: takes every epoch and the test as lines of JSON, with all digits.
    """

    def show(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def record(result: EpochResult | TestResult) -> None:
        if records is not None:
            print(json.dumps(dataclasses.asdict(result)), file=records, flush=True)

    spec = training.spec
    show(render_heading(spec))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("")
        while training.epoch < spec.epochs:
            progress.reset(bar, description=f"epoch {training.epoch + 1}/{spec.epochs}")
            result = training.run_epoch(lambda done, total: progress.update(bar, completed=done, total=total))
            show(render_epoch(result, spec.epochs))
            record(result)
            if not result.is_finite:
                print(f"the loss must stay finite, it did not in epoch {result.epoch}: diverged", file=sys.stderr)
                return 1
    tested = training.test()
    record(tested)
    show(
        f"test accuracy {tested.test_accuracy:.2%}, with the weights of epoch {tested.epoch} "
        f"(best validation accuracy {training.best_valid_accuracy:.2%})"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        with contextlib.ExitStack() as opened:
            try:
                training = build_training(arguments)
                records = opened.enter_context(Path(arguments.json).open("w")) if arguments.json else None
            except ValueError as error:
                parser.error(str(error))
            except OSError as error:
                parser.error(f"--json must be a file that can be written, got {arguments.json} ({error.strerror})")
            return train(training, Console(), records)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
