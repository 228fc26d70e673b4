"""Searches that keep their checkpoints in a bucket: a local S3 server, gone over by pyarrow as any other."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
from killed_driver import epochs_to_repeat
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector, FileSystem

from tune_adamsrt.running import check_output
from tune_adamsrt.search import main
from tune_adamsrt.storage import open_storage

REPOSITORY = Path(__file__).parents[2]
SEARCH = [sys.executable, "-m", "tune_adamsrt.search"]
KILLED = [sys.executable, str(REPOSITORY / "tests" / "killed_driver.py"), "search"]
SETTING = (
    "{model: resnet20, dataset: digits, epochs: 6, min_epochs: 2, trials: 4, cpus_per_trial: 1, gpus_per_trial: 0}"
)
OPTIONS = ["--setting", "resnet20-digits.yaml", "--scheduler", "promotion", "--limit-train-examples", "64"]
OPTIONS += ["--confirm-seeds", "0", "--no-report"]
SECRET = "0123456789secret"


class Bucket:
    """A bucket of a server that can be away."""

    def __init__(self):
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()
        self.endpoint = f"127.0.0.1:{self._port}"
        urllib.request.urlopen(urllib.request.Request(f"http://{self.endpoint}/trials", method="PUT")).close()

    @property
    def uri(self):
        return f"s3://trials/mine?endpoint_override={self.endpoint}&scheme=http"

    def files(self):
        filesystem, _ = FileSystem.from_uri(self.uri)
        found = filesystem.get_file_info(FileSelector("trials", recursive=True))
        return [file.path for file in found if file.is_file]

    def go_away(self):
        self._server.stop()


@pytest.fixture
def bucket(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = Bucket()
    yield made
    made.go_away()


def start(folder, command, *options):
    (folder / "resnet20-digits.yaml").write_text(SETTING)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "TUNE_"))}
    here = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "ADAMSRT_CACHE_DIR": str(folder / "cache")}
    return subprocess.Popen(
        [*command, *OPTIONS, *options],
        cwd=folder, env=inherited | here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def trials_in(journal):
    storage = open_storage(str(journal))
    [study] = storage.get_all_studies()
    trials = optuna.load_study(study_name=study.study_name, storage=storage).get_trials()
    return [trial for trial in trials if trial.state.name != "WAITING"]


@pytest.mark.slow(seconds=90)
def test_a_killed_driver_goes_on_from_the_checkpoints_in_the_bucket(tmp_path, bucket):
    options = ["--trials", "4", "--output", bucket.uri]
    killed = start(tmp_path, [*KILLED, "report", "1", "2"], *options)  # a promoted trial has trained an epoch more
    output, _ = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, output
    journal = tmp_path / "runs" / "optuna.journal"
    again = epochs_to_repeat(journal, (2, 4))
    going_on = {trial.number for trial in trials_in(journal) if "checkpoint" in trial.user_attrs}
    assert going_on and all(re.search(r"/trial-\d+-\w+/checkpoint_", file) for file in bucket.files() if ".pt" in file)

    resumed = start(tmp_path, SEARCH, *options, "--resume")
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    trials = trials_in(journal)
    assert len(trials) == 4 and {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        repeated = trial.user_attrs.get("epochs_repeated", 0)
        assert repeated <= again.get(trial.number, 0), "it goes on from its checkpoint"
        assert trial.number not in going_on or repeated < 2
    assert [file for file in bucket.files() if "checkpoint_" in file] == []
    recorded = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in data for data in recorded) and SECRET not in output


@pytest.mark.slow(seconds=90)
def test_a_bucket_that_goes_away_costs_checkpoints_and_no_trial(tmp_path, bucket):
    process = start(tmp_path, SEARCH, "--trials", "2", "--output", bucket.uri)
    journal = tmp_path / "runs" / "optuna.journal"
    deadline = time.monotonic() + 240
    while not (journal.exists() and "epoch:1" in journal.read_text()):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    bucket.go_away()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "2 of 2: 1 complete, 1 stopped, 0 failed" in output
    [line] = [line for line in output.splitlines() if "a checkpoint could not be kept" in line]
    assert "connect" in line


def refused(output):
    with pytest.raises(ValueError, match="--output must") as error:
        check_output(output)
    [line] = str(error.value).splitlines()
    return line


def test_a_bucket_that_does_not_exist_is_one_line(bucket):
    assert "not found" in refused(bucket.uri.replace("trials", "others"))
    check_output(bucket.uri)


def test_an_endpoint_that_does_not_answer_is_one_line(bucket):
    bucket.go_away()
    started = time.monotonic()
    assert "connect" in refused(bucket.uri)
    assert time.monotonic() - started < 60


def test_a_search_is_refused_before_ray_starts(tmp_path, monkeypatch, capsys, bucket):
    monkeypatch.setattr("ray.init", lambda *args, **options: pytest.fail("ray.init was called"))
    monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["--setting", "resnet20-digits", "--output", bucket.uri.replace("trials", "others")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --output must be a folder or bucket that can be written, got s3://others/mine")


@pytest.mark.parametrize(
    "output",
    [
        f"s3://KEY:{SECRET}@trials/mine",
        f"s3://KEY:{SECRET[:4]}/{SECRET[4:]}@trials/mine",
        f"s3://{SECRET}@trials/mine",
        f"s3://trials/mine?scheme=http&secret_key={SECRET}",
        f"abfs://trials:{SECRET}@account.dfs.core.windows.net/mine",
        f"abfs://trials@account.dfs.core.windows.net/mine?sig={SECRET}",
        f"gs://trials?access_token={SECRET}",
    ],
)
def test_credentials_are_refused_and_not_shown(output):
    line = refused(output)
    assert "must hold no credentials" in line and "AWS_SECRET_ACCESS_KEY" in line
    assert SECRET not in line and SECRET[4:] not in line
