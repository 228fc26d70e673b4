"""With PostgreSQL: an `mlflow server` before it takes a search over HTTP, and it holds an Optuna study."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgresql
import pytest
from mlflow_servers import MLFLOW, serving
from optuna.storages import RDBStorage
from search_records import make_info, make_report
from tracked_search import assert_holds_the_search, run_search, runs_of

from tune_adamsrt import sync
from tune_adamsrt.records import TrialState
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import open_storage
from tune_adamsrt.studies import load_search
from tune_adamsrt.study import Study
from tune_adamsrt.tracking import Tracking

REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(postgresql.reason_to_skip()), reason=postgresql.reason_to_skip()),
    pytest.mark.usefixtures("own_environment"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql.postgresql() as url:
        yield url


@pytest.fixture(scope="module")
def mlflow_url(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    database = postgresql.create_database(server, "mlflow")
    with serving([MLFLOW, "server", "--backend-store-uri", database], folder) as url:
        yield url


def ask(url: str, call: str, **body: Any) -> Any:
    """MLflow's REST API, without MLflow's client."""
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/{call}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_a_search_is_in_postgresql_behind_an_mlflow_server(
    mlflow_url: str, warnings_told: list[str], tmp_path: Path
) -> None:
    exported = tmp_path / "best_hyper_parameters.py"
    exported.write_text("BEST_HYPER_PARAMETERS = {}\n")
    tracking = Tracking(mlflow_url, on_warning=warnings_told.append, flush_interval_s=0.01)
    run_search(tracking)
    tracking.add_artifact(exported)
    assert tracking.close(60.0)
    assert warnings_told == []
    assert_holds_the_search(mlflow_url, "resnet20-digits")

    experiments = ask(mlflow_url, "experiments/search", max_results=10)["experiments"]
    (experiment,) = [one["experiment_id"] for one in experiments if one["name"] == "resnet20-digits"]
    children = ask(
        mlflow_url,
        "runs/search",
        experiment_ids=[experiment],
        filter=f"tags.`mlflow.parentRunId` = '{tracking.run_id}' and metrics.value > 0.7 and params.lr = '0.01'",
        order_by=["metrics.valid_accuracy DESC"],
    )["runs"]
    assert [(run["info"]["run_name"], run["info"]["status"]) for run in children] == [
        ("trial-001", "KILLED"),
        ("trial-000", "FINISHED"),
    ]
    query = f"run_id={children[1]['info']['run_id']}&metric_key=valid_accuracy"
    with urllib.request.urlopen(f"{mlflow_url}/api/2.0/mlflow/metrics/get-history?{query}", timeout=30) as answer:
        points = json.loads(answer.read())["metrics"]
    assert sorted((point["step"], point["value"]) for point in points) == [(epoch, 0.8) for epoch in (1, 2, 3, 4)]
    query = f"run_id={tracking.run_id}"
    with urllib.request.urlopen(f"{mlflow_url}/api/2.0/mlflow/artifacts/list?{query}", timeout=30) as answer:
        files = json.loads(answer.read())["files"]
    assert sorted(file["path"] for file in files) == ["best_hyper_parameters.py", "search_space.json"]


def test_two_searches_that_start_at_once_share_one_experiment(mlflow_url: str) -> None:
    code = f"""
import sys, time
from tracked_search import run_search
from tune_adamsrt.tracking import Tracking
import mlflow
for setting in ("a", "b", "c"):
    time.sleep(1 - time.time() % 1)  # both at the turn of the second
    tracking = Tracking({mlflow_url!r}, on_warning=print, flush_interval_s=0.0)
    run_search(tracking, setting)
    assert tracking.close(60.0)
"""
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    searches = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": path, "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    for search in searches:
        output, _ = search.communicate(timeout=300)
        assert (output, search.returncode) == ("", 0)
    names = [one["name"] for one in ask(mlflow_url, "experiments/search", max_results=100)["experiments"]]
    for setting in ("a", "b", "c"):
        assert names.count(setting) == 1
        (experiment,) = [
            one["experiment_id"]
            for one in ask(mlflow_url, "experiments/search", max_results=100)["experiments"]
            if one["name"] == setting
        ]
        runs = ask(mlflow_url, "runs/search", experiment_ids=[experiment], max_results=100)["runs"]
        parents = [run["info"]["run_id"] for run in runs if run["info"]["run_name"] == f"{setting}/adamsrt"]
        assert len(parents) == 2
        tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
        for parent in parents:
            assert sum(tag.get("mlflow.parentRunId") == parent for tag in tags) == 3


@pytest.fixture
def study_storage(server: str) -> Iterator[str]:
    """A database for studies; connections that Optuna keeps to it are closed after the test."""
    opened: list[RDBStorage] = []
    original = RDBStorage.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RDBStorage, "__init__", lambda self, *args: (opened.append(self), original(self, *args))[1])
        yield postgresql.create_database(server, "optuna")
    for storage in opened:
        storage.remove_session()
        storage.engine.dispose()


def test_a_study_in_postgresql_goes_on_and_is_synced(
    study_storage: str, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = study_storage

    def open_study() -> Study:
        return Study(
            "study",
            storage=open_storage(location),
            space=build_search_space(load_setting("resnet20-digits"), "adamsrt"),
            sampler="tpe",
            seed=0,
            protocol={"epochs": 2},
        )

    study = open_study()
    info = make_info(trials=2, epochs=2, key=study.key)
    study.note_start(info)
    first = study.ask()
    for epoch in (1, 2):
        study.report(first.number, make_report(epoch, 0.1 * epoch + 0.5), host="node-1")
    study.tell_complete(first.number)
    lost = study.ask()
    study.report(lost.number, make_report(1, 0.5))

    resumed = open_study()
    assert [record.number for record in resumed.interrupted] == [lost.number]
    assert resumed.trials[first.number] == study.trials[first.number]
    resumed.report(lost.number, make_report(2, 0.4))
    resumed.tell_complete(lost.number)
    resumed.note_end(info, "all trials done")
    stored = load_search(open_storage(location), "study")
    assert [(trial.state, trial.epoch) for trial in stored.trials] == [(TrialState.COMPLETE, 2)] * 2

    arguments = ["--study", "study", "--study-storage", location, "--output", str(tmp_path), "--tracking-uri", uri]
    assert sync.main(arguments) == 0
    assert "sent 3 runs, 4 epochs, 3 ends, 1 file" in capsys.readouterr().out
    assert runs_of(uri)["trial-000"].data.metrics["value"] == 0.7
