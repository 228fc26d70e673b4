"""The confirmed configuration's trained weights as an MLflow model, in MLflow's registry.

    import mlflow
    model = mlflow.pytorch.load_model("models:/resnet20-digits-adamsrt@best")
    logits = model(images)  # float32 (N, C, H, W), normalised as adamsrt.dataloaders does; any N

It is kept as torch's exported program (pt2), which holds no code: loading it runs none and needs torch alone. It
computes in eval mode, on the CPU; `extra_files/weights.pt` is the state dict for `adamsrt.models.build_model`.

MLflow's client is told where to write. `mlflow.pytorch.log_model` would go by the process's global tracking URI and
active run, change the state of a run that has ended, and print.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adamsrt.dataloaders import DATASETS
from adamsrt.models import build_model
from tune_adamsrt.mlflow.metrics import params
from tune_adamsrt.mlflow.store import QUIET_ENVIRONMENT, open_experiment
from tune_adamsrt.weights import read_bytes, weights_of

ALIAS = "best"
REQUIREMENTS = ("mlflow", "torch", "numpy")
EXAMPLES = 2  # a batch of one would be exported as a model for batches of one


def model_item(
    *,
    name: str,
    weights: str,
    protocol: Mapping[str, Any],
    data_root: str,
    hyper_parameters: Mapping[str, Any],
    valid_accuracy: float,
    is_reduced: bool,
    tags: Mapping[str, Any],
) -> dict[str, Any]:
    """Put together, as plain values, what `log_model` needs; they can wait in a file until MLflow answers.

    Args:
        name: `<setting>-<optimizer>`, the registered model's.
        weights: path or URI of the state dict.
        protocol: see `Plan.protocol`.
        valid_accuracy: what versions of one protocol are compared by: the mean over the confirmation's seeds.
        is_reduced: a quick look, see `Plan.is_reduced`.
        tags: what else a reader may ask for; kept with the version.
    """
    item = {
        "kind": "model",
        "name": name,
        "weights": weights,
        "protocol": dict(protocol),
        "data_root": data_root,
        "hyper_parameters": dict(hyper_parameters),
        "valid_accuracy": valid_accuracy,
        "is_reduced": is_reduced,
        "tags": {key: str(value) for key, value in tags.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(item))  # as it is read back from a file
    return plain


def log_model(
    *,
    uri: str,
    run_id: str | None,
    name: str,
    weights: str,
    protocol: Mapping[str, Any],
    data_root: str,
    hyper_parameters: Mapping[str, Any],
    valid_accuracy: float,
    is_reduced: bool,
    tags: Mapping[str, str],
) -> str:
    """Log the model with a search's run, register it, and give it the alias `best` if it is. Twice is as once.

    Args:
        uri: the tracking URI. run_id: the search's parent run. The others: see `model_item`.
    Returns:
        The version's number.
    Raises:
        ValueError: there is no run to log it with.
        Exception: whatever the weights' storage, MLflow's store, a driver or a plugin raises.
    """
    if run_id is None:
        raise ValueError("a model must belong to a run of MLflow, got none; send the search's runs first")
    for variable, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    client, experiment_id = open_experiment(uri, f"{protocol['model']}-{protocol['dataset']}")
    state = read_bytes(weights)
    digest = hashlib.sha256(state).hexdigest()
    kept = {
        **tags,
        "protocol": protocol_hash(protocol),
        "valid_accuracy": repr(valid_accuracy),
        "is_reduced": str(is_reduced).lower(),
        "weights_sha256": digest,
    }
    known = [found for found in client.search_model_versions(f"run_id = '{run_id}'") if found.name == name]
    number = next((str(found.version) for found in known if found.tags.get("weights_sha256") == digest), None)
    if number is None:
        model_id = _log(client, experiment_id, run_id, name, state, digest, protocol, data_root, hyper_parameters)
        # A server finds the model by its id. A database's client would look for the id at the process's global URI.
        is_server = uri.startswith(("http://", "https://", "databricks"))
        source = f"models:/{model_id}" if is_server else client.get_logged_model(model_id).artifact_location
        number = _register(client, name, source, model_id, run_id, kept)
    holder = _holder(client, name)
    if takes_alias(kept, None if holder is None else holder.tags):
        client.set_registered_model_alias(name, ALIAS, number)
    return number


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Name a protocol: equal exactly where results compare."""
    return hashlib.sha256(json.dumps(dict(protocol), sort_keys=True).encode()).hexdigest()[:16]


