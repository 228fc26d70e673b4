"""`ray up` with cluster/on-prem.yaml over real SSH, and searches from a laptop: one loses a worker and the laptop."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

ROOT = Path(__file__).parents[2]
VENV = Path(ray.__file__).parents[4]
LAPTOP, HEAD, WORKERS = "m0", "m1", ("m2", "m3")
ADDRESS = {f"m{number}": f"10.79.0.{10 + number}" for number in range(4)}
TRIALS, EPOCHS = 4, 20  # long enough for what the laptop asks meanwhile

missing = [program for program in ("/usr/sbin/sshd", "rsync", "ip", "unshare", "nsenter") if not shutil.which(program)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("RAY_UP_LAB"), reason="alone on a machine: `make lab`, as CI does"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]

Run = Callable[..., str]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """Four machines; skipped where this kernel or container allows none."""
    folder = tmp_path / "lab"
    command = ["bash", str(ROOT / "tests/cluster/lab.sh")]
    environment = {**os.environ, "LAB": str(folder)}
    up = subprocess.run([*command, "up", "4"], env=environment, capture_output=True, text=True)
    try:
        if up.returncode != 0 and any(text in up.stderr for text in ("Operation not permitted", "Permission denied")):
            pytest.skip(f"no namespaces here: {up.stderr.strip().splitlines()[-1]}")
        assert up.returncode == 0, up.stderr
        yield folder
    finally:
        subprocess.run([*command, "down"], env=environment, check=True)


@pytest.fixture
def run(lab: Path) -> Run:
    def run_there(machine: str, command: str, *, timeout_s: float = 300, check: bool = True) -> str:
        """Run a command on a machine, in the shell that a user gets there; gives what it prints."""
        line = f"touch ~/.bashrc; . ~/.bashrc; export PATH={VENV}/bin:$PATH; {command}"
        result = subprocess.run(
            ["bash", ROOT / "tests/cluster/lab.sh", "run", machine, line],
            env={**os.environ, "LAB": str(lab)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert result.returncode == 0 or not check, result.stdout[-4000:]
        return result.stdout

    return run_there


def write_cluster_file(path: Path) -> None:
    """cluster/on-prem.yaml with what a user chooses, this Python's packages, and small machines."""
    config = yaml.safe_load((ROOT / "cluster/on-prem.yaml").read_text())
    config["provider"].update(head_ip=ADDRESS[HEAD], worker_ips=[ADDRESS[name] for name in WORKERS])
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    config["setup_commands"] = [f"bash ~/tune_adamsrt/cluster/node_setup.sh {version}"]
    config["initialization_commands"] = [  # the packages are there already
        f"cd ~/tune_adamsrt && ln -sfn {VENV} .venv && "
        f'echo "python {version}, requirements $(sha256sum <requirements.txt | cut -d" " -f1)" >.node_setup'
    ]
    for key, size in (("head", "--num-cpus=0 --num-gpus=0"), ("worker", "--num-cpus=1 --num-gpus=1")):
        lines: list[str] = config[f"{key}_start_ray_commands"]
        config[f"{key}_start_ray_commands"] = [
            f"{line} {size} --memory=2000000000" if "ray start" in line else line for line in lines
        ]
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def wait_for(condition: Callable[[], Any], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(1)


# The dashboard's own interface, which answers in an instant; a Python process that joins the cluster takes seconds.
ASK = 'curl -s -H "Authorization: Bearer $(cat ~/.ray/auth_token)" http://127.0.0.1:8265'


def test_searches_from_a_laptop(lab: Path, run: Run) -> None:
    write_cluster_file(lab / "shared/cluster.yaml")
    run(LAPTOP, "mkdir ~/laptop && ray get-auth-token --generate >/dev/null && chmod 600 ~/.ray/auth_token")
    token = run(LAPTOP, "cat ~/.ray/auth_token").strip()
    too_early = run(LAPTOP, f"cd ~/laptop && {SEARCH} --study lab; echo exit code $?")
    assert "run `ray up /mnt/shared/cluster.yaml` first" in too_early and "exit code 2" in too_early
    assert too_early.count("\n") == 2

    up = run(LAPTOP, f"cd {ROOT} && ray up -y --no-config-cache /mnt/shared/cluster.yaml", timeout_s=400)
    assert token not in up
    nodes = f"{ASK}/nodes?view=summary"
    wait_for(lambda: len(re.findall(r'"state": ?"ALIVE"', run(HEAD, nodes))) == 3, timeout_s=300, what="two workers")

    assert {run(name, "stat -c %a ~/.ray/auth_token").strip() for name in (HEAD, *WORKERS)} == {"600"}
    only_for_a_tunnel(run)
    refuses_without_token(run)
    loses_a_worker_and_its_laptop(lab, run)
    is_stopped(lab, run)
    assert "nothing" in run(LAPTOP, f"grep -rF {token} ~/laptop || echo nothing")
    assert "nothing" in run(HEAD, f"grep -rF {token} ~/mlflow ~/tune_adamsrt/jobs /mnt/shared/runs || echo nothing")

    run(LAPTOP, f"cd {ROOT} && ray down -y /mnt/shared/cluster.yaml")
    assert "none" in run(HEAD, "pgrep raylet || echo none")


def loses_a_worker_and_its_laptop(lab: Path, run: Run) -> None:
    """A search goes on when the machine that follows it dies; another command there brings the results home."""
    shared = lab / "shared"
    search = subprocess.Popen(
        ["bash", ROOT / "tests/cluster/lab.sh", "run", LAPTOP, f"cd ~/laptop; {SEARCH} --study lab --epochs {EPOCHS}"],
        env={**os.environ, "LAB": str(lab), "PATH": f"{VENV}/bin:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(
            lambda: search.poll() is not None or trains_on_both(load_trials(shared, "lab")),
            timeout_s=240,
            what="two trials under way",
        )
        if search.poll() is not None:
            pytest.fail(f"the search has ended: {search.communicate()[0][-4000:]}")
        run(LAPTOP, "pkill -KILL -f tune_adamsrt[.]search")
        output, _ = search.communicate(timeout=60)
    finally:
        search.kill()
    assert (
        "is submitted; it goes on if this terminal closes" in output
        and f"{TRIALS} trials of at most {EPOCHS} epochs" in output
    )
    wait_for(lambda: "none" in run(LAPTOP, TUNNELS), timeout_s=30, what="end of the tunnel")
    subprocess.run(
        ["bash", ROOT / "tests/cluster/lab.sh", "power-off", WORKERS[1]],
        env={**os.environ, "LAB": str(lab)},
        check=True,
    )
    status = run(LAPTOP, "python -m tune_adamsrt.status --cluster /mnt/shared/cluster.yaml")
    assert re.search(r"study +lab\b", status) and f"runs on {HEAD}" in status
    again = run(LAPTOP, f"cd ~/laptop && {SEARCH} --study lab --epochs {EPOCHS}; echo exit code $?")
    assert "error: study 'lab' must have one driver" in again and "exit code 2" in again

    (name, *_) = [line.split()[0] for line in run(LAPTOP, f"{LOGS} --list").splitlines() if " running " in line]
    output = run(LAPTOP, f"cd ~/laptop && {LOGS} {name}; echo exit code $?", timeout_s=400)
    assert "exit code 0" in output, output[-4000:]
    listed = run(LAPTOP, "python -m tune_adamsrt.search --list-studies --cluster /mnt/shared/cluster.yaml")
    assert re.search(r"^lab  resnet20-digits/adamsrt  ", listed, re.MULTILINE)
    trials = [t for t in load_trials(shared, "lab") if t.state is not TrialState.WAITING]  # first points, untried
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    assert all(sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1)) for trial in trials)
    assert {trial.user_attrs["end"]["host"] for trial in trials} == {WORKERS[0]}  # the other one's trial moved here
    (shared / "best.py").write_text(run(LAPTOP, "cat ~/laptop/best_hyper_parameters.py"))
    best = runpy.run_path(str(shared / "best.py"))["BEST_HYPER_PARAMETERS"]
    assert "lr" in best["digits"]["resnet20"]["adamsrt"]
    assert "<html" in run(LAPTOP, "cat ~/laptop/runs/report/lab/index.html")
    runs = run(HEAD, "python -c 'import os, sqlite3; print(sqlite3.connect(os.path.expanduser(\"~/mlflow/mlflow.db\"))"
               ".execute(\"select status, count(*) from runs group by status\").fetchall())'")  # fmt: skip
    assert f"[('FINISHED', {TRIALS + 1})]" in runs


