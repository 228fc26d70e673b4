"""Tracking over HTTP to the server that the search tells its user to start, also where that is killed meanwhile."""

import json
import math
import os
import shlex
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow_servers import MLFLOW, free_port, serving, start_server
from tracked_search import (
    artifact_names,
    assert_holds_the_search,
    info,
    report,
    run_search,
    run_trial,
    runs_of,
    summary,
    tell_epoch,
    trial,
)

from tune_adamsrt.mlflow.uri import ui_command
from tune_adamsrt.records import TrialState
from tune_adamsrt.tracking import Tracking

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("own_environment", "short_backoff")


@pytest.mark.slow
def test_over_http_and_in_the_ui_that_the_command_opens(
    uri: str, tracking: Tracking, warnings_told: list[str], tmp_path: Path
) -> None:
    run_search(tracking)
    assert tracking.close(30.0)
    command, port = [MLFLOW, *shlex.split(ui_command(uri))[1:]], free_port()
    url = f"http://127.0.0.1:{port}"
    server = start_server(command, tmp_path, port)
    over_http = Tracking(url, on_warning=warnings_told.append, flush_interval_s=0.01)
    trials = [trial(number) for number in range(3)]
    try:
        with pytest.raises(OSError):  # the command lets in this machine only
            urllib.request.urlopen(f"http://127.0.0.2:{port}/health", timeout=5)

        # the UI shows the artifacts that the search has put beside the database
        parent = runs_of(url)["resnet20-digits/adamsrt"]
        query = f"path=search_space.json&run_uuid={parent.info.run_id}"
        with urllib.request.urlopen(f"{url}/get-artifact?{query}", timeout=30) as answer:
            assert json.loads(answer.read()) == info().space

        # the same server takes another search over HTTP, into its own artifact root
        over_http.search_started(info("vgg16-cifar10"))
        run_trial(over_http, trials[0], TrialState.COMPLETE, epochs=4, value=0.8)
        assert over_http.run_id is not None
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its group: the server has workers
        server.wait(30)

    run_trial(over_http, trials[1], TrialState.STOPPED, epochs=2, value=0.95)
    deadline = time.monotonic() + 60
    while not warnings_told:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with serving(command, tmp_path, port):
        run_trial(over_http, trials[2], TrialState.FAILED, epochs=1)
        over_http.search_ended(summary(trials))
        over_http.add_artifact(REPOSITORY / "pyproject.toml")
        diverged = trial(3)
        tell_epoch(over_http, diverged, report(1, value=math.nan))
        assert over_http.close(60.0)
        assert len(warnings_told) == 1  # that it was away
        assert_holds_all(url)

        deleted = Tracking(url, on_warning=warnings_told.append, flush_interval_s=0.01)
        delete_experiment(url, "vgg16-cifar10")
        run_search(deleted, "vgg16-cifar10")
        assert not deleted.close(60.0)
        assert "mlflow experiments restore" in warnings_told[1]


def assert_holds_all(url: str) -> None:
    runs = runs_of(url, "vgg16-cifar10")
    assert artifact_names(url, runs["vgg16-cifar10/adamsrt"]) == ["pyproject.toml", "search_space.json"]
    assert math.isnan(runs["trial-003"].data.metrics["value"])
    client_of(url).delete_run(runs["trial-003"].info.run_id)
    assert_holds_the_search(url, "vgg16-cifar10")


def delete_experiment(url: str, name: str) -> None:
    client = client_of(url)
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)


def client_of(url: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=url)