def takes_alias(new: Mapping[str, str], holder: Mapping[str, str] | None) -> bool:
    """Decide whether a version takes the alias `best` from its holder: only with a better result of the same protocol.

    A quick look holds it only until the first whole search.
    """
    if holder is None:
        return True
    if holder.get("is_reduced") == "true" and new["is_reduced"] == "false":
        return True
    return new["protocol"] == holder.get("protocol") and float(new["valid_accuracy"]) > float(holder["valid_accuracy"])


def _log(
    client: Any,
    experiment_id: str,
    run_id: str,
    name: str,
    state: bytes,
    digest: str,
    protocol: Mapping[str, Any],
    data_root: str,
    hyper_parameters: Mapping[str, Any],
) -> str:
    """Log the model unless it is there. Returns its id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    logged = client.search_logged_models([experiment_id], filter_string=f"tags.weights_sha256 = '{digest}'")
    for found in (found for found in logged if found.source_run_id == run_id):
        if found.status == LoggedModelStatus.READY:
            return str(found.model_id)
        client.delete_logged_model(found.model_id)  # a process before this one did not get to its end
    with tempfile.TemporaryDirectory() as folder:
        model = client.create_logged_model(
            experiment_id,
            name=name,
            source_run_id=run_id,
            tags={"weights_sha256": digest},
            params={key: str(value) for key, value in {**protocol, **params(hyper_parameters)}.items()},
        )
        _save(Path(folder), model, run_id, state, protocol, data_root, hyper_parameters)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _save(
    folder: Path,
    logged: Any,
    run_id: str,
    state: bytes,
    protocol: Mapping[str, Any],
    data_root: str,
    hyper_parameters: Mapping[str, Any],
) -> None:
    """Write MLflow's model folder as `folder`/model."""
    import mlflow.pytorch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = example_images(protocol, data_root).numpy()
    dataset = DATASETS[protocol["dataset"]]
    specs = [TensorSpec(example.dtype, (-1, *example.shape[1:])), TensorSpec(example.dtype, (-1, dataset.num_classes))]
    (folder / "weights.pt").write_bytes(state)
    metadata = {"protocol": dict(protocol), "hyper_parameters": dict(hyper_parameters)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            build_trained(protocol, weights_of(state)),
            str(folder / "model"),
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                run_id=run_id,
                metadata=json.loads(json.dumps(metadata)),  # YAML would write tuples as Python objects
            ),
            signature=ModelSignature(inputs=Schema([specs[0]]), outputs=Schema([specs[1]])),
            input_example=example,
            extra_files=[str(folder / "weights.pt")],
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
            serialization_format="pt2",
        )


def build_trained(protocol: Mapping[str, Any], weights: Mapping[str, Tensor]) -> torch.nn.Module:
    """Build a protocol's model with these weights, on the CPU, in eval mode."""
    dataset = DATASETS[protocol["dataset"]]
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, and replaced
        model = build_model(
            protocol["model"],
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            image_size=dataset.image_size,
        )
    model.load_state_dict(dict(weights))
    return model.eval()


def example_images(protocol: Mapping[str, Any], data_root: str) -> Tensor:
    """Give the first images that were held out for validation, (EXAMPLES, C, H, W), as the model sees them."""
    _, valid, _ = DATASETS[protocol["dataset"]].get_dataloaders(
        valid_split=protocol["valid_split"],
        split_seed=protocol["split_seed"],
        test_batch_size=EXAMPLES,
        dataset_root_path=data_root,
    )
    images, _ = next(iter(valid))
    return images[:EXAMPLES]


def _register(client: Any, name: str, source: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(name, source, run_id=run_id, tags=dict(tags), model_id=model_id)
    return str(made.version)


def _holder(client: Any, name: str) -> Any:
    """The version that has the alias; None where none has."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise
        return None
