"""cluster/gcp.yaml against Google's own schema of a machine, which google-api-python-client ships."""

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Prepared = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    document = files("googleapiclient.discovery_cache") / "documents/compute.v1.json"
    return dict(json.loads(document.read_text())["schemas"])


def mistakes(value: Any, schema: dict[str, Any], schemas: dict[str, Any], path: str = "") -> Iterator[str]:
    """What the schema does not know in a value: fields, types, enumerated values."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    if not isinstance(value, kinds[schema["type"]]):
        # int64 travels as a string; Google takes a number as well
        if not (schema.get("format") == "int64" and isinstance(value, int)):
            yield f"{path}: {value!r} is no {schema['type']}"
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in schema.get("properties", {}):
                yield from mistakes(item, schema["properties"][key], schemas, f"{path}/{key}")
            else:
                yield f"{path}: no field {key}"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from mistakes(item, schema["items"], schemas, f"{path}/{number}")
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"


def test_machines_have_the_shape_of_an_instance(prepared: Prepared, schemas: dict[str, Any]) -> None:
    for name, node in prepared("gcp.yaml")["available_node_types"].items():
        assert list(mistakes(node["node_config"], {"$ref": "Instance"}, schemas, name)) == []


def test_the_check_finds_mistakes(schemas: dict[str, Any]) -> None:
    wrong = {
        "scheduling": [{"preemptible": True}],
        "machine_type": "g2-standard-4",
        "disks": [{"type": "SSD", "boot": "yes"}],
    }
    found = "\n".join(mistakes(wrong, {"$ref": "Instance"}, schemas))
    assert all(text in found for text in ("/scheduling", "no field machine_type", "/disks/0/type", "/disks/0/boot"))


def test_workers_are_spot_and_every_machine_has_its_own_account(prepared: Prepared) -> None:
    config = prepared("gcp.yaml")
    for name, node in config["available_node_types"].items():
        machine, kind = node["node_config"], "head" if name == "head" else "worker"
        (account,) = machine["serviceAccounts"]
        project = config["provider"]["project_id"]
        assert account["email"] == f"tune-adamsrt-{kind}@{project}.iam.gserviceaccount.com"
        spot = machine.get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert spot == (kind == "worker" and not name.endswith("_on_demand"))
        assert name == "head" or machine["scheduling"]["onHostMaintenance"] == "TERMINATE"  # GPUs cannot move
        if spot:
            assert machine["scheduling"]["instanceTerminationAction"] == "DELETE"
            assert machine["scheduling"]["automaticRestart"] is False


def test_names_are_ones_that_google_takes(prepared: Prepared) -> None:
    """Labels of machines: Ray writes the names of the cluster and of its node types into them."""
    config = prepared("gcp.yaml")
    for name in (config["cluster_name"], *config["available_node_types"]):
        assert re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name)


def test_packages_of_the_head_are_pinned(prepared: Prepared) -> None:
    (line,) = [line for line in prepared("gcp.yaml")["head_setup_commands"] if "pip install" in line]
    packages = [word for word in line.split() if word.startswith("google")]
    assert len(packages) == 2 and all(re.fullmatch(r"[a-z-]+==[\d.]+", package) for package in packages)
