"""What MLflow lacks of a search is read from its study: the outcome is that of a search whose MLflow was there."""

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_servers import free_port
from search_records import make_info, make_report

from tune_adamsrt import sync
from tune_adamsrt.candidates import confirmation_name, fresh_seeds, listed_runs
from tune_adamsrt.mlflow.undelivered import Undelivered, load_undelivered, undelivered_studies
from tune_adamsrt.records import Confirmation, SearchInfo, SearchSummary, TrialState
from tune_adamsrt.settings import load_setting
from tune_adamsrt.space import build_search_space
from tune_adamsrt.storage import locked, open_storage
from tune_adamsrt.studies import load_confirmation, load_search
from tune_adamsrt.study import Study
from tune_adamsrt.tracking import Tracking

REPOSITORY = Path(__file__).parents[2]
NAME = "digits-study"
WRITING = ("create_run", "log_batch", "log_text", "log_artifact", "set_terminated", "update_run", "delete_tag")
PROTOCOL = {"epochs": 3}

pytestmark = pytest.mark.usefixtures("own_environment", "short_backoff")


@pytest.fixture
def nowhere() -> str:
    """A tracking URI at which nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def undelivered(output: Path, uri: str, name: str = NAME) -> Undelivered:
    return Undelivered(output, name, str(output / "optuna.journal"), uri)


def open_study(output: Path, observers: list[Any], name: str = NAME, **more: Any) -> Study:
    return Study(
        name,
        storage=open_storage(str(output / "optuna.journal")),
        space=build_search_space(load_setting("resnet20-digits"), "adamsrt"),
        sampler="random",
        seed=0,
        protocol=PROTOCOL,
        observers=observers,
        **more,
    )


def begin(output: Path, trackings: list[Tracking], name: str = NAME) -> tuple[Study, SearchInfo]:
    """A search, as the command starts it."""
    study = open_study(output, trackings, name)
    info = make_info(study_name=name, trials=3, epochs=3, key=study.key, restored=list(study.trials.values()))
    study.note_start(info)
    for tracking in trackings:
        tracking.search_started(info)
    return study, info


def run_trials(study: Study) -> None:
    """Trial 0 completes, 1 is stopped after epoch 2, 2 diverges, 3 has trained one epoch."""
    for epochs in (3, 2, 1, 1):
        record = study.ask()
        for epoch in range(1, epochs + 1):
            study.report(record.number, make_report(epoch, 0.5 + 0.1 * epoch), host="node-1")
    study.tell_complete(0)
    study.tell_stopped(1, "rung 1 (epoch 2): rank 2 of 2, the best 1 went on")
    study.tell_failed(2, "diverged at epoch 1")


def end(study: Study, info: SearchInfo, trackings: list[Tracking], ended_by: str = "time budget") -> None:
    study.note_end(info, ended_by)
    trials = list(study.trials.values())
    summary = SearchSummary(study.best, 1, trials, study.epochs_spent, 12.5, ended_by)
    for tracking in trackings:
        tracking.search_ended(summary)


def search(output: Path, *uris: str, name: str = NAME, artifact: Path | None = None) -> None:
    """A whole search, tracked at each of these URIs."""
    trackings = [Tracking(uri, undelivered=undelivered(output, uri, name), flush_interval_s=0.01) for uri in uris]
    study, info = begin(output, trackings, name)
    run_trials(study)
    end(study, info, trackings)
    for tracking in trackings:
        if artifact is not None:
            tracking.add_artifact(artifact)
        tracking.close(30.0)


def content(uri: str) -> dict[str, Any]:
    """All that the store has, but for what must differ: the ids of runs, and when a search itself began and ended."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("resnet20-digits").experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(runs)
    content = {}
    for run in runs:
        tags = dict(run.data.tags)
        parent = names.get(tags.pop("mlflow.parentRunId", ""))
        points = {
            (name, point.step, point.value, point.timestamp if parent else 0)
            for name in run.data.metrics
            if name != "seconds"
            for point in client.get_metric_history(run.info.run_id, name)
        }
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        times = (run.info.start_time, run.info.end_time if tags["state"] != "stopped" else 0) if parent else ()
        content[run.info.run_name] = (run.info.status, parent, tags, run.data.params, points, files, times)
    return content


