"""What happens to machines while a search runs: real clusters of several nodes, whose parts are killed."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import ray
from cloud_metadata import metadata_service
from killed_driver import epochs_to_repeat
from ray import tune

from benchmarks.ray_nodes import Nodes, alive, draining, kill_process, wait_until
from tune_adamsrt import running
from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.budget import Budget
from tune_adamsrt.checkpoints import CHECKPOINT_FAILURE, Checkpoints
from tune_adamsrt.cluster import lost_workers
from tune_adamsrt.plan import Plan, make_plans
from tune_adamsrt.records import TrialState
from tune_adamsrt.resources import TrialResources
from tune_adamsrt.storage import open_storage
from tune_adamsrt.study import Study

pytestmark = [pytest.mark.slow, pytest.mark.alone]

REPOSITORY = Path(__file__).parents[2]
SETTING = "{model: resnet20, dataset: digits, epochs: 8, min_epochs: 2, trials: 3, cpus_per_trial: 1}"
EPOCHS, CHECKPOINT_EVERY = 8, 3
# On a node with this, what Python says of the time is five hours late.
LATE_CLOCK = "import time\nreal = time.time\ntime.time = lambda: real() - 5 * 3600\n"


class FaultPlan(Plan):
    def place(self, resources: TrialResources) -> dict[str, Any]:
        every = tuple(range(CHECKPOINT_EVERY, EPOCHS, CHECKPOINT_EVERY))
        return super().place(resources) | {"checkpoint_epochs": every}


def make_plan(folder: Path, trials: int) -> Plan:
    (folder / "resnet20-digits.yaml").write_text(SETTING)
    options = ["--setting", str(folder / "resnet20-digits.yaml"), "--scheduler", "fifo", "--sampler", "random"]
    options += ["--trials", str(trials), "--limit-train-examples", "64", "--study", "faults", "--output", str(folder)]
    [plan] = make_plans(parse_arguments(options))
    return FaultPlan(**{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)})


class Script(Checkpoints):
    """What happens to the machines, in step with the search: on the driver's main thread, after a word is recorded."""

    def on_trial_result(self, *arguments: Any, **named: Any) -> None:
        super().on_trial_result(*arguments, **named)
        result = named["result"]
        self.epoch_ended(result["trial_number"], result["epoch"], result["pid"], result, named["trial"])

    def epoch_ended(self, number: int, epoch: int, pid: int, result: dict[str, Any], trial: Any) -> None:
        raise NotImplementedError

    def __reduce__(self) -> Any:  # Tune pickles its callbacks
        return tune.Callback, ()


def search(folder: Path, trials: int, script: type[Script], note: Callable[[str], None] = print) -> Study:
    """Run a search whose trials all train in full, and check what holds whatever happened."""
    plan = make_plan(folder, trials)
    storage = open_storage(str(folder / "optuna.journal"))
    storage.report_waits(note)
    study = Study(
        plan.study_name,
        storage=storage,
        space=plan.space,
        sampler=plan.sampler,
        seed=0,
        protocol=plan.protocol,
    )
    one_cpu = TrialResources(cpus=1.0, gpus=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "Checkpoints", script)
        budget = Budget(study, trials=trials)
        broken_off = running.run_trials(plan, study, budget, resources=one_cpu, max_concurrent=3, note=print)
    assert broken_off is None
    assert_is_whole(study, trials)
    return study


