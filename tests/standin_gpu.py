"""Run Python where PyTorch and Triton find a GPU that computes nothing but keeps CUDA's rules: standin_cuda/runtime.c.

It is compiled when first wanted, against the headers that come with PyTorch, and tells what was asked of it: which
kernels were launched, what was captured and replayed, and what waited.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
SOURCES = TESTS / "standin_cuda"
# By the library: its source, and what the functions call that it does not define.
LIBRARIES = {
    "cudart": ("runtime.c", "standin_lacks"),
    "cublas": ("libraries.c", "standin_library_call"),
    "cublasLt": ("libraries.c", "standin_library_call"),
    "cudnn": ("libraries.c", "standin_library_call"),
    "cupti": ("libraries.c", "standin_library_call"),
}


@dataclass(frozen=True)
class Trace:
    """What was asked of the GPU, a line each, as runtime.c has them, and what the process printed."""

    lines: list[str]
    output: str

    def between(self, start: int = 0) -> "Trace":
        """Give what lies between the marks of this number, counted from 0: cudaProfilerStart to cudaProfilerStop."""
        starts = [index for index, line in enumerate(self.lines) if line == "mark start"]
        stops = [index for index, line in enumerate(self.lines) if line == "mark stop"]
        return Trace(self.lines[starts[start] + 1 : stops[start]], self.output)

    def of(self, *beginnings: str) -> list[str]:
        """Give the lines that begin with one of these, without it, in their order."""
        return [line.removeprefix(each) for line in self.lines for each in beginnings if line.startswith(each)]

    @property
    def kinds(self) -> Counter[str]:
        """How many lines there are of each first word."""
        return Counter(line.split()[0] for line in self.lines)


def why_not() -> str | None:
    """Say why there can be no stand-in here, if so."""
    for program in ("gcc", "nm"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "needs Python's headers"  # Triton compiles with them
    if not sys.platform.startswith("linux") or not list(torch_folder().glob("lib/libtorch_cuda.so")):
        return "needs a PyTorch with CUDA"
    return None


def run(*command: str, log: Path, environment: dict[str, str] | None = None, folder: Path = TESTS.parent) -> Trace:
    """Run Python with these arguments in a folder, and wait for it; raises where it fails."""
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment_of(log), **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return Trace(log.read_text().splitlines() if log.exists() else [], result.stdout + result.stderr)


def environment_of(log: Path) -> dict[str, str]:
    """Give what makes a process and its children find the stand-in, which writes to this file."""
    folder = build()
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return {
        "LD_PRELOAD": ":".join(str(file) for file in sorted(folder.glob("lib*.so.*")) if not file.is_symlink()),
        "LD_LIBRARY_PATH": str(folder),  # for libcuda.so.1, which is opened by its name
        "TRITON_LIBCUDA_PATH": str(folder),
        "CUDA_STANDIN_LOG": str(log),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }


@functools.cache
def build() -> Path:
    """Compile the libraries into a folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix="standin-cuda-"))
    headers = [f"-I{place}" for place in header_folders()]
    wanted = functions_wanted()
    for name, (source, fallback) in LIBRARIES.items():
        soname, functions = wanted[name]
        compiled = folder / f"{name}.o"
        flags = ["-std=gnu11", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", *headers]
        gcc(*flags, f"-DIS_{name.upper()}", "-c", "-o", str(compiled), str(SOURCES / source))
        missing = sorted(functions - set(symbols(compiled, "--defined-only")))
        stubs, versions = folder / f"{name}-stubs.c", folder / f"{name}.versions"
        lines = [f'int {each}(void) {{ return {fallback}("{each}"); }}' for each in missing]
        stubs.write_text("\n".join([f"int {fallback}(const char *);", *lines, ""]))
        versions.write_text(f"{soname} {{ global: *; }};")
        linked = [f"-Wl,-soname,{soname}", f"-Wl,--version-script,{versions}", str(stubs), str(compiled)]
        gcc("-shared", "-fPIC", "-o", str(folder / soname), *linked, "-ldl", "-lpthread")
    (folder / "libcuda.so.1").symlink_to(wanted["cudart"][0])  # the driver is in the same library
    return folder


def functions_wanted() -> dict[str, tuple[str, set[str]]]:
    """Give the file name of each library and the functions that PyTorch asks of it."""
    found: dict[str, tuple[str, set[str]]] = {}
    for library in torch_folder().glob("lib/*.so"):
        for symbol in symbols(library, "-D", "--undefined-only"):
            function, _, soname = symbol.partition("@")
            name = re.match(r"lib(\w+)\.so\.", soname)
            if name and name[1] in LIBRARIES:
                found.setdefault(name[1], (soname, set()))[1].add(function)
    return found


def symbols(file: Path, *options: str) -> list[str]:
    listed = subprocess.run(["nm", *options, str(file)], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in listed.splitlines()]


def header_folders() -> list[Path]:
    """Give where CUDA's headers are, those of PyTorch's own version first, and Triton's for what they lack."""
    packages = torch_folder().parent
    wanted = ("driver_types.h", "cudnn.h")
    found = [file.parent for name in wanted for file in packages.glob(f"nvidia/*/include/{name}")]
    return [*dict.fromkeys(found), packages / "triton/backends/nvidia/include"]


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def gcc(*arguments: str) -> None:
    result = subprocess.run(["gcc", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":  # python tests/standin_gpu.py TRACE -m benchmarks.gpu --small
    path = Path(sys.argv[1]).resolve()
    sys.exit(subprocess.call([sys.executable, *sys.argv[2:]], env={**os.environ, **environment_of(path)}))
