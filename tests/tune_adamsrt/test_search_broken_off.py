"""A search that ends before its time: by Ctrl-C, without its storage, or where no trial can start."""

import re
import signal
import subprocess
import sys

import optuna
import pytest
from search_process import environment, search, start_search, wait_for

from tune_adamsrt.storage import open_storage


@pytest.mark.slow(seconds=90)
def test_ctrl_c_ends_it_cleanly_and_says_how_to_go_on(tmp_path):
    process = start_search(tmp_path, "--setting", "resnet20-digits", "--study", "cut", "--scheduler", "fifo")
    journal = tmp_path / "runs" / "optuna.journal"
    wait_for(journal, "epoch:2", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "interrupted" in output
    assert "--setting resnet20-digits --optimizer adamsrt --study cut" in output and "--scheduler fifo" in output
    study = optuna.load_study(study_name="cut", storage=open_storage(str(journal)))
    assert study.get_trials()[0].intermediate_values


@pytest.mark.slow(seconds=50)
def test_a_search_whose_model_cannot_be_built_ends_soon_with_the_reason(tmp_path):
    code = (
        "import sys, tune_adamsrt.plan as plan, tune_adamsrt.search as search;"
        "protocol = plan.Plan.protocol.fget;"
        "plan.Plan.protocol = property(lambda self: protocol(self) | {'model': 'resnet1'});"
        "sys.exit(search.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--setting", "resnet20-digits", "--trials", "20", "--confirm-seeds", "0"],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    reason = r"all of the first \d trials failed; trial 0: UnknownNameError: unknown model 'resnet1'"
    assert re.search(reason, done.stdout), done.stdout
    assert "none: no trial reached the full budget" in done.stdout


@pytest.mark.slow(seconds=60)
def test_a_storage_lost_while_running_ends_the_search_and_can_be_resumed(tmp_path):
    options = ["--setting", "resnet20-digits", "--trials", "2", "--epochs", "4", "--scheduler", "fifo"]
    process = start_search(tmp_path, *options)
    journal = tmp_path / "runs" / "optuna.journal"
    wait_for(journal, "epoch:1", process)
    journal.rename(tmp_path / "kept")
    journal.mkdir()  # nobody may write a file there now, not even root
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert "the study storage does not take the results" in output
    assert "to go on" in output
    journal.rmdir()
    (tmp_path / "kept").rename(journal)
    resumed = search(tmp_path, *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "2 of 2: 2 complete" in resumed.stdout