def is_stopped(lab: Path, run: Run) -> None:
    """The word to stop reaches the driver, which ends as at Ctrl-C; the command that it prints is the laptop's."""
    detached = run(LAPTOP, f"cd ~/laptop && {SEARCH} --study long --epochs 500 --detach")
    name = detached.split()[1]
    wait_for(
        lambda: any(trial.intermediate_values for trial in load_trials(lab / "shared", "long")),
        timeout_s=240,
        what="an epoch",
    )
    run(LAPTOP, f"{LOGS} {name} --stop")
    log = run(LAPTOP, f"cd ~/laptop && {LOGS} {name}; echo exit code $?")
    assert "exit code 130" in log and "resnet20-digits/adamsrt: interrupted" in log
    assert "--study long --cluster /mnt/shared/cluster.yaml" in log


SEARCH = (
    "python -m tune_adamsrt.search --cluster /mnt/shared/cluster.yaml --setting resnet20-digits "
    f"--trials {TRIALS} --scheduler fifo --cpus-per-trial 1 --gpus-per-trial 0 --confirm-seeds 0"
)
TUNNELS = "pgrep -f open_tunne[l] || echo none"
LOGS = "python -m tune_adamsrt.logs --cluster /mnt/shared/cluster.yaml"


def load_trials(shared: Path, study: str) -> list[FrozenTrial]:
    journal = shared / "runs/optuna.journal"
    if not journal.exists():
        return []
    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    return optuna.load_study(study_name=study, storage=storage).trials if study in names else []


def trains_on_both(trials: list[FrozenTrial]) -> bool:
    """Each worker has one CPU, a trial takes one: two trials under way are on two workers."""
    return sum(trial.state is TrialState.RUNNING and bool(trial.intermediate_values) for trial in trials) == 2


def only_for_a_tunnel(run: Run) -> None:
    """MLflow and the dashboard are bound to 127.0.0.1."""
    listening = [line.split()[3] for line in run(HEAD, "ss -Hltn").splitlines()]
    for port in (5000, 8265):
        assert [address for address in listening if address.endswith(f":{port}")] == [f"127.0.0.1:{port}"]


def refuses_without_token(run: Run) -> None:
    """The Jobs API, which runs whatever it is sent, wants the token."""
    ask = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert run(HEAD, ask) == "401"
    assert run(HEAD, f'{ask} -H "Authorization: Bearer wrong"') in ("401", "403")
    assert run(HEAD, f'{ask} -H "Authorization: Bearer $(cat ~/.ray/auth_token)"') == "200"
