"""The trained model in MLflow: logged once, loaded back to the same numbers, and the alias that only the best has."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow_servers import MLFLOW, serving
from search_records import make_trial

from adamsrt.dataloaders import get_dataloader_digits
from adamsrt.models import build_model
from adamsrt.training import evaluate
from tune_adamsrt.arguments import parse_arguments
from tune_adamsrt.confirm import confirmation_plan
from tune_adamsrt.mlflow.model import ALIAS, build_trained, log_model, model_item, protocol_hash, takes_alias
from tune_adamsrt.mlflow.store import create_run, open_experiment
from tune_adamsrt.mlflow.undelivered import Undelivered, load_undelivered
from tune_adamsrt.plan import make_plans
from tune_adamsrt.publish import publish_model
from tune_adamsrt.records import Confirmation, TrialState
from tune_adamsrt.sync import send_model
from tune_adamsrt.weights import load_weights, save_weights, weights_file

NAME = "resnet20-digits-adamsrt"
PROTOCOL = {
    "dataset": "digits",
    "model": "resnet20",
    "optimizer": "adamsrt",
    "epochs": 10,
    "batch_size": 32,
    "valid_split": 0.2,
    "split_seed": 0,
    "limit_train_examples": None,
    "selection": "best",
}


@pytest.fixture(autouse=True)
def global_uri():
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def make_weights(folder, number=0):
    """Weights of an untrained model, whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(number)
    model = build_model("resnet20", num_classes=10, in_channels=1, image_size=8)
    model(torch.randn(64, 1, 8, 8))
    file = weights_file(str(folder / "weights"), number)
    save_weights(file, model.state_dict())
    return file


def new_run(uri):
    client, experiment_id = open_experiment(uri, "resnet20-digits")
    run_id = create_run(client, experiment_id, "search", key="k", started_ms=0, parent_id=None)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def item(weights, **changes):
    values = {
        "name": NAME,
        "weights": weights,
        "protocol": PROTOCOL,
        "data_root": "data",
        "hyper_parameters": {"lr": 0.001, "betas": (0.9, 0.99)},
        "valid_accuracy": 0.9,
        "is_reduced": False,
        "tags": {"trial": 16},
    }
    made = model_item(**(values | changes))
    assert made.pop("kind") == "model"
    return made


def accuracy_of(model):
    _, _, test = get_dataloader_digits()
    with torch.inference_mode():
        hits = sum(int((model(images).argmax(dim=1) == labels).sum()) for images, labels in test)
    return hits / test.num_examples


VERSION = {"protocol": "p", "valid_accuracy": "0.9", "is_reduced": "false"}


def holder(client):
    return str(client.get_model_version_by_alias(NAME, ALIAS).version)


class TestTheAlias:
    @pytest.mark.parametrize(
        ("new", "moves"),
        [
            ({"valid_accuracy": "0.91"}, True),
            ({"valid_accuracy": "0.9"}, False),
            ({"valid_accuracy": "0.89"}, False),
            ({"valid_accuracy": "0.99", "protocol": "other"}, False),
            ({"valid_accuracy": "0.99", "protocol": "other", "is_reduced": "true"}, False),
        ],
    )
    def test_goes_to_a_better_result_of_the_same_protocol(self, new, moves):
        assert takes_alias(VERSION | new, VERSION) is moves

    def test_goes_to_the_first_result_of_all(self):
        assert takes_alias(VERSION | {"is_reduced": "true"}, None)

    def test_goes_from_a_quick_look_to_a_whole_search(self):
        quick = VERSION | {"protocol": "quick", "is_reduced": "true", "valid_accuracy": "0.99"}
        assert takes_alias(VERSION, quick)
        assert not takes_alias(quick, VERSION)

    def test_is_left_to_a_version_of_somebody_else(self):
        assert not takes_alias(VERSION, {})

    def test_protocols_differ_by_anything_that_decides_results(self):
        assert protocol_hash(PROTOCOL) == protocol_hash(dict(reversed(PROTOCOL.items())))
        assert protocol_hash(PROTOCOL) != protocol_hash(PROTOCOL | {"epochs": 9})
        assert protocol_hash(PROTOCOL) != protocol_hash(PROTOCOL | {"limit_train_examples": 100})


@pytest.mark.slow
@pytest.mark.usefixtures("own_environment")
def test_a_model_is_logged_once_and_loads_back_to_the_same_numbers(uri, tmp_path, capfd):
    run_id, weights = new_run(uri), make_weights(tmp_path)
    assert log_model(uri=uri, run_id=run_id, **item(weights)) == "1"
    assert log_model(uri=uri, run_id=run_id, **item(weights)) == "1", "twice is as once"
    assert capfd.readouterr() == ("", ""), "MLflow's and torch's chatter stays out of the terminal"
    assert mlflow.active_run() is None

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED", "a run that has ended stays so"
    [logged] = client.search_logged_models([run.info.experiment_id])
    assert (logged.name, str(logged.status), logged.source_run_id) == (NAME, "READY", run_id)
    assert logged.params["beta1"] == "0.9" and logged.params["epochs"] == "10"
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    [version] = client.search_model_versions(f"name = '{NAME}'")
    assert (version.run_id, version.tags["trial"], version.tags["valid_accuracy"]) == (run_id, "16", "0.9")
    assert version.tags["weights_sha256"] == hashlib.sha256(Path(weights).read_bytes()).hexdigest()

    mlflow.set_tracking_uri(uri)
    model = mlflow.pytorch.load_model(f"models:/{NAME}@{ALIAS}")
    original = build_trained(PROTOCOL, load_weights(weights))
    _, valid, test = get_dataloader_digits()
    images, _ = next(iter(test))
    assert torch.equal(model(images), original(images)), "the very same numbers, for any batch"
    assert torch.equal(model(images[:1]), original(images[:1]))
    assert accuracy_of(model) == evaluate(original, test)[1]

    generic = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    [given], [made] = generic.metadata.signature.inputs.inputs, generic.metadata.signature.outputs.inputs
    assert (given.type, given.shape, made.shape) == (np.dtype("float32"), (-1, 1, 8, 8), (-1, 10))
    example = generic.input_example
    assert np.array_equal(example, next(iter(valid))[0][: len(example)].numpy()), "real images, as the model sees them"
    assert generic.predict(example).shape == (len(example), 10)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path / "copy")))
    assert {line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()} == {
        "mlflow",
        "torch",
        "numpy",
    }
    assert not list(folder.rglob("*.pth")), "nothing pickled"
    assert load_weights(str(folder / "extra_files" / "weights.pt")).keys() == load_weights(weights).keys()