def assert_is_whole(study: Study, trials: int) -> None:
    records = list(study.trials.values())
    assert [(record.number, record.state) for record in records] == [(n, TrialState.COMPLETE) for n in range(trials)]
    for record in records:
        assert [report.epoch for report in record.epochs] == list(range(1, EPOCHS + 1))
    assert study.epochs_spent == sum(EPOCHS + record.epochs_repeated for record in records)
    assert {trial.state.name for trial in study._optuna.get_trials()} == {"COMPLETE"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
            patch.delenv(name, raising=False)
        patch.setenv("ADAMSRT_CACHE_DIR", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Nodes(workers=2)
        ray.init(address=made.address, log_to_driver=False, logging_level="CRITICAL")
        yield made
        made.shut_down()


@pytest.fixture(scope="module")
def losses(nodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    (folder / "sitecustomize.py").write_text(LATE_CLOCK)
    seen = SimpleNamespace(worker_of=None, node_of=None, idle=None, new_node=None, epochs_there=[])

    class Losses(Script):
        def epoch_ended(self, number, epoch, pid, result, trial):
            node = nodes.of_process(pid)
            if epoch == 5 and seen.worker_of is None:
                seen.worker_of = number
                kill_process(pid)
            elif epoch == 5 and seen.node_of is None and node is not None and number != seen.worker_of:
                seen.node_of = number
                nodes.kill(node)
                seen.new_node = nodes.add(PYTHONPATH=f"{folder}:{REPOSITORY}")
            elif seen.new_node is not None and node is seen.new_node:
                seen.epochs_there.append((number, epoch, time.time() - result["timestamp"]))
            elif seen.new_node is not None and not seen.epochs_there:
                time.sleep(1.0)  # a worker takes seconds to start there, and nothing must end before

        def on_trial_complete(self, *arguments, **named):
            super().on_trial_complete(*arguments, **named)
            pid = named["trial"].last_result["pid"]
            if seen.idle is None and nodes.of_process(pid) is not seen.new_node:
                seen.idle = pid
                kill_process(pid)

    return SimpleNamespace(study=search(folder, 5, Losses), **vars(seen))


class TestLosses:
    """A worker, a node and an idle worker are killed without a word; a node joins, whose clock is hours late."""

    def test_cost_the_epochs_since_the_last_checkpoint_and_no_trial(self, losses):
        repeated = {number: record.epochs_repeated for number, record in losses.study.trials.items()}
        assert repeated.pop(losses.worker_of) == 5 - CHECKPOINT_EVERY
        assert repeated.pop(losses.node_of) == 5 - CHECKPOINT_EVERY
        assert set(repeated.values()) == {0}

    def test_are_made_up_for_by_a_node_that_joins(self, losses):
        assert losses.epochs_there

    def test_of_clocks_that_agree_change_nothing(self, losses):
        """Times are told by the driver alone."""
        assert all(late > 4 * 3600 for _, _, late in losses.epochs_there), "the clock there is late"
        for record in losses.study.trials.values():
            times = [record.started_at, *(report.reported_at for report in record.epochs), record.ended_at]
            assert times == sorted(times) and times[-1] - times[0] < 3600
            assert all(0 < report.seconds < 60 for report in record.epochs)


@pytest.fixture
def metadata():
    with metadata_service() as service:
        yield service


def move_away(folder: Path) -> Path:
    """Move a folder, and let nobody make a new one in its place."""
    away = folder.rename(folder.with_name("away"))
    folder.write_text("in the way")
    return away


def bring_back(folder: Path) -> Path:
    folder.unlink()
    return folder.with_name("away").rename(folder)


def test_a_spot_notice_and_a_storage_that_is_away_for_a_while_cost_nothing(nodes, metadata, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "MAX_LOST_WORKERS", 0)  # not one retry
    monkeypatch.setattr(lost_workers, "MAX_LOST_WORKERS", 0)
    shared = tmp_path / "shared"
    shared.mkdir()
    cache = shared / "tune-cache"
    notes, waits = [], []
    seen = SimpleNamespace(went=None, came=None, left=None, watcher=None, drained=None, moved_to=[], failures=set())
    seen.all_went = None

    class Notice(Script):
        def epoch_ended(self, number, epoch, pid, result, trial):
            seen.failures.add(trial.run_metadata.num_failures)
            node = nodes.of_process(pid)
            if not seen.went and epoch == 2:
                seen.went = move_away(cache)
            elif seen.went and not seen.came and CHECKPOINT_FAILURE in result:
                notes.append(result[CHECKPOINT_FAILURE])
                seen.came = bring_back(cache)
            elif seen.came and not seen.all_went:  # the study's journal as well, for which this thread waits
                seen.all_went = move_away(shared)
                threading.Timer(1.0, bring_back, [shared]).start()
            elif seen.came and seen.left is None and node is not None and epoch in (4, 5, 6):
                seen.left, seen.drained = number, node.node_id
                metadata.take_away(seconds=120)
                command = [sys.executable, "-m", "tune_adamsrt.spot", "--metadata", metadata.url]
                command += ["--address", nodes.address, "--node-id", node.node_id]
                seen.watcher = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert node.node_id in draining()
            elif number == seen.left:
                seen.moved_to.append(node.node_id if node else "head")

    study = search(shared, 3, Notice, waits.append)
    away, back = (line for line in waits if "optuna.journal" in line)
    assert "is away (Not a directory); waiting up to 120 s for it" in away and "is back after" in back
    assert seen.watcher.returncode == 0 and "taken away in 1" in seen.watcher.stdout
    assert {record.epochs_repeated for record in study.trials.values()} == {0}
    assert seen.failures == {0}
    # it trained one epoch more there, kept a checkpoint, and left; the node ended when nothing was left on it
    assert seen.moved_to[0] == seen.drained and seen.drained not in seen.moved_to[1:] and len(seen.moved_to) > 1
    wait_until(lambda: not alive(seen.drained))
    assert notes


def test_a_killed_driver_goes_on_with_workers_on_several_nodes(nodes, tmp_path):
    (tmp_path / "resnet20-digits.yaml").write_text(SETTING)
    options = ["--address", nodes.address, "--setting", "resnet20-digits.yaml", "--trials", "4", "--study", "driver"]
    options += ["--scheduler", "promotion", "--epochs", "6", "--limit-train-examples", "64", "--max-concurrent", "3"]
    options += ["--confirm-seeds", "0", "--no-report"]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TUNE_"))}
        environment["PYTHONPATH"] = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
        everything = [sys.executable, *command, *options]
        return subprocess.run(everything, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    # one trial, promoted at the rung, has trained an epoch more
    killed = run(str(REPOSITORY / "tests" / "killed_driver.py"), "search", "report", "1", "2")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    journal = tmp_path / "runs" / "optuna.journal"
    allowed = epochs_to_repeat(journal, (2, 4))
    assert allowed
    resumed = run("-m", "tune_adamsrt.search", "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    found = optuna.load_study(study_name="driver", storage=open_storage(str(journal))).get_trials()
    trials = [trial for trial in found if trial.state.name != "WAITING"]  # published points that nobody asked for
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"} and len(trials) == 4
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        assert trial.user_attrs.get("epochs_repeated", 0) <= allowed.get(trial.number, 0)
    assert "raylet" not in resumed.stdout + resumed.stderr
