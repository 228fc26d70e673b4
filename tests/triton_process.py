"""Run a script of this folder in a process of its own, where Triton interprets kernels, or compiles them."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run(script: str, *arguments: str, interpreted: bool) -> str:
    """Give what the script prints."""
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": str(int(interpreted)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(TESTS / script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    return result.stdout
