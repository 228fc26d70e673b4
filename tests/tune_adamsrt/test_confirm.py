"""Confirmation end to end: real Ray, Optuna, MLflow and images, a killed driver, and the test set that nobody sees."""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_data import write_tiny_datasets

from adamsrt.dataloaders import get_dataloader_cifar10
from tune_adamsrt.candidates import fresh_seeds
from tune_adamsrt.records import TrialState
from tune_adamsrt.search import main
from tune_adamsrt.storage import open_storage
from tune_adamsrt.studies import load_confirmation, load_search

REPOSITORY = Path(__file__).parents[2]
SETTING = """
model: resnet20
dataset: cifar10
epochs: 4
trials: 4
batch_size: 10
valid_split: 0.4
min_epochs: 1
cpus_per_trial: 1
gpus_per_trial: 0
"""
STUDY = "resnet20-cifar10-adamsrt-1"
OPTIONS = f"--setting resnet20-cifar10.yaml --study {STUDY} --confirm-seeds 2 --confirm-candidates 2 --max-concurrent 1"
NAME = "resnet20-cifar10-adamsrt"

# The driver, with a count of how often the test set is read, and by how many weights. What is defined here travels to
# the worker by value.
DRIVER = """
import sys
import tune_adamsrt.confirm as confirm
import tune_adamsrt.search as search

original = confirm.measure_test_accuracies

def counted(config, files, count_file=sys.argv[1]):
    with open(count_file, "a") as file:
        print(len(files), file=file)
    return original(config, files)

confirm.measure_test_accuracies = counted
sys.exit(search.main(sys.argv[2:]))
"""


def environment(folder):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "TUNE_"))}
    return inherited | {
        "PYTHONPATH": str(REPOSITORY),
        "ADAMSRT_CACHE_DIR": str(folder / "cache"),
        "COLUMNS": "100",
        "RAY_raylet_start_wait_time_s": "300",  # on a machine that is busy with other tests
    }


