"""What the autoscaler may add, as its configurations say."""

from pathlib import Path

import yaml

from tune_adamsrt.cluster.nodes import Cluster, Node, NodeType, autoscaling_of, types_of

ROOT = Path(__file__).parents[2]
HEAD = Node("h", "10.0.0.1", {"node:__internal_head__": 1.0, "CPU": 8.0})


def test_kubernetes_groups_are_types_where_the_cluster_scales():
    documents = yaml.safe_load_all((ROOT / "cluster/kuberay.yaml").read_text())
    [ray_cluster] = [document for document in documents if document["kind"] == "RayCluster"]
    ray_cluster["metadata"]["namespace"] = "default"  # Kubernetes fills it in
    config = autoscaling_of(ray_cluster)
    found = {kind.name: (kind.resources["GPU"], kind.max_nodes) for kind in types_of(config) if kind.max_nodes}
    groups = ray_cluster["spec"]["workerGroupSpecs"]
    assert {name: count for name, (_, count) in found.items()} == {g["groupName"]: g["maxReplicas"] for g in groups}
    assert {name: gpus for name, (gpus, _) in found.items()} == {"gpu-1": 1.0, "gpu-4": 4.0}
    assert autoscaling_of({**ray_cluster, "spec": {**ray_cluster["spec"], "enableInTreeAutoscaling": False}}) is None


def test_a_type_of_heads_that_are_workers_too_may_come():
    """Machines of one's own have one type for all, whose sizes Ray finds out on the machines."""
    kinds = {"any": {"resources": {"CPU": 8}, "max_workers": 3}, "unknown": {"resources": {}, "max_workers": 3}}
    types = types_of({"available_node_types": kinds, "head_node_type": "any", "max_workers": 2})
    cluster = Cluster((HEAD,), types, 2)
    assert [(kind.name, count) for kind, count in cluster.more()] == [("any", 2)]
    kinds["any"]["max_workers"] = 0
    types = types_of({"available_node_types": kinds, "head_node_type": "any", "max_workers": 2})
    assert Cluster((HEAD,), types, 2).describe() == "1 node, 8 CPU"


def test_without_an_autoscaler_there_is_what_there_is():
    gpus = Node("g", "10.0.0.2", {"CPU": 16.0, "GPU": 2.0, "accelerator_type:H200": 1.0})
    cluster = Cluster((HEAD, gpus))
    assert cluster.describe() == "2 nodes, 24 CPU, 2 GPU (H200)"
    assert cluster.slots(lambda node: int(node.get("GPU", 0))) == 2
    assert (list(cluster.more()), cluster.room, cluster.has("GPU"), cluster.has("TPU")) == ([], 0, True, False)


def test_more_workers_than_the_ceiling_leave_no_room():
    up = tuple(Node(str(n), f"10.0.0.{n}", {"CPU": 4.0}, type_name="a") for n in range(3))
    assert Cluster((HEAD, *up), (NodeType("b", {"CPU": 4.0}, 5),), 2).room == 0
