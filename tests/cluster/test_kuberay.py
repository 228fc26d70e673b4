"""cluster/kuberay.yaml: Kubernetes' own schemas, Ray's own reading of a RayCluster, and the rules of this project.

KubeRay's own definitions (its CRDs) come with no package that is installed here, and are close to a megabyte each.
`KUBERAY` below stands in for them: the fields that the file uses and no others. So a misspelt or misplaced field and a
wrong type are found; a field that is not listed is refused until somebody looks it up and adds it. The pods inside are
checked against Kubernetes' schemas.

The list was compared by hand with KubeRay's own, of ray.io/v1, in ray-project/kuberay: with the CRD of RayClusters
(helm-chart/kuberay-operator/crds at commit 017710c, which has the token of 1.6); for RayJobs with the CRD at 037e91b
and, for submissionMode, with rayjob_types.go at 0057210. Every name, place, type and required field agrees. Three are
narrower here: serviceType and submissionMode, plain text there, have their known values, and counts are not negative.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.37"


def fields(required: tuple[str, ...] = (), **known: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}  # numbers must be quoted
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
POD = fields(("spec",), metadata={"type": "object"}, spec={"type": "object"})
META = fields(("name",), name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63})
HEAD = fields(
    ("template",),
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=TEXTS,
    template=POD,
)
WORKERS = fields(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName={"type": "string"},
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion={"type": "string"},
    authOptions=fields(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=fields(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=COUNT),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB = fields(
    clusterSelector=TEXTS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypoint={"type": "string"},
)
KUBERAY = {
    kind: fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=META,
        spec=spec,
    )
    for kind, spec in (("RayCluster", CLUSTER), ("RayJob", JOB))
}


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster/kuberay.yaml").read_text()))


def document(kind: str) -> dict[str, Any]:
    (found,) = [item for item in documents() if item["kind"] == kind]
    return found


def pod_templates() -> dict[str, dict[str, Any]]:
    cluster = document("RayCluster")["spec"]
    groups = {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}
    return {name: group["template"] for name, group in groups.items()}


@pytest.mark.parametrize("item", documents(), ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_objects_of_kubernetes_are_valid(item: dict[str, Any]) -> None:
    if item["apiVersion"].startswith("ray.io/"):
        jsonschema.Draft202012Validator(KUBERAY[item["kind"]]).validate(item)
        return
    kubernetes_validate.validate(item, KUBERNETES, strict=True)


def misspell(item: dict[str, Any], old: str, new: str) -> None:
    item[new] = item.pop(old)


MISTAKES: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "a misspelt field": ("RayCluster", lambda spec: misspell(spec, "workerGroupSpecs", "workerGroupSpec")),
    "a field in the wrong place": ("RayCluster", lambda spec: spec.update(idleTimeoutSeconds=300)),
    "no head": ("RayCluster", lambda spec: spec.pop("headGroupSpec")),
    "a number among start parameters": (
        "RayCluster",
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ),
    "a text for a count": ("RayCluster", lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="8")),
    "an unknown way to authenticate": ("RayCluster", lambda spec: spec["authOptions"].update(mode="Token")),
    "a misspelt selector": ("RayJob", lambda spec: misspell(spec, "clusterSelector", "clusterSelectors")),
    "an unknown way to submit": ("RayJob", lambda spec: spec.update(submissionMode="JobMode")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_ray_objects_are_found(mistake: str) -> None:
    kind, make = MISTAKES[mistake]
    item = copy.deepcopy(document(kind))
    jsonschema.validate(item, KUBERAY[kind])
    make(item["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(item, KUBERAY[kind])


@pytest.mark.parametrize("name", pod_templates())
def test_pods_of_the_cluster_are_valid(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **pod_templates()[name]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    broken = {**pod, "spec": {**pod["spec"], "restartpolicy": "Never"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_ray_reads_gpus_and_limits_from_it() -> None:
    cluster = document("RayCluster")
    cluster["metadata"]["namespace"] = "default"  # kubectl fills it in
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0 and "GPU" not in head["resources"]  # no trials on the head
    assert {name: node["resources"]["GPU"] for name, node in types.items()} == {"gpu-1": 1, "gpu-4": 4}
    assert all(node["min_workers"] == 0 and node["max_workers"] > 0 for node in types.values())
    assert config["idle_timeout_minutes"] == 5


def test_every_pod_authenticates_by_token() -> None:
    spec = document("RayCluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}  # the operator sets RAY_AUTH_MODE and the token on every pod
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    assert all(template["spec"]["restartPolicy"] == "Never" for template in pod_templates().values())
    assert not any(item["kind"] == "Secret" for item in documents())


def test_mlflow_is_reached_from_the_cluster_only() -> None:
    service = document("Service")
    assert service["spec"]["type"] == "ClusterIP"
    policy = document("NetworkPolicy")["spec"]
    pods = document("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == service["spec"]["selector"] == pods
    (rule,) = policy["ingress"]
    cluster = document("RayCluster")["metadata"]["name"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"ray.io/cluster": cluster}}}]
    (container,) = document("Deployment")["spec"]["template"]["spec"]["containers"]
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    allowed = container["args"][container["args"].index("--allowed-hosts") + 1].split(",")
    assert is_allowed_host_header(allowed, address)  # MLflow's own rule
    assert is_allowed_host_header(allowed, "localhost:5000")  # kubectl port-forward
    assert not is_allowed_host_header(allowed, "elsewhere.example:5000")
    (head,) = pod_templates()["head"]["spec"]["containers"]
    assert {"name": "MLFLOW_TRACKING_URI", "value": f"http://{address}"} in head["env"]


def test_names_agree() -> None:
    cluster, job = document("RayCluster"), document("RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    claims = {item["metadata"]["name"] for item in documents() if item["kind"] == "PersistentVolumeClaim"}
    pods = [*pod_templates().values(), document("Deployment")["spec"]["template"]]
    volumes = [volume for pod in pods for volume in pod["spec"]["volumes"]]
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes} == claims
    assert len({container["image"] for pod in pods for container in pod["spec"]["containers"]}) == 1
