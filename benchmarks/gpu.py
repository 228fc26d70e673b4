"""What only a GPU can show, in one call of under 8 minutes: that all of it computes what it should, and how fast.

    python -m benchmarks.gpu                          # prints Markdown; without a GPU one line
    python -m benchmarks.gpu --out folder             # and writes table.md, raw.json and log.txt there
    python -m benchmarks.gpu --sections steps slots   # some of it
    python -m benchmarks.gpu --device cpu --small     # runs every line of it on a CPU; its figures mean nothing

Every section runs in a process of its own: what raises, crashes, hangs or takes too long costs one part of it, and the
log says why. The most important come first, for a GPU so slow that time ends before the last. At the end there is a
line for every aim and every check. The exit status is 1 where a check failed, and 0 where an aim was only missed.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_process import run_section
from benchmarks.gpu_report import Report
from benchmarks.gpu_section import Bench, run_parts

# Modules that have PARTS, in the order of their importance.
SECTIONS = {
    "machine": "Machine",
    "kernels": "Kernels against the formulas in float64",
    "graphs": "Training with CUDA graphs against training without",
    "epochs": "Epochs",
    "steps": "Steps of the optimizers",
    "slots": "Many trials on one GPU",
    "start": "The start of a further trial",
    "data": "Data",
    "memory": "Memory",
    "published": "The published loop",
    "connections": "Many trials on one GPU, with more hardware queues",
    "arms": "Epochs, other ways to compute them",
}
TIME_LIMIT_S = 455.0
GRACE_S = 10.0  # for a section to end, before the whole command does
NO_GPU = "no GPU: nothing measured"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for table.md, raw.json and log.txt")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--data-root", help="where CIFAR-10 is, to compare precisions on; images of our own otherwise")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_S, help="seconds, for everything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="compute little, only to see that everything runs")
    parser.add_argument("--part-of", choices=SECTIONS, help=argparse.SUPPRESS)  # a process of one section
    parser.add_argument("--first-part", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    return run_in_this_process(arguments) if arguments.part_of else measure(arguments)


def run_in_this_process(arguments: argparse.Namespace) -> int:
    """Run a section's parts; give the exit status."""
    from benchmarks.gpu_device import Device
    from benchmarks.gpu_training import small_models

    parts: Any = importlib.import_module(f"benchmarks.gpu_{arguments.part_of}").PARTS
    bench = Bench(arguments.device, arguments.small, arguments.data_root)
    # A figure of a graph that could not be captured would be that of something else.
    warnings.filterwarnings("error", message="training goes on without a CUDA graph")
    with small_models(arguments.small):
        return run_parts(parts, bench, first=arguments.first_part, clean_up=Device(arguments.device).clean_up)


def measure(arguments: argparse.Namespace) -> int:
    """Run all sections; give the exit status."""
    start = time.monotonic()
    report = Report(arguments.out)
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="benchmarks-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    watchdog = threading.Timer(arguments.time_limit + GRACE_S, give_up, (report, start))
    watchdog.daemon = True
    watchdog.start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_sections(arguments, report, folder / "log.txt", start + arguments.time_limit)
    except KeyboardInterrupt:
        report.take({"kind": "error", "part": "all that follows", "text": "interrupted"})
    watchdog.cancel()
    if report.has_no_gpu:
        print(NO_GPU)
        return 0
    report.end(time.monotonic() - start)
    print(f"\nWhat went wrong, if anything, is told at length in {folder / 'log.txt'}")
    return int(report.has_failed)


def run_sections(arguments: argparse.Namespace, report: Report, log_file: Path, deadline: float) -> None:
    """Run section after section, for as long as there is time and a GPU."""
    with log_file.open("w") as log:
        for name in arguments.sections:
            report.begin(name, SECTIONS[name])
            if time.monotonic() >= deadline:
                report.take({"kind": "error", "part": "all of it", "text": "no time was left"})
                continue
            print(f"\n== {name}", file=log, flush=True)
            run_section(
                partial(command_of, arguments, name),
                report.take,
                log=log,
                deadline=deadline,
                environment=environment_of(arguments, name),
            )
            report.write()
            if report.has_no_gpu:
                return


def command_of(arguments: argparse.Namespace, section: str, first: int) -> list[str]:
    """Give the command of a process for a section, from a part on."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part-of", section, "--first-part", str(first)]
    command += ["--device", arguments.device, *(["--small"] if arguments.small else [])]
    return command + (["--data-root", arguments.data_root] if arguments.data_root else [])


def environment_of(arguments: argparse.Namespace, section: str) -> dict[str, str]:
    """Give what a section's process has in its environment beside what this one has."""
    environment = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    if arguments.device == "cpu" and section == "kernels":
        environment["TRITON_INTERPRET"] = "1"
    if not os.access(Path.home(), os.W_OK):  # where Triton keeps what it has compiled
        environment["TRITON_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"triton-{os.getuid()}")
    if section == "connections":
        environment["CUDA_DEVICE_MAX_CONNECTIONS"] = "32"
    return environment


def give_up(report: Report, start: float) -> None:
    """Say what there is and end the process: what should have ended by itself has not."""
    status = 1
    with contextlib.suppress(BaseException):
        report.take({"kind": "error", "part": "the whole command", "text": "did not end; it is given up"})
        report.end(time.monotonic() - start)
        status = int(report.has_failed)
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