def make_folder(folder, *, shift_test_labels=0):
    """A folder with a setting of its own and images; the test labels can be moved on to other classes."""
    folder.mkdir()
    write_tiny_datasets(folder / "data", train=60, test=60)
    (folder / "resnet20-cifar10.yaml").write_text(SETTING)
    path = folder / "data" / "cifar10" / "test.parquet"
    table = pq.read_table(path)
    labels = [(label + shift_test_labels) % 10 for label in table["label"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", [labels]), path)
    return folder


def start(folder, *options):
    command = [sys.executable, "-c", DRIVER, str(folder / "tests.txt"), *shlex.split(OPTIONS), *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def read(folder):
    """The search, its confirmation and what came of it, from the study storage."""
    storage = open_storage(str(folder / "runs" / "optuna.journal"))
    return (
        load_search(storage, STUDY),
        load_search(storage, f"{STUDY}.2-seeds.confirm"),
        load_confirmation(storage, STUDY),
    )


def numbers(trial):
    """What a trial's numbers are, without what the clock and the host decide."""
    clock = {"seconds", "train_images_per_second", "reported_at"}
    epochs = [{name: value for name, value in vars(report).items() if name not in clock} for report in trial.epochs]
    return trial.number, trial.hyper_parameters, trial.seed, trial.origin, trial.state, trial.confirms, epochs


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A search whose driver was killed while it confirmed, and that was then resumed."""
    folder = make_folder(tmp_path_factory.mktemp("confirm") / "killed")
    process = start(folder)
    journal = folder / "runs" / "optuna.journal"
    deadline = time.monotonic() + 400
    while True:  # until the second confirm run is being trained
        with contextlib.suppress(Exception):
            runs = read(folder)[1].trials
            if len(runs) >= 2 and runs[1].epochs:
                break
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = journal.read_text()
    assert not (folder / "best_hyper_parameters.py").exists(), "nothing is exported before it is confirmed"
    assert not (folder / "tests.txt").exists(), "and nothing is tested"
    resume = [word for word in shlex.split(OPTIONS) if word not in ("--study", STUDY)]
    command = [sys.executable, "-c", DRIVER, str(folder / "tests.txt"), *resume, "--resume"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert journal.read_text().startswith(before)
    return folder, done.stdout


@pytest.fixture(scope="module")
def other_labels(tmp_path_factory):
    """The same search, never killed, on data whose test labels are others."""
    folder = make_folder(tmp_path_factory.mktemp("confirm") / "other", shift_test_labels=1)
    return folder, finish(start(folder))


@pytest.mark.slow(seconds=20)
class TestAKilledAndResumedConfirmation:
    def test_trains_every_candidate_on_every_seed_once(self, killed):
        search, confirmation, _ = read(killed[0])
        runs = confirmation.trials
        assert [run.state for run in runs] == [TrialState.COMPLETE] * 4
        assert sorted(run.seed for run in runs) == sorted(2 * fresh_seeds(0, 2))
        assert len({(run.confirms, run.seed) for run in runs}) == 4
        for run in runs:
            assert [report.epoch for report in run.epochs] == [1, 2, 3, 4], "no early stopping"
            assert run.hyper_parameters == search.trials[run.confirms].hyper_parameters
        assert not {run.seed for run in runs} & {trial.seed for trial in search.trials}

    def test_reads_the_test_set_once_for_the_chosen_candidate(self, killed):
        assert (killed[0] / "tests.txt").read_text() == "2\n", "one reading, two weights"
        _, confirmation, result = read(killed[0])
        assert set(confirmation.test_accuracies) == {result.candidate.number}
        assert len(result.test_accuracies) == 2

    def test_keeps_the_weights_of_the_chosen_candidate_only(self, killed):
        _, _, result = read(killed[0])
        left = {path.name for path in (killed[0] / "runs" / "weights" / f"{STUDY}.2-seeds.confirm").iterdir()}
        assert left == {f"trial-{run.number}.pt" for run in result.chosen_runs}

    def test_says_what_it_came_to(self, killed):
        folder, printed = killed
        _, _, result = read(folder)
        number = result.candidate.number
        assert re.search(rf"confirmed +\S+ % \+- \S+ \(2 fresh seeds, trial {number}\)", printed)
        assert re.search(r"test accuracy +\S+ % \+- \S+\n", printed)
        assert f"plus {result.epochs_spent} to confirm" in printed
        assert "resumed: 1 of 4 runs ended before" in printed
        assert "models:/resnet20-cifar10-adamsrt/1" in printed

    def test_exports_the_confirmed_configuration_with_its_provenance(self, killed):
        folder, _ = killed
        search, _, result = read(folder)
        exported = runpy.run_path(str(folder / "best_hyper_parameters.py"))["BEST_HYPER_PARAMETERS"]
        assert exported["cifar10"]["resnet20"]["adamsrt"] == result.candidate.hyper_parameters
        comments = " ".join(re.findall(r"^ *# (.*)", (folder / "best_hyper_parameters.py").read_text(), re.MULTILINE))
        valid, test = result.valid_accuracy, result.test_accuracy
        assert f"validation accuracy {100 * valid.mean:.2f} % +- {100 * valid.std:.2f}, " in comments
        assert f"test accuracy {100 * test.mean:.2f} % +- {100 * test.std:.2f} " in comments
        spent = sum(trial.epochs_spent for trial in search.trials)
        assert f"in 4 trials, {spent} epochs spent and {result.epochs_spent} to confirm" in comments
        assert f"study {STUDY}, trial {result.candidate.number}, MLflow run " in comments
        assert f"seeds {result.seeds[0]}, {result.seeds[1]};" in comments
        for line in (folder / "best_hyper_parameters.py").read_text().splitlines():
            assert len(line) <= 120

    def test_is_reproduced_by_the_example_script(self, killed):
        """The command in the comments gives the first confirmed run's numbers, every digit of every epoch."""
        folder, _ = killed
        _, _, result = read(folder)
        text = (folder / "best_hyper_parameters.py").read_text()
        typed = re.search(r"# (python training_example\.py(?:.*\\\n)*.*)", text)[1]
        words = shlex.split(re.sub(r"\\\n *# ", " ", typed))
        shutil.copy(REPOSITORY / "training_example.py", folder)
        done = subprocess.run(
            [sys.executable, *words[1:], "--device=cpu", "--json=epochs.jsonl"],
            cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        *epochs, test = map(json.loads, (folder / "epochs.jsonl").read_text().splitlines())
        run = result.chosen_runs[0]
        assert f"seed {run.seed}" in done.stdout
        for report, again in zip(run.epochs, epochs, strict=True):
            same = {"train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr", "weight_norm", "grad_norm"}
            assert {name: getattr(report, name) for name in same} == {name: again[name] for name in same}
        assert test["test_accuracy"] == result.test_accuracies[0]

    def test_leaves_a_model_in_mlflow_with_the_same_test_accuracy(self, killed, monkeypatch):
        import mlflow

        folder, _ = killed
        _, _, result = read(folder)
        before = mlflow.get_tracking_uri()
        monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(folder / "cache"))
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        try:
            model = mlflow.pytorch.load_model(f"models:/{NAME}@best")
            version = mlflow.MlflowClient().get_model_version_by_alias(NAME, "best")
        finally:
            mlflow.set_tracking_uri(before)
        _, _, test = get_dataloader_cifar10(dataset_root_path=folder / "data")
        with torch.inference_mode():
            hits = sum(int((model(images).argmax(dim=1) == labels).sum()) for images, labels in test)
        expected = result.test_accuracies[result.chosen_runs.index(result.best_run)]
        assert hits / test.num_examples == expected == float(version.tags["test_accuracy"])
        assert version.tags["seed"] == str(result.best_run.seed)
        assert version.tags["is_reduced"] == "false"

    def test_its_runs_are_in_mlflow_beside_the_searches(self, killed):
        from mlflow import MlflowClient

        folder, _ = killed
        _, _, result = read(folder)
        client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("resnet20-cifar10").experiment_id])
        [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        roles = sorted(run.data.tags.get("role", "search") for run in children)
        assert roles == ["confirmation"] * 4 + ["search"] * 4
        for run in children:
            if run.data.tags.get("role") == "confirmation":
                history = client.get_metric_history(run.info.run_id, "valid_accuracy")
                assert sorted(point.step for point in history) == [1, 2, 3, 4], "none doubled"
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["confirmed_trial"] == str(result.candidate.number)
        assert parent.data.metrics["test_accuracy_mean"] == pytest.approx(result.test_accuracy.mean)
        assert parent.data.metrics["confirmed_valid_accuracy_std"] == pytest.approx(result.valid_accuracy.std)
        assert parent.outputs.model_outputs, "the model stands with the run"


@pytest.mark.slow(seconds=110)
def test_nothing_but_the_reported_test_accuracy_depends_on_the_test_labels(killed, other_labels):
    """Other test labels, and no kill: the same trials, candidates, choice and export, and another test accuracy."""
    (first, _), (second, _) = killed, other_labels
    searches = [read(folder) for folder in (first, second)]
    for stage in (0, 1):
        ours, theirs = (sorted(map(numbers, found[stage].trials), key=lambda of: of[0]) for found in searches)
        assert ours == theirs
    results = [found[2] for found in searches]
    assert results[0].candidate.number == results[1].candidate.number
    assert results[0].valid_accuracy == results[1].valid_accuracy
    assert results[0].test_accuracies != results[1].test_accuracies, "the labels are others"
    texts = []
    for folder in (first, second):
        text = (folder / "best_hyper_parameters.py").read_text()
        text = re.sub(r"MLflow run \w+|test accuracy \S+ % \+- \S+|and \d+ to confirm", "", text)
        texts.append(text)
    assert texts[0] == texts[1]


@pytest.mark.slow(seconds=60)
def test_where_all_confirm_runs_fail_nothing_is_exported(tmp_path):
    """No run can keep its weights here: a file lies where their folder belongs."""
    folder = make_folder(tmp_path / "failing")
    (folder / "runs").mkdir()
    (folder / "runs" / "weights").write_text("in the way")
    options = ["--trials", "1", "--epochs", "1", "--confirm-seeds", "1", "--confirm-candidates", "1"]
    output = finish(start(folder, *options), code=1)
    assert "not exported" in output
    assert re.search(r"nothing was confirmed: 1 of 1 runs failed; trial 0, seed 1 of 1: \w+Error", output)
    assert not (folder / "best_hyper_parameters.py").exists()
    assert not (folder / "tests.txt").exists()


@pytest.fixture
def no_ray(monkeypatch, tmp_path):
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: pytest.fail("ray.init was called"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_ray")
class TestOptions:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("--trials 10", "the best 3 again on 3 fresh seeds, 90 epochs more; then one test"),
            ("--trials 2 --confirm-seeds 5", "the best 2 again on 5 fresh seeds, 100 epochs more"),
            ("--confirm-candidates 1 --confirm-seeds 1", "the best again on 1 fresh seed, 10 epochs more"),
            ("--confirm-seeds 0", None),
        ],
    )
    def test_dry_run_says_what_confirming_costs(self, options, expected, capsys):
        assert main(["--setting", "resnet20-digits", "--dry-run", *options.split()]) == 0
        printed = capsys.readouterr().out
        assert (expected in printed) if expected else ("confirmation" not in printed)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("--confirm-seeds -1", "must be a whole number >= 0, got -1"),
            ("--confirm-candidates 0", "must be a whole number >= 1, got 0"),
            ("--study a.3-seeds.confirm", "--study must name a search, got a.3-seeds.confirm"),
        ],
    )
    def test_mistakes_are_one_line(self, options, expected, capsys):
        try:
            code = main(["--setting", "resnet20-digits", *options.split()])
        except SystemExit as error:  # argparse
            code = error.code
        [line] = capsys.readouterr().err.splitlines()
        assert code == 2 and expected in line
