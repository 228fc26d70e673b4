"""The search end to end: real Ray, Optuna, MLflow (SQLite) and images, as a user starts it."""

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import optuna
import pytest
from search_process import REPOSITORY, SEARCH, environment, search

from tune_adamsrt.search import main
from tune_adamsrt.storage import open_storage


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One search with two trials side by side, shared by the tests that look at what it left."""
    folder = tmp_path_factory.mktemp("search")
    done = search(folder, "--setting", "resnet20-digits", "--trials", "6", "--epochs", "3", "--study", "first")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


@pytest.mark.slow(seconds=30)
class TestASearch:
    def test_tells_optuna_how_every_trial_ended(self, finished):
        folder, _ = finished
        study = optuna.load_study(study_name="first", storage=open_storage(str(folder / "runs" / "optuna.journal")))
        trials = study.get_trials()
        assert len(trials) == 6
        names = {trial.state.name for trial in trials}
        assert names <= {"COMPLETE", "PRUNED"} and "COMPLETE" in names
        for trial in trials:
            epochs = sorted(trial.intermediate_values)
            assert epochs == list(range(1, len(epochs) + 1))
            if trial.state.name == "COMPLETE":
                assert epochs == [1, 2, 3]
                assert trial.value == max(trial.intermediate_values.values())  # selection: best

    def test_exports_the_best_candidate(self, finished):
        folder, _ = finished
        study = optuna.load_study(study_name="first", storage=open_storage(str(folder / "runs" / "optuna.journal")))
        best = max((t for t in study.get_trials() if t.state.name == "COMPLETE"), key=lambda t: (t.value, -t.number))
        exported = runpy.run_path(str(folder / "best_hyper_parameters.py"))["BEST_HYPER_PARAMETERS"]
        entry = exported["digits"]["resnet20"]["adamsrt"]
        complete = [t for t in study.get_trials() if t.state.name == "COMPLETE" and t.value == best.value]
        assert entry["lr"] in [t.params["lr"] for t in complete]
        assert set(entry) == {"lr", "betas", "weight_decay"}

    def test_writes_mlflow(self, finished):
        from mlflow import MlflowClient

        folder, _ = finished
        client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
        experiment = client.get_experiment_by_name("resnet20-digits")
        runs = client.search_runs([experiment.experiment_id])
        [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert parent.info.run_name == "resnet20-digits/adamsrt"
        assert parent.info.status == "FINISHED"
        assert len(children) == 6
        assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}
        for run in children:
            assert "lr" in run.data.params
            history = client.get_metric_history(run.info.run_id, "valid_accuracy")
            assert [point.step for point in history] == list(range(1, len(history) + 1))
        artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
        assert "best_hyper_parameters.py" in artifacts

    def test_prints_plain_lines_and_nothing_of_others(self, finished):
        _, done = finished
        assert done.stderr == ""
        assert "\x1b" not in done.stdout
        lines = done.stdout.splitlines()
        assert lines[0].startswith("resnet20-digits/adamsrt")
        assert sum(line.startswith("trial ") and "/6 trials" in line for line in lines) == 6
        assert any(line.startswith("best values") for line in lines)
        assert any("mlflow ui" in line for line in lines)
        for noise in ("ray.tune", "View detailed results", "alembic", "Warning", "INFO", "╭"):
            assert noise not in done.stdout

    def test_leaves_nothing_but_the_record(self, finished):
        folder, _ = finished
        left = {path.name for path in (folder / "runs").rglob("*") if not path.name.endswith(".lock")}
        assert left == {"optuna.journal", "tune-cache", "undelivered"}  # folders, these two, and empty

    def test_another_search_keeps_what_is_exported(self, finished):
        folder, _ = finished
        before = runpy.run_path(str(folder / "best_hyper_parameters.py"))["BEST_HYPER_PARAMETERS"]
        more = search(
            folder, "--setting", "resnet20-digits", "--optimizer", "sgd", "--trials", "1", "--epochs", "1",
            "--limit-train-examples", "200", "--scheduler", "fifo", "--output", f"file://{folder}/bucket",
        )  # fmt: skip
        assert more.returncode == 0, more.stdout + more.stderr
        after = runpy.run_path(str(folder / "best_hyper_parameters.py"))["BEST_HYPER_PARAMETERS"]
        assert set(after["digits"]["resnet20"]) == {"adamsrt", "sgd"}
        assert after["digits"]["resnet20"]["adamsrt"] == before["digits"]["resnet20"]["adamsrt"]
        assert (folder / "bucket").is_dir(), "Tune's files go to any URI that pyarrow knows"
        assert "200 training examples only" in (folder / "best_hyper_parameters.py").read_text()


@pytest.mark.slow(seconds=70)
def test_two_searches_with_one_seed_are_the_same(tmp_path):
    """One trial at a time, CPU: same trials, same values, byte-identical exported entry. Here with promotion."""
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        done = search(
            folder, "--setting", "resnet20-digits", "--study", "same", "--trials", "7", "--epochs", "6", "--seed", "3",
            "--limit-train-examples", "64", "--max-concurrent", "1", "--scheduler", "promotion",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        counts = re.search(r"7 of 7: (\d) complete, (\d) stopped, 0 failed", done.stdout)
        assert counts is not None, done.stdout
        complete, stopped = int(counts[1]), int(counts[2])
        assert complete >= 3 and stopped >= 1
        # the rung is epoch 4; promoted trials went on from their checkpoints, and no epoch was trained twice
        assert f"{6 * complete + 4 * stopped} of at most 42" in done.stdout
        study = optuna.load_study(study_name="same", storage=open_storage(str(folder / "runs" / "optuna.journal")))
        trials = [(t.state, t.params, t.intermediate_values) for t in study.get_trials()]
        lines = (folder / "best_hyper_parameters.py").read_text().splitlines()
        found.append((trials, [line for line in lines if not line.lstrip().startswith("#")]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 7


def refused(capsys, *options):
    """Give the one line on stderr for options that a user got wrong."""
    try:
        code = main(list(options))
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def no_ray(monkeypatch, tmp_path):
    """No Ray process may start."""

    def fail(*args, **kwargs):
        raise AssertionError("ray.init was called")

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_ray")
class TestMistakes:
    def test_missing_data_ends_before_ray_starts(self, capsys, monkeypatch):
        import urllib.error
        import urllib.request

        def unreachable(*args, **kwargs):
            raise urllib.error.URLError("no network")

        monkeypatch.setattr(urllib.request, "urlopen", unreachable)
        line = refused(capsys, "--setting", "resnet18-cifar100", "--data-root", "nowhere")
        assert line.startswith("error: cifar100 ")
        assert "nowhere" in line and "cifar-100-python" in line and "train*.parquet" in line
        assert not Path("nowhere").exists() and not Path("runs").exists() and not Path("mlflow.db").exists()

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("--setting resnet18-cifar1000", "did you mean 'resnet18-cifar100'?"),
            ("--setting resnet20-digits --optimizer adamrst", "did you mean 'adamsrt'?"),
            ("--setting resnet20-digits --sampler tpee", "did you mean 'tpe'?"),
            ("--setting resnet20-digits --sampler gp", "must run with --scheduler fifo, got asha"),
            ("--setting resnet20-digits --trials 0", "must be a whole number >= 1, got 0"),
            ("--setting resnet20-digits --epochs -3", "must be a whole number >= 1, got -3"),
            ("--setting resnet20-digits --time-budget soon", "must be a time such as 90, 30m, 2h or 1d, got soon"),
            ("--setting resnet20-digits --export no/where.py", "no/where.py"),
            ("--setting resnet20-digits --tracking-uri ftp://x", "ftp"),
            ("--setting resnet20-digits --output /proc/nowhere", "--output must be a folder or bucket"),
            ("--setting resnet20-digits --output nothing://x", "--output must be a folder or bucket"),
            ("--setting resnet20-digits --optimizer all --study s", "--study must name the study of one search"),
            ("--setting resnet20-digits --data-root s3://me:secret@images", "--data-root must hold no credentials"),
            ("--setting resnet18-svhn --data-root file:///no/such", "svhn was not found: no train_32x32.mat with"),
            ("--setting resnet20-digits --study ../other", "--study must be letters, digits"),
            ("--dry-run", "--setting is needed"),
        ],
    )
    def test_is_one_clear_line(self, options, expected, capsys):
        assert expected in refused(capsys, *options.split())


@pytest.mark.usefixtures("no_ray")
def test_dry_run_says_what_would_run(capsys):
    assert main(["--setting", "resnet18-cifar100", "--trials", "10", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "4050 epochs in total (10 trials x 405 epochs)" in printed
    assert "after epoch 15, 30, 60, 120, 225 the best 1/2 go on, the others stop" in printed
    assert "log-uniform in [0.0001, 0.03]" in printed


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    shell = f"{shlex.join(SEARCH)} --setting resnet20-digits --optimizer all --dry-run 2>&1 | (read line; echo $line)"
    done = subprocess.run(shell, shell=True, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.stdout == "resnet20-digits/adams\n"


@pytest.mark.usefixtures("no_ray")
def test_list_settings_lists_every_shipped_file(capsys):
    assert main(["--list-settings"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert listed == {path.stem for path in (REPOSITORY / "search_spaces").glob("[!_]*.yaml")}
    assert "resnet20-digits" in listed and "resnet18-imagenet" in listed
