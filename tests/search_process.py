"""Searches as a user starts them, each a process of its own in a folder of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SEARCH = [sys.executable, "-m", "tune_adamsrt.search", "--confirm-seeds", "0", "--no-report"]  # see test_confirm.py


def environment(tmp_path):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "TUNE_"))}
    return inherited | {"PYTHONPATH": str(REPOSITORY), "ADAMSRT_CACHE_DIR": str(tmp_path / "cache"), "COLUMNS": "100"}


def search(tmp_path, *options, timeout=300):
    return subprocess.run(
        [*SEARCH, *options], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=timeout
    )


def start_search(folder, *options):
    return subprocess.Popen(
        [*SEARCH, *options],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(journal, text, process):
    deadline = time.monotonic() + 300
    while not (journal.exists() and text in journal.read_text()):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
