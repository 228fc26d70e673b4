"""What is measured on: the GPU, its driver, the versions, and how fast its memory is."""

import os
import platform
import subprocess
import sys
from typing import Any

import torch

from benchmarks.gpu_device import Device, render_spread
from benchmarks.gpu_section import Bench, Part

ASKED = "name,driver_version,memory.total,memory.used,power.limit,clocks.max.sm,clocks.sm,temperature.gpu,compute_mode"


def describe(bench: Bench) -> None:
    backends: Any = torch.backends
    machine: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": backends.cudnn.version(),
        "triton": version_of("triton"),
        "ray": version_of("ray"),
        "python": sys.version.split()[0],
        "cpu": processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }
    if machine["gpu"] is not None:
        properties = torch.cuda.get_device_properties(0)
        machine["gpu memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        machine["multiprocessors"] = properties.multi_processor_count
        machine["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        machine["nvidia-smi"] = asked_of_driver()
    elif bench.device == "cuda":
        bench.say({"kind": "no GPU"})
        return
    bench.note(", ".join(f"{name} {value}" for name, value in machine.items()), machine=machine)


def version_of(package: str) -> str | None:
    """Give the version of a package; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Give the name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def asked_of_driver() -> dict[str, str]:
    """Ask nvidia-smi; give what went wrong where it gives no answer."""
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return dict(zip(ASKED.split(","), (value.strip() for value in line.split(",")), strict=False))


def measure_memory(bench: Bench) -> None:
    """Time a copy of a gigabyte: what a step that only moves memory could reach."""
    device = Device(bench.device)
    if device.is_gpu and not torch.cuda.is_available():
        return
    source = torch.zeros(1 << (20 if bench.small else 28), device=bench.device)
    target = torch.empty_like(source)
    rounds = 3 if bench.small else 15
    seconds = [device.seconds_per_step(lambda: target.copy_(source), 5)[0] for _ in range(rounds)]
    rates = [2 * source.nbytes / each / 1e12 for each in seconds]
    bench.note(
        f"A copy moves {render_spread(rates)} TB/s, n = {rounds}.", machine={"copy, TB/s": rates}, copy_seconds=seconds
    )


PARTS = (Part("versions", describe, 60.0), Part("memory bandwidth", measure_memory, 30.0))