@pytest.mark.slow
@pytest.mark.usefixtures("own_environment")
def test_the_alias_moves_with_real_versions_and_survives_what_was_cut_off(uri, tmp_path, monkeypatch):
    client = MlflowClient(tracking_uri=uri)
    run_id, first, second = new_run(uri), make_weights(tmp_path, 1), make_weights(tmp_path, 2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # killed while the files are sent
        patched.setattr(MlflowClient, "log_model_artifacts", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        log_model(uri=uri, run_id=run_id, **item(first))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # killed before it was registered
        patched.setattr(
            MlflowClient, "create_model_version", lambda *args, **other: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        log_model(uri=uri, run_id=run_id, **item(first))
    assert log_model(uri=uri, run_id=run_id, **item(first)) == "1"
    assert len(client.search_logged_models([client.get_run(run_id).info.experiment_id])) == 1
    assert holder(client) == "1"

    assert log_model(uri=uri, run_id=run_id, **item(second, valid_accuracy=0.95)) == "2"
    assert holder(client) == "2"
    assert log_model(uri=uri, run_id=run_id, **item(first)) == "1"
    assert holder(client) == "2", "what was delivered late takes nothing away"


@pytest.mark.slow
@pytest.mark.usefixtures("own_environment")
def test_a_server_takes_the_model_and_gives_it_back(tmp_path):
    """Artifacts go through the server; what loads the model is a process without this project."""
    weights = make_weights(tmp_path)
    server = tmp_path / "server"
    server.mkdir()
    command = [MLFLOW, "server", "--backend-store-uri", f"sqlite:///{server}/mlflow.db"]
    with serving(command, server) as url:
        log_model(uri=url, run_id=new_run(url), **item(weights))
        code = (
            "import sys, torch, mlflow\n"
            f"mlflow.set_tracking_uri({url!r})\n"
            f"model = mlflow.pytorch.load_model('models:/{NAME}@{ALIAS}')\n"
            "torch.save(model(torch.ones(3, 1, 8, 8)), 'out.pt')\n"
            "assert 'adamsrt' not in sys.modules\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = build_trained(PROTOCOL, load_weights(weights))(torch.ones(3, 1, 8, 8))
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("own_environment")
def test_where_mlflow_is_away_the_model_waits_in_a_file_and_is_sent_later(uri, tmp_path, monkeypatch, capsys):
    """As at the end of a search; then as `python -m tune_adamsrt.sync` sends it."""
    monkeypatch.chdir(tmp_path)
    [plan] = make_plans(parse_arguments(["--setting", "resnet20-digits", "--study", "s", "--output", "runs"]))
    candidate, run = make_trial(7, TrialState.COMPLETE, 10), make_trial(3, TrialState.COMPLETE, 10, confirms=7)
    confirmation = Confirmation(candidate, (run,), (0.5,), candidates=1)
    folder = confirmation_plan(plan).weights_folder
    save_weights(weights_file(folder, 3), load_weights(make_weights(tmp_path)))
    undelivered = Undelivered(plan.local_output, "s", "runs/optuna.journal", "http://127.0.0.1:1")
    warned = []
    view = SimpleNamespace(warn=warned.append)
    away = SimpleNamespace(uri="http://127.0.0.1:1", run_id="some-run")
    study = SimpleNamespace(name="s")
    assert publish_model(plan, study, confirmation, away, undelivered, view) == []
    [line] = warned
    assert line.startswith("the model was not logged: ") and line.endswith(undelivered.command)

    kept = load_undelivered(plan.local_output, "s")
    [waiting] = kept.items
    kept.tracking_uri = uri  # it is back, elsewhere
    assert send_model(kept, waiting, run_id=new_run(uri)), capsys.readouterr().err
    assert load_undelivered(plan.local_output, "s") is None
    assert holder(MlflowClient(tracking_uri=uri)) == "1"
    here = SimpleNamespace(uri=uri, run_id=new_run(uri))
    assert publish_model(plan, study, confirmation, here, undelivered, view) == [("model", f"models:/{NAME}/2")]
    assert load_undelivered(plan.local_output, "s") is None and len(warned) == 1


def test_a_model_without_a_run_waits(tmp_path):
    with pytest.raises(ValueError, match="must belong to a run"):
        log_model(uri=f"sqlite:///{tmp_path}/mlflow.db", run_id=None, **item("nowhere"))
