"""cluster/mps.sh with stand-ins for NVIDIA's programs, which take notes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = f"/tmp/tune_adamsrt-mps-{os.getuid()}"
CONTROL = """#!/usr/bin/env bash
if [ "$1" = -d ]; then
  echo "start $CUDA_MPS_PIPE_DIRECTORY $CUDA_MPS_LOG_DIRECTORY ${CUDA_VISIBLE_DEVICES-all}" >>"$NOTES"
else
  cat >>"$NOTES"
fi
exit "${EXIT:-0}"
"""
THEN = '\necho "pipes ${CUDA_MPS_PIPE_DIRECTORY-none}"; touch "$FOLDER_OF_TEST/ray-started"\n'


@pytest.fixture
def start(tmp_path: Path):
    """Source the script as a start command does; gives what is printed, and what the control program was told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    existed = Path(FOLDER).exists()

    def run(*, installed: bool = True, mode: str = "Default", **variables: str) -> tuple[list[str], list[str]]:
        for name, text in (
            ("nvidia-cuda-mps-control", CONTROL),
            ("nvidia-smi", f"#!/bin/sh\necho 'Default'\necho '{mode}'\n"),
        ):
            (programs / name).unlink(missing_ok=True)
            if installed:
                (programs / name).write_text(text)
                (programs / name).chmod(0o755)
        notes = tmp_path / "notes"
        notes.write_text("")
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "NOTES": str(notes), "FOLDER_OF_TEST": str(tmp_path)}
        done = subprocess.run(
            ["bash", "-euc", f". {ROOT}/cluster/mps.sh{THEN}"],
            env=environment | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and (tmp_path / "ray-started").exists(), done.stderr
        return (done.stderr + done.stdout).splitlines(), notes.read_text().splitlines()

    yield run
    if not existed:
        shutil.rmtree(FOLDER, ignore_errors=True)


def test_it_is_started_anew_where_it_is_asked_for(start) -> None:
    lines, told = start(TUNE_ADAMSRT_MPS="1", CUDA_VISIBLE_DEVICES="1")
    assert told == ["quit", f"start {FOLDER} {FOLDER}/log all"]
    assert lines == [f"pipes {FOLDER}"], "Ray's workers get them"
    assert Path(FOLDER).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, None),
        ({"TUNE_ADAMSRT_MPS": "0"}, None),
        ({"TUNE_ADAMSRT_MPS": "1", "installed": False}, "nvidia-cuda-mps-control is not installed"),
        ({"TUNE_ADAMSRT_MPS": "1", "mode": "Prohibited"}, "a GPU's compute mode is Prohibited"),
        ({"TUNE_ADAMSRT_MPS": "1", "EXIT": "1"}, f"it did not start, see {FOLDER}/log"),
    ],
)
def test_ray_starts_without_it_otherwise(start, options, why) -> None:
    lines, told = start(**options)
    assert lines == ([f"no MPS here: {why}"] if why else []) + ["pipes none"]
    assert bool(told) == ("EXIT" in options)


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml", "on-prem.yaml"])
def test_every_node_with_trials_has_the_switch_before_ray_starts(name) -> None:
    config = yaml.safe_load((ROOT / "cluster" / name).read_text())
    lines = [config["worker_start_ray_commands"][-1]]
    if "--num-cpus=0" not in config["head_start_ray_commands"][-1]:
        lines.append(config["head_start_ray_commands"][-1])
    for line in lines:
        before = line.partition("ray start")[0]
        assert "TUNE_ADAMSRT_MPS=0" in before.partition(". ~/tune_adamsrt/cluster/mps.sh;")[0]
        assert ". ~/tune_adamsrt/cluster/mps.sh;" in before
