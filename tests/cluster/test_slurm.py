"""cluster/slurm.sh up to the command that it runs on every node; Slurm and Ray are stand-ins that take notes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_INS = {
    "scontrol": '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"',
    "hostname": 'echo "10.1.2.3 172.17.0.1 "',
    "srun": 'while [[ "$1" == --* ]]; do echo "srun $1" >>"$NOTES"; shift; done; exec "$@"',
    "nvidia-smi": "echo Default",
    "nvidia-cuda-mps-control": '[ -n "$*" ] && echo "mps $* $CUDA_MPS_PIPE_DIRECTORY" >>"$NOTES"',
    "ray": 'if [ "$1" = get-auth-token ]; then mkdir -p ~/.ray; echo secret | tee ~/.ray/auth_token; exit; fi; '
    'printf "%s\\n" "mode $RAY_AUTH_MODE" "$@" >>"$NOTES"; exit "${RAY_EXIT:-0}"',
}


@pytest.fixture
def submit(tmp_path: Path):
    """Run the script as sbatch would, in a folder whose .venv has the stand-ins; gives exit code, output and notes."""
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (tmp_path / "cluster").symlink_to(ROOT / "cluster")
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)

    def run(*arguments: str, **variables: str) -> tuple[int, str, list[str]]:
        notes = tmp_path / "notes"
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "NOTES": str(notes),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_CPUS_PER_TASK": "16",
            **variables,
        }
        done = subprocess.run(
            ["bash", ROOT / "cluster/slurm.sh", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout, notes.read_text().splitlines() if notes.exists() else []

    return run


def test_every_node_joins_the_first_and_the_search_gets_its_arguments(submit) -> None:
    code, output, notes = submit("--setting", "resnet18-cifar100", "--data-root", "/shared/my data")
    assert code == 0, output
    at = notes.index("mode token")
    assert notes[:at] == ["srun --nodes=1", "srun --ntasks=1", "srun --nodelist=n1", "srun --no-kill"]
    command = notes[at + 1 :]
    ray, search = command[: command.index("--")], command[command.index("--") + 1 :]
    assert ray[:5] == ["symmetric-run", "--address", "10.1.2.3:6379", "--min-nodes", "2"]
    assert ray[ray.index("--num-cpus") + 1] == "16"
    assert search[:3] == ["python", "-m", "tune_adamsrt.search"]
    assert search[3:] == [
        "--address",
        "10.1.2.3:6379",
        "--setting",
        "resnet18-cifar100",
        "--data-root",
        "/shared/my data",
    ]
    assert "secret" not in output  # the token that it made


def test_mps_starts_before_ray_where_it_is_asked_for(submit) -> None:
    code, output, notes = submit("--setting", "resnet18-cifar100", TUNE_ADAMSRT_MPS="1")
    assert code == 0, output
    folder = Path(f"/tmp/tune_adamsrt-mps-{os.getuid()}")
    assert notes[notes.index("mode token") - 1] == f"mps -d {folder}"
    shutil.rmtree(folder)


def test_the_job_ends_with_the_searchs_exit_code(submit) -> None:
    assert submit("--setting", "x", RAY_EXIT="2")[0] == 2


def test_outside_of_sbatch_it_says_so(submit) -> None:
    code, output, notes = submit(SLURM_SUBMIT_DIR="")
    assert code != 0 and "run it with sbatch" in output and notes == []