@pytest.fixture
def second_uri(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "second.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path}/second.db"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    from mlflow import MlflowClient

    calls: list[str] = []

    def counted(name: str, original: Any) -> Any:
        return lambda *args, **others: (calls.append(name), original(*args, **others))[1]

    for name in WRITING:
        monkeypatch.setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name)))
    yield calls


def test_sync_gives_what_a_tracked_search_gives_and_a_second_one_sends_nothing(
    uri: str,
    second_uri: str,
    nowhere: str,
    output: Path,
    tmp_path: Path,
    writes: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    exported = tmp_path / "best.py"
    exported.write_text("BEST = 1\n")
    search(output, uri, nowhere, artifact=exported)
    assert undelivered_studies(output) == [NAME]  # as the one that was away has it; it was closed last
    waiting = load_undelivered(output, NAME)
    assert waiting is not None
    assert waiting.tracking_uri == nowhere
    assert waiting.artifacts == [exported]
    assert "7 epochs were not delivered, 5 of 5 runs are incomplete" in waiting.missing

    assert sync.main(["--output", str(output), "--tracking-uri", second_uri]) == 0
    told, problems = capsys.readouterr()
    assert told == f"{NAME}: sent 5 runs, 7 epochs, 5 ends, 2 files ({second_uri})\n"
    assert problems == ""
    assert undelivered_studies(output) == []
    expected = content(uri)
    assert content(second_uri) == expected
    assert expected["trial-003"][2]["reason"] == "time budget"
    assert expected["trial-001"][2]["stopped_at_rung"] == "1"
    assert {name for name, *_ in expected["trial-000"][4]} >= {"value", "valid_loss"}

    writes.clear()
    for store in (uri, second_uri):
        assert sync.main(["--output", str(output), "--study", NAME, "--tracking-uri", store]) == 0
        assert capsys.readouterr().out == f"{NAME}: nothing was missing ({store})\n"
    assert writes == []
    assert content(second_uri) == expected
    assert sync.main(["--output", str(output)]) == 0
    assert "MLflow lacks nothing that is known" in capsys.readouterr().out


def confirm(output: Path, search: Study, trackings: list[Tracking], *, epochs: int) -> Confirmation | None:
    """Train the best of the search again on two seeds, with so many epochs in all; test it where it gets there."""
    study = open_study(
        output,
        [],
        confirmation_name(search.name, 2),
        listed=listed_runs([search.trials[0]], fresh_seeds(0, 2)),
        confirms=search,
    )
    trials = list(study.trials.values())
    about = make_info(study_name=study.name, epochs=3, key=study.key, restored=trials, role="confirmation")
    study.note_start(about)
    for tracking in trackings:
        study.add_observer(tracking.for_confirmation(about))
    while epochs and (study.interrupted or len(study.trials) < 2):
        run = study.ask()
        for epoch in range(run.epoch + 1, 4):
            if epochs:
                epochs -= 1
                study.report(run.number, make_report(epoch, 0.8 + 0.01 * run.number))
        if run.epoch == 3:
            study.tell_complete(run.number)
    if len(study.in_state(TrialState.COMPLETE)) < 2:
        study.note_end(about, "interrupted")
        return None
    study.note_test(0, [0.75, 0.77])
    study.note_end(about, "all trials done")
    return load_confirmation(open_storage(str(output / "optuna.journal")), search.name)


def test_the_runs_that_confirm_a_search_are_beside_its_trials_also_after_a_break(
    uri: str, second_uri: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def search_and_confirm(epochs: int) -> None:
        tracking = Tracking(uri, undelivered=undelivered(output, uri), flush_interval_s=0.01)
        study, info = begin(output, [tracking])
        if not study.trials:
            run_trials(study)
            study.tell_failed(3, "diverged at epoch 1")
        study.note_end(info, "all trials done")
        done = confirm(output, study, [tracking], epochs=epochs)
        ended_by = "all trials done" if done else "interrupted"
        trials = list(study.trials.values())
        tracking.search_ended(SearchSummary(study.best, 1, trials, study.epochs_spent, 12.5, ended_by, done))
        assert tracking.close(30.0)

    def assert_synced(store: str, says: str) -> None:
        assert sync.main(["--output", str(output), "--study", NAME, "--tracking-uri", store]) == 0
        assert says in capsys.readouterr().out

    search_and_confirm(epochs=4)
    runs = content(uri)
    assert {name: run[0] for name, run in runs.items() if "trial" not in name} == {
        "resnet20-digits/adamsrt": "KILLED",
        "confirm-000": "FINISHED",
        "confirm-001": "KILLED",
    }
    assert_synced(uri, "nothing was missing")

    search_and_confirm(epochs=2)
    runs = content(uri)
    status, parent, tags, _, points, _, _ = runs["confirm-001"]
    assert (status, parent) == ("FINISHED", "resnet20-digits/adamsrt")
    assert (tags["role"], tags["confirms_trial"]) == ("confirmation", "0")
    assert tags["seed"] == str(fresh_seeds(0, 2)[1])
    assert "reason" not in tags
    assert sorted(step for name, step, *_ in points if name == "value") == [1, 2, 3]
    status, _, tags, _, points, _, _ = runs["resnet20-digits/adamsrt"]
    assert status == "FINISHED"
    assert (tags["confirmed_trial"], tags["confirmed_seeds"], tags["confirmation_epochs_spent"]) == ("0", "2", "6")
    values = {name: value for name, _, value, _ in points}
    assert values["test_accuracy_mean"] == pytest.approx(0.76)
    assert values["confirmed_valid_accuracy_mean"] == pytest.approx(0.805)

    assert_synced(uri, "nothing was missing")
    assert_synced(second_uri, "sent 7 runs, 13 epochs")
    assert content(second_uri)["confirm-000"] == runs["confirm-000"]
    assert content(second_uri)["confirm-001"] == runs["confirm-001"]
    name = confirmation_name(NAME, 2)
    assert sync.main(["--output", str(output), "--study", name, "--tracking-uri", uri]) == 2
    assert f"which confirms {NAME}; name that one" in capsys.readouterr().err


def test_a_server_that_is_still_away_is_one_line_per_study(
    nowhere: str, output: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        search(output, nowhere, name=name)
    assert sync.main(["--output", str(output)]) == 2
    told, problems = capsys.readouterr()
    assert told == ""
    first, second = problems.splitlines()
    assert first.startswith(f"a: MLflow at {nowhere} does not take the results; they are kept and sent later (")
    assert second == "b: not sent, it waits for the same MLflow"
    assert undelivered_studies(output) == ["a", "b"]
    assert sync.main(["--output", str(output), "--tracking-uri", uri]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


@pytest.mark.slow
def test_a_search_that_was_killed_is_found_and_sent_by_the_command(uri: str, output: Path) -> None:
    driver = f"""
import os, signal
from pathlib import Path
from test_sync import begin, run_trials, undelivered
from tune_adamsrt.tracking import Tracking
output = Path({str(output)!r})
tracking = Tracking({uri!r}, undelivered=undelivered(output, {uri!r}), flush_interval_s=60.0)
study, info = begin(output, [tracking])
run_trials(study)
tracking.add_artifact(output / "best.py")
os.kill(os.getpid(), signal.SIGKILL)
"""
    output.mkdir()
    (output / "best.py").write_text("BEST = 1\n")
    path = os.pathsep.join(map(str, [REPOSITORY, REPOSITORY / "tests", Path(__file__).parent]))
    environment = {**os.environ, "PYTHONPATH": path}
    killed = subprocess.run([sys.executable, "-c", driver], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL

    command = [sys.executable, "-m", "tune_adamsrt.sync", "--output", str(output)]
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{NAME}: sent 5 runs, 7 epochs, 3 ends, 2 files ({uri}); "
        "the search has not ended: go on with it, with --resume\n"
    )
    statuses = {name: run[0] for name, run in content(uri).items()}
    assert statuses == {
        "resnet20-digits/adamsrt": "RUNNING",
        "trial-000": "FINISHED",
        "trial-001": "KILLED",
        "trial-002": "FAILED",
        "trial-003": "RUNNING",
    }
    assert not undelivered_studies(output)

    # resumed, it goes on with the same runs
    tracking = Tracking(uri, undelivered=undelivered(output, uri), flush_interval_s=0.01)
    study, info = begin(output, [tracking])
    for epoch in (2, 3):
        study.report(3, make_report(epoch, 0.9))
    study.tell_complete(3)
    end(study, info, [tracking], ended_by="all trials done")
    assert undelivered_studies(output) == [NAME]  # while it runs
    assert tracking.close(30.0)
    assert undelivered_studies(output) == []
    assert tracking.sent.runs == 0
    assert tracking.sent.epochs == 2
    assert {name: run[0] for name, run in content(uri).items()} == statuses | {
        "resnet20-digits/adamsrt": "FINISHED",
        "trial-003": "FINISHED",
    }


def test_a_search_that_runs_is_left_alone(
    uri: str, nowhere: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(output, nowhere)
    with locked(NAME, output):
        assert sync.main(["--output", str(output), "--tracking-uri", uri]) == 2
    assert "another search is running it" in capsys.readouterr().err
    assert undelivered_studies(output) == [NAME]


def test_passwords_are_not_kept_and_asked_for(
    output: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    search(output, f"http://me:hunter2@{address}")
    assert "hunter2" not in (output / "undelivered" / f"{NAME}.json").read_text()
    assert sync.main(["--output", str(output)]) == 2
    assert f"goes to http://***@{address}, whose password is not kept" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@{address}")
    assert sync.main(["--output", str(output)]) == 2
    problem = capsys.readouterr().err
    assert f"MLflow at http://***@{address} does not take the results" in problem
    assert "hunter2" not in problem

    waiting = Undelivered(output, NAME, "postgresql://me:hunter2@db/optuna", uri)
    waiting.write()
    assert "hunter2" not in waiting.path.read_text() + waiting.command
    assert sync.main(["--output", str(output)]) == 2
    assert "is in postgresql://***@db/optuna, whose password is not kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--study", "no-such"], "no-such"),
        (["--study", NAME, "--study-storage", "/no/such.journal"], "must exist"),
        (["--study", NAME, "--tracking-uri", "./mlruns"], "must name a database or a server"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], says: str, nowhere: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(output, [])
    assert sync.main(["--output", str(output), *arguments]) == 2
    problem = capsys.readouterr().err
    assert says in problem
    assert problem.startswith("error: ")
    assert problem.count("\n") == 1


def test_a_damaged_file_is_told_with_its_remedy(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "undelivered").mkdir(parents=True)
    (output / "undelivered" / "x.json").write_text(json.dumps({"study": "x"}))
    assert sync.main(["--output", str(output)]) == 2
    assert "remove it" in capsys.readouterr().err


def test_a_model_is_handed_to_its_own_sender(
    uri: str, nowhere: str, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search(output, nowhere)
    waiting = load_undelivered(output, NAME)
    assert waiting is not None
    waiting.add({"kind": "model", "path": "weights.pt"})
    sent: list[dict[str, Any]] = []
    is_away = [True]

    def log_model(**fields: Any) -> None:
        if is_away:
            raise ConnectionError("away")
        sent.append(fields)

    module = types.ModuleType("tune_adamsrt.mlflow.model")
    module.log_model = log_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tune_adamsrt.mlflow.model", module)
    assert sync.main(["--output", str(output), "--tracking-uri", uri]) == 2
    assert "the model was not sent: away" in capsys.readouterr().err
    assert undelivered_studies(output) == [NAME]
    is_away.clear()
    assert sync.main(["--output", str(output)]) == 0
    (fields,) = sent
    assert (fields["uri"], fields["path"]) == (uri, "weights.pt")
    assert fields["run_id"]
    assert "sent 1 model" in capsys.readouterr().out
    assert undelivered_studies(output) == []


def test_a_trial_state_of_every_kind_is_replayed(output: Path) -> None:
    study, info = begin(output, [])
    run_trials(study)
    study.note_end(info, "interrupted")
    stored = load_search(open_storage(str(output / "optuna.journal")), NAME)
    summary = sync.summarize(stored)
    assert summary is not None
    assert {trial.state for trial in summary.trials} == {*TrialState} - {TrialState.PAUSED}
    assert (summary.candidates, summary.epochs_spent, summary.ended_by) == (1, 7, "interrupted")
    assert summary.best is not None
    assert summary.best.number == 0
