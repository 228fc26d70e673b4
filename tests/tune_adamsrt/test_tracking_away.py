"""Tracking while MLflow is slow, broken or away: the search does not notice, and all of it arrives in the end, once."""

import os
import socket
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_servers import MLFLOW, Proxy, free_port, serving
from tracked_search import (
    artifact_names,
    assert_holds_the_search,
    history,
    info,
    report,
    run_search,
    run_trial,
    runs_of,
    summary,
    tell_epoch,
    trial,
)

from tune_adamsrt.mlflow import writer as mlflow_writer
from tune_adamsrt.records import TrialState
from tune_adamsrt.tracking import Tracking

pytestmark = pytest.mark.usefixtures("own_environment", "short_backoff")


ENDS = (TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED)


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    with serving([MLFLOW, "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"], folder) as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    proxy = Proxy(server)
    yield proxy
    proxy.stop()


@pytest.fixture
def remote(proxy: Proxy, warnings_told: list[str]) -> Iterator[Tracking]:
    tracking = Tracking(proxy.url, on_warning=warnings_told.append, flush_interval_s=0.01)
    yield tracking
    tracking.close(1.0)


def wait_until(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- what the search notices -----------------------------------------------------------------------------------------


def test_calls_return_though_the_server_never_answers_and_take_no_memory(warnings_told: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and says nothing
        port = server.getsockname()[1]
        tracking = Tracking(f"http://127.0.0.1:{port}", on_warning=warnings_told.append, flush_interval_s=60.0)
        tracking.search_started(info())
        trials = [trial(number) for number in range(10)]
        for one in trials:
            one.epochs.extend(report(epoch) for epoch in range(1, 101))
            tracking.trial_started(one)
        tracemalloc.start()
        for one in trials:
            for epoch in one.epochs:
                tracking.epoch_reported(one, epoch)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken < 10_000  # bytes, of 1,000 reports: the records are all there is
        for one in trials:
            one.state = TrialState.COMPLETE
            tracking.trial_ended(one)
        tracking.search_ended(summary([]))
        assert not tracking.close(0.1)
    assert warnings_told == [
        f"MLflow at http://127.0.0.1:{port}: 1000 epochs were not delivered, 11 of 11 runs are incomplete there"
    ]


def test_a_server_that_is_down_is_told_once_and_without_its_password(warnings_told: list[str]) -> None:
    port = free_port()
    tracking = Tracking(f"http://me:hunter2@127.0.0.1:{port}", on_warning=warnings_told.append, flush_interval_s=0.01)
    run_search(tracking)
    assert not tracking.close(60.0)  # ends by itself, after the third try
    assert tracking.run_id is None
    assert len(warnings_told) == 2
    assert warnings_told[0].startswith(
        f"MLflow at http://***@127.0.0.1:{port} does not take the results; they are kept"
    )
    assert "7 epochs were not delivered" in warnings_told[1]
    assert not any("hunter2" in line or "\n" in line for line in warnings_told)


def test_a_listener_that_raises_stops_nothing(uri: str, tmp_path: Path) -> None:
    def broken(line: str) -> None:
        raise RuntimeError(line)

    tracking = Tracking(uri, on_warning=broken, flush_interval_s=0.01)
    tracking.search_started(info())
    tracking.add_artifact(tmp_path / "missing")
    assert tracking.close(30.0)


def test_the_users_own_environment_stands(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    Tracking(uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_the_dearer_sending_is_the_longer_reports_are_gathered(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_writer, "CPU_SHARE", 0.02)
    tracking = Tracking(uri, flush_interval_s=0.01)
    tracking.search_started(info())
    assert tracking.run_id is not None
    wait_until(lambda: tracking._writer._gathering_s > 0.01)
    assert tracking._writer._gathering_s <= mlflow_writer.LONGEST_GATHERING_S
    began = time.monotonic()
    assert tracking.close(30.0)  # does not wait for it
    assert time.monotonic() - began < 5.0


# ---- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_slow_server_costs_the_search_nothing(proxy: Proxy, remote: Tracking, warnings_told: list[str]) -> None:
    def slow(method: str, path: str, body: bytes) -> None:
        time.sleep(0.3)

    proxy.fault = slow
    proxy.start()
    one, seconds = trial(0), []
    remote.search_started(info("slow"))
    wait_until(lambda: proxy.requests)
    for epoch in range(1, 201):
        one.epochs.append(report(epoch))
        began = time.perf_counter()
        remote.epoch_reported(one, one.epochs[-1])
        seconds.append(time.perf_counter() - began)
        time.sleep(0.002)
    assert statistics.median(seconds) < 0.001
    assert sum(seconds) < 0.1
    assert remote.close(60.0)
    assert warnings_told == []
    assert [step for step, _ in history(proxy.url, runs_of(proxy.url, "slow")["trial-000"], "value")] == [
        *range(1, 201)
    ]


@pytest.mark.slow
def test_what_a_server_misses_while_it_is_down_or_broken_is_delivered_later(
    proxy: Proxy, remote: Tracking, warnings_told: list[str]
) -> None:
    trials = [trial(number) for number in range(3)]
    remote.search_started(info("down"))  # nobody listens
    run_trial(remote, trials[0], TrialState.COMPLETE, epochs=4, value=0.8)
    wait_until(lambda: warnings_told)
    assert "does not take the results; they are kept and sent later" in warnings_told[0]

    proxy.start()
    wait_until(lambda: ("POST", "/api/2.0/mlflow/runs/update") in proxy.requests)  # the end of trial 0

    proxy.fault = lambda method, path, body: 500
    run_trial(remote, trials[1], TrialState.STOPPED, epochs=2, value=0.95)
    seen = len(proxy.requests)
    wait_until(lambda: len(proxy.requests) > seen + 3)
    proxy.stop()
    run_trial(remote, trials[2], TrialState.FAILED, epochs=1)
    proxy.fault = lambda method, path, body: None
    proxy.start()
    remote.search_ended(summary(trials))
    assert remote.close(60.0)
    assert len(warnings_told) == 1
    assert_holds_the_search(proxy.url, "down")


@pytest.mark.slow
def test_a_file_that_is_too_large_is_told_once_and_the_rest_is_delivered(
    proxy: Proxy, remote: Tracking, warnings_told: list[str], tmp_path: Path
) -> None:
    small, large = tmp_path / "small.txt", tmp_path / "large.parquet"
    small.write_text("small")
    large.write_bytes(bytes(2000))
    proxy.fault = lambda method, path, body: 413 if method == "PUT" and len(body) > 1000 else None
    proxy.start()
    trials = [trial(number) for number in range(3)]
    remote.search_started(info("large"))
    remote.add_artifact(large)
    remote.add_artifact(small)
    for one, state, epochs, value in zip(trials, ENDS, (4, 2, 1), (0.8, 0.95, 0.5), strict=True):
        run_trial(remote, one, state, epochs, value)
    remote.search_ended(summary(trials))
    assert remote.close(60.0)
    assert len(warnings_told) == 1
    assert "does not take the file large.parquet" in warnings_told[0]
    assert "413" in warnings_told[0]
    assert_holds_the_search(proxy.url, "large")
    parent = runs_of(proxy.url, "large")["large/adamsrt"]
    assert artifact_names(proxy.url, parent) == ["search_space.json", "small.txt"]


@pytest.mark.slow
def test_a_run_that_the_server_chokes_on_does_not_hold_up_the_others(
    proxy: Proxy, remote: Tracking, warnings_told: list[str]
) -> None:
    proxy.start()
    remote.search_started(info("choke"))
    trials = [trial(number) for number in range(3)]
    tell_epoch(remote, trials[0], report(1))
    wait_until(lambda: runs_of(proxy.url, "choke").keys() >= {"trial-000"} if remote.run_id else False)
    poisoned = runs_of(proxy.url, "choke")["trial-000"].info.run_id.encode()
    proxy.fault = lambda method, path, body: 500 if poisoned in body and "log-batch" in path else None
    for one in trials:
        run_trial(remote, one, TrialState.COMPLETE, epochs=3)
    remote.search_ended(summary(trials))
    assert not remote.close(60.0)
    assert "1 of 4 runs are incomplete" in warnings_told[-1]
    runs = runs_of(proxy.url, "choke")
    assert {name: run.info.status for name, run in runs.items()} == {
        "choke/adamsrt": "FINISHED",
        "trial-000": "RUNNING",
        "trial-001": "FINISHED",
        "trial-002": "FINISHED",
    }
