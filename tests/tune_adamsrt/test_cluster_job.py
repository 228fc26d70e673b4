"""A search submitted to a cluster's head as a Ray job: a real head with a token, and a process as laptop."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow_servers import free_port

from tune_adamsrt import logs
from tune_adamsrt.cluster import job as cluster_job
from tune_adamsrt.cluster.job import KIND, STOP_WAIT_S, Place, bring_results, build_request, exit_code, searchs_own
from tune_adamsrt.cluster.jobs import Job, Jobs, JobStatus, read_token
from tune_adamsrt.cluster.tunnel import check_cluster_file, explain, jobs_url
from tune_adamsrt.export import Entry, merge_entry, parse
from tune_adamsrt.head_job import EXPORT, PACK_BEGINS, PACK_ENDS, unpack, with_places

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 2
SEARCH = ["--setting", "resnet20-digits", "--trials", "1", "--epochs", "1", "--limit-train-examples", "100",
          "--confirm-seeds", "0", "--cpus-per-trial", "1"]  # fmt: skip


@dataclass(frozen=True)
class Head:
    url: str
    address: str  # of Ray itself
    folder: Path  # home, results, logs: all that it writes
    environment: dict[str, str]  # of a machine that has its token

    @property
    def jobs(self) -> Jobs:
        return Jobs(lambda: self.url, token=TOKEN)

    def laptop(self, folder: Path, program: str, *arguments: str, **more: str) -> "subprocess.Popen[str]":
        """One of our programs, typed on another machine."""
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", f"tune_adamsrt.{program}", *arguments],
            cwd=folder,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def finish(process: "subprocess.Popen[str]") -> str:
    """What a program prints until it ends; it gets the time that it needs on a busy machine."""
    try:
        return process.communicate(timeout=400)[0]
    except BaseException:
        process.kill()
        process.communicate()
        raise


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("h")  # short: sockets lie below
    (folder / ".ray").mkdir()
    (folder / ".ray/auth_token").write_text(TOKEN)
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port, dashboard = free_port(), free_port()
    size = ["--num-cpus=2", "--num-gpus=0", "--memory=2000000000", "--object-store-memory=100000000"]
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0",
             f"--ray-client-server-port={free_port()}"]  # fmt: skip
    places = {"TUNE_ADAMSRT_OUTPUT": str(folder / "out"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}/ray",
             "--dashboard-host=127.0.0.1", *ports, *size],
            env=environment | places, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", folder, environment)
    try:
        wait_for(lambda: can_submit(head.jobs), timeout_s=120, what="Jobs API")
        yield head
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def can_submit(jobs: Jobs) -> bool:
    try:
        return jobs.all() is not None
    except (ConnectionError, ValueError):
        return False


def wait_for(condition: Callable[[], object], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.1)


def submit(head: Head, name: str, command: str) -> None:
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}  # as a search's; Ray's own is 3 s
    head.jobs.submit(name, command, metadata={"kind": KIND, "command": "--setting x"}, environment=environment)


@pytest.mark.slow
@pytest.mark.alone
def test_a_detached_search_comes_home(head: Head, tmp_path: Path) -> None:
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    other = Entry("cifar10", "resnet18", "adam", {"lr": 0.5}, ("kept",))
    merge_entry(laptop / EXPORT, other)
    started = head.laptop(laptop, "search", "--address", head.url, "--detach", *SEARCH)
    submitted = finish(started)
    assert started.returncode == 0, submitted
    name = submitted.split()[1]
    assert f"tune_adamsrt.logs --address {head.url} {name}" in submitted

    following = head.laptop(laptop, "logs", "--address", head.url)
    printed = finish(following)
    assert following.returncode == 0, printed
    assert "trial 0 complete" in printed and "Running entrypoint" not in printed

    (tuned,) = [entry for entry in parse((laptop / EXPORT).read_text()) if entry.key[0] == "digits"]
    assert tuned.key == ("digits", "resnet20", "adamsrt") and "lr" in tuned.hyper_parameters
    assert other in parse((laptop / EXPORT).read_text())
    (page,) = (laptop / "runs/report").glob("*/index.html")
    study = page.parent.name
    assert f"runs/report/{study}/index.html" in printed and study in page.read_text()
    assert (head.folder / "out/optuna.journal").exists()  # the cluster's own place, which nobody typed

    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path
    for path in (path for path in head.folder.rglob("*") if path.is_file() and path.parent.name != ".ray"):
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in submitted + printed


@pytest.mark.slow
@pytest.mark.alone
def test_who_leaves_does_not_stop_it_and_who_stops_it_lets_it_end_cleanly(head: Head, tmp_path: Path) -> None:
    name = "search-leave"
    submit(head, name, "trap 'echo told to stop; sleep 4; echo ended cleanly; exit 130' TERM; echo began; "
           "sleep 600 & wait")  # fmt: skip
    following = head.laptop(tmp_path, "logs", "--address", head.url, name)
    assert following.stdout is not None and following.stdout.readline() == "began\n"
    following.send_signal(signal.SIGINT)
    printed = finish(following)
    assert following.returncode == 130
    assert f"job {name} goes on" in printed and f"{name} --stop" in printed
    assert head.jobs.job(name).status is JobStatus.RUNNING

    stopping = head.laptop(tmp_path, "logs", "--address", head.url, name, "--stop")
    printed = finish(stopping)
    assert stopping.returncode == 0, printed
    assert head.jobs.job(name).status is JobStatus.STOPPED
    assert searchs_own(head.jobs.log(name), has_ended=True) == "began\ntold to stop\nended cleanly\n"


@pytest.mark.slow
@pytest.mark.alone
def test_it_ends_with_the_searchs_exit_code(
    head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(head, "search-fails", "echo 'error: a line'; exit 2")
    monkeypatch.setattr(cluster_job, "POLL_S", 0.1)
    job = cluster_job.follow(head.jobs, "search-fails")
    assert exit_code(job) == 2
    assert capsys.readouterr().out == "error: a line\n"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("arguments", "more", "expected"),
    [
        (["--address", "{url}", "no-such-job"], {}, "error: the cluster must know the job"),
        (["--address", "{url}", "../x"], {}, "error: a job's name must be letters"),
        (["--address", "{url}"], {"HOME": "/nonexistent"}, "error: the cluster asks for a token, got none"),
        (["--address", "{url}"], {"RAY_AUTH_TOKEN": "f" * 32}, "error: the cluster must know the token"),
        (["--address", "http://127.0.0.1:1"], {}, "error: Ray's Jobs API must answer at http://127.0.0.1:1"),
        (["--cluster", "no.yaml"], {}, "error: --cluster must name a file of `ray up`"),
    ],
)
def test_a_mistake_is_one_line(
    head: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    more: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**head.environment, **more}.items():
        monkeypatch.setenv(name, value)
    assert logs.main([word.format(url=head.url) for word in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(expected) and printed.count("\n") == 1
    assert TOKEN not in printed and "f" * 32 not in printed


@pytest.mark.slow
@pytest.mark.alone
def test_a_search_without_the_clusters_token_ends_with_one_line(head: Head, tmp_path: Path) -> None:
    search = head.laptop(tmp_path, "search", *SEARCH, "--address", head.address, RAY_AUTH_MODE="disabled")
    printed = finish(search)
    assert search.returncode == 2
    assert printed.startswith(f"error: the Ray cluster at {head.address} must let this search in, got ")
    assert printed.endswith("set RAY_AUTH_MODE=token\n") and printed.count("\n") == 1
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_the_head_gets_the_options_without_the_laptops_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my/own.yaml").write_text("model: resnet20\n")
    typed = [
        "--cluster",
        "cluster/gpu.yaml",
        "--setting",
        "my/own.yaml",
        "--export=best.py",
        "--detach",
        "--trials",
        "3",
    ]
    arguments = argparse.Namespace(setting=["my/own.yaml"], address=None)
    request = build_request(arguments, typed)
    assert request.arguments == ["--setting", "my/own.yaml", "--trials", "3"]
    assert request.typed == [word for word in typed if word != "--detach"]
    assert request.settings == {"my/own.yaml": "model: resnet20\n"}
    assert json.loads(request.to_json())["job"] == request.job
    with pytest.raises(ValueError, match="--setting must be a file below this folder"):
        build_request(argparse.Namespace(setting=["../own.yaml"], address=None), ["--setting", "../own.yaml"])
    with pytest.raises(ValueError, match="must hold no password") as refused:
        build_request(arguments, [*typed, "--tracking-uri", "http://me:hush@host:5000"])
    assert "hush" not in str(refused.value)


def test_places_of_the_cluster_stand_where_none_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_ADAMSRT_OUTPUT", "s3://bucket/runs")
    monkeypatch.setenv("TUNE_ADAMSRT_DATA_ROOT", "/mnt/data")
    assert with_places(["--trials", "1"]) == [
        "--trials",
        "1",
        "--output",
        "s3://bucket/runs",
        "--data-root",
        "/mnt/data",
    ]
    assert with_places(["--output=x", "--data-root", "y"]) == ["--output=x", "--data-root", "y"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://host:8265/", "http://host:8265"),
        ("https://host", "https://host"),
        ("ray://host:10001", "http://host:8265"),
        ("ray://[::1]:10001", "http://[::1]:8265"),
        ("auto", None),
        ("host:6379", None),
    ],
)
def test_which_addresses_take_jobs(address: str, expected: str | None) -> None:
    assert jobs_url(address) == expected


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 130, 130),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.FAILED, 137, 1),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_exit_codes(status: JobStatus, code: int | None, expected: int) -> None:
    assert exit_code(Job("x", status, {}, code, "message", 0.0)) == expected


def packed(**files: str) -> str:
    """What `head_job pack` prints, with these files."""
    import base64

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return f"{PACK_BEGINS}\n{base64.b64encode(buffer.getvalue()).decode()}\n{PACK_ENDS}\n"


@pytest.mark.parametrize(
    "files",
    [
        {EXPORT: "import os\nos.system('touch executed')\nBEST_HYPER_PARAMETERS = {}\n"},
        {"../escaped": "x"},
        {"/tmp/escaped-from-a-tar-file": "x"},
    ],
    ids=["code", "a path upwards", "an absolute path"],
)
def test_what_comes_from_the_cluster_is_not_trusted(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster_job, "run_quietly", lambda *_, **__: (0, packed(**files)))
    at = Place(Jobs(lambda: "http://127.0.0.1:1", token=None), (), tmp_path / EXPORT, tmp_path / "runs")
    bring_results(at, Job("x", JobStatus.SUCCEEDED, {"may_replace": "yes"}, 0, "", 0.0))
    captured = capsys.readouterr()
    assert "warning: the results stay on the cluster" in captured.err
    assert list(tmp_path.iterdir()) == [] and not Path("/tmp/escaped-from-a-tar-file").exists()
    assert not (tmp_path.parent / "escaped").exists()


def test_a_reduced_run_replaces_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Entry("digits", "resnet20", "adamsrt", {"lr": 0.1})
    merge_entry(tmp_path / EXPORT, mine)
    merge_entry(tmp_path / "theirs.py", Entry("digits", "resnet20", "adamsrt", {"lr": 0.2}))
    text = (tmp_path / "theirs.py").read_text()
    monkeypatch.setattr(cluster_job, "run_quietly", lambda *_, **__: (0, packed(**{EXPORT: text})))
    at = Place(Jobs(lambda: "http://127.0.0.1:1", token=None), (), tmp_path / EXPORT, tmp_path / "runs")
    bring_results(at, Job("x", JobStatus.SUCCEEDED, {"may_replace": "no"}, 0, "", 0.0))
    assert parse((tmp_path / EXPORT).read_text()) == [mine]
    bring_results(at, Job("x", JobStatus.SUCCEEDED, {"may_replace": "yes"}, 0, "", 0.0))
    assert parse((tmp_path / EXPORT).read_text())[0].hyper_parameters == {"lr": 0.2}


def test_rays_own_lines_are_left_out() -> None:
    ray = "2026-01-02 03:04:05,678\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    entry = "Running entrypoint for job x: python -m y\n"
    assert searchs_own(ray + entry + "one\ntwo", has_ended=False) == "one\n"
    assert searchs_own(ray + "one\n" + entry + "two", has_ended=True) == "one\ntwo"
    assert searchs_own(ray + "Running entryp", has_ended=False) == ""


def test_a_log_without_a_tar_file_holds_none() -> None:
    assert unpack("Traceback\n") is None and unpack(f"{PACK_BEGINS}\nabc") is None


def test_why_a_head_is_not_reached() -> None:
    file = Path("cluster/gpu.yaml")
    assert "run `ray up cluster/gpu.yaml` first" in explain(
        "x\nRuntimeError: Head node of cluster (a) not found!\n", file
    )
    text = "noise\n\x1b[31mssh: connect to host 192.0.2.1 port 22: Connection refused\x1b[0m\nError: Command failed:\n"
    assert "\x1b" not in explain(text, file)
    assert explain("", file).startswith("the head of cluster/gpu.yaml must be reached by SSH, got: no answer in time")


def test_what_is_no_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1]\n")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    for name in ("list.yaml", "bad.yaml", "none.yaml"):
        with pytest.raises(ValueError, match="--cluster must name a file of `ray up`"):
            check_cluster_file(str(tmp_path / name))
    for path in (ROOT / "cluster").glob("*.yaml"):
        if path.stem in ("gpu", "gcp", "on-prem"):
            assert check_cluster_file(str(path)) == path


def test_where_the_token_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("home\n")
    assert read_token() == "home"
    (tmp_path / "file").write_text("path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert read_token() == "path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert read_token() == "variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert read_token() is None
