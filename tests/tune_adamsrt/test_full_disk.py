"""A full disk: the journal file stays readable; a search ends with the reason, or does without checkpoints."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from tune_adamsrt.journal import WholeLines
from tune_adamsrt.storage import open_storage

REPOSITORY = Path(__file__).parents[2]
SETTING = (
    "{model: resnet20, dataset: digits, epochs: 4, min_epochs: 2, trials: 2, cpus_per_trial: 1, gpus_per_trial: 0}"
)
OPTIONS = ["--setting", "resnet20-digits.yaml", "--limit-train-examples", "64", "--max-concurrent", "1"]
OPTIONS += ["--confirm-seeds", "0", "--no-report"]
# For the driver the disk is full some bytes into what follows the report of trial 0's second epoch.
FULL_AFTER_EPOCH_2 = """
import resource, sys
from pathlib import Path
from tune_adamsrt.search import main
from tune_adamsrt.study import Study

report = Study.report

def report_and_fill(study, number, epoch, *args, **others):
    report(study, number, epoch, *args, **others)
    if epoch.epoch == 2:
        size = Path("runs/optuna.journal").stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

Study.report = report_and_fill
sys.exit(main(sys.argv[1:]))
"""


def search(folder, *command):
    (folder / "resnet20-digits.yaml").write_text(SETTING)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "TUNE_"))}
    here = {"PYTHONPATH": str(REPOSITORY), "ADAMSRT_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(
        [*command, *OPTIONS], cwd=folder, env=inherited | here, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def limit_file_size():
    """Let no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_entry_that_does_not_fit_leaves_no_part_of_it(tmp_path, limit_file_size):
    path = tmp_path / "optuna.journal"
    backend = WholeLines(str(path))
    backend.append_logs([{"op_code": 1}, {"op_code": 2}])
    whole = path.read_bytes()
    limit_file_size(len(whole) + 5)
    with pytest.raises(OSError, match="too large"):
        backend.append_logs([{"op_code": 3}])
    limit_file_size(10**6)
    assert path.read_bytes() == whole
    backend.append_logs([{"op_code": 4}])
    assert [*WholeLines(str(path)).read_logs(0)] == [{"op_code": 1}, {"op_code": 2}, {"op_code": 4}]


@pytest.mark.parametrize("content", [b'{"entries": [', b"notes\nwithout an end"])
def test_a_file_that_is_no_journal_stays_as_it_is(content, tmp_path):
    path = tmp_path / "optuna.journal"
    path.write_bytes(content)
    WholeLines(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("cut", [b'{"op_code":0,', b"\xff" * 100_000, b""])
def test_what_a_killed_process_wrote_of_its_last_line_is_dropped(cut, tmp_path):
    path = tmp_path / "optuna.journal"
    study = optuna.create_study(study_name="s", storage=JournalStorage(WholeLines(str(path))))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    whole = path.read_bytes()
    path.write_bytes(whole + cut)
    again = optuna.load_study(study_name="s", storage=JournalStorage(WholeLines(str(path))))
    again.add_trial(optuna.trial.create_trial(value=2.0))
    assert path.read_bytes().startswith(whole)
    third = optuna.load_study(study_name="s", storage=JournalStorage(WholeLines(str(path))))
    assert [trial.value for trial in third.get_trials()] == [1.0, 2.0]


@pytest.mark.slow(seconds=80)
def test_a_disk_that_is_full_for_the_journal_ends_the_search_and_can_be_resumed(tmp_path):
    # The limit is on every file: the journal must be the longest, not a log of Ray's.
    (tmp_path / "runs").mkdir()
    storage = JournalStorage(WholeLines(str(tmp_path / "runs" / "optuna.journal")))
    optuna.create_study(study_name="filler", storage=storage).set_user_attr("filler", "x" * 4_000_000)
    full = search(tmp_path, sys.executable, "-c", FULL_AFTER_EPOCH_2, "--scheduler", "fifo", "--study", "full")
    assert full.returncode == 1, full.stdout + full.stderr
    assert "the study storage does not take the results" in full.stdout and "File too large" in full.stdout
    assert "Traceback" not in full.stdout + full.stderr
    recorded = (tmp_path / "runs" / "optuna.journal").read_text()
    assert "epoch:2" in recorded and [json.loads(line) for line in recorded.splitlines()]

    command = [sys.executable, "-m", "tune_adamsrt.search", "--scheduler", "fifo", "--study", "full"]
    resumed = search(tmp_path, *command)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "2 of 2: 2 complete" in resumed.stdout
    assert (tmp_path / "runs" / "optuna.journal").read_text().startswith(recorded)


@pytest.fixture
def own_mounts():
    """A command that may mount file systems that nobody else sees."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    tried = subprocess.run([*command, "mount -t tmpfs -o size=1m none /mnt"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("this machine lets nobody mount a small file system of their own")
    return command


@pytest.mark.slow(seconds=50)
def test_a_disk_that_is_full_for_checkpoints_costs_checkpoints_and_no_trial(tmp_path, own_mounts):
    (tmp_path / "small").mkdir()  # a checkpoint is larger
    mount_and_run = f'mount -t tmpfs -o size=1m none "{tmp_path}/small" && exec "$@"'
    command = [*own_mounts, mount_and_run, "sh", sys.executable, "-m", "tune_adamsrt.search"]
    command += ["--scheduler", "promotion", "--output", "small", "--study-storage", "optuna.journal"]
    done = search(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2: 1 complete, 1 stopped, 0 failed" in done.stdout
    [line] = [line for line in done.stdout.splitlines() if "a checkpoint could not be kept" in line]
    assert re.search(r"No space left on device", line)
    trials = optuna.load_study(study_name=None, storage=open_storage(str(tmp_path / "optuna.journal"))).get_trials()
    assert not any("checkpoint" in trial.user_attrs for trial in trials), "none is noted that is not there"
