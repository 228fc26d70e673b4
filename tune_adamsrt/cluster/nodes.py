"""What a Ray cluster has, and what its autoscaler may add: live nodes, and node types with their ceilings.

Ray's autoscaler tells nobody its node types: its own place for them in the GCS stays empty. They are read where it
reads them itself: in the file that the head was started with (`ray up`), or in the RayCluster (KubeRay).
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEAD_RESOURCE = "node:__internal_head__"
ON_DEMAND = "on_demand"  # a type that offers it is started by `tune_adamsrt.cluster.on_demand` alone, never for trials
READ_TIMEOUT_S = 20.0
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Node:
    """A live node. `type_name` is "" where no autoscaler has started it."""

    node_id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    type_name: str = ""

    @property
    def is_head(self) -> bool:
        return HEAD_RESOURCE in self.resources

    @property
    def is_on_demand(self) -> bool:
        return self.resources.get(ON_DEMAND, 0) > 0


@dataclass(frozen=True)
class NodeType:
    """A kind of worker that the autoscaler may start, at most `max_nodes` of them at a time."""

    name: str
    resources: Mapping[str, float]
    max_nodes: int
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_on_demand(self) -> bool:
        return self.resources.get(ON_DEMAND, 0) > 0


@dataclass(frozen=True)
class Cluster:
    """What there is, and what can come.

    Attributes:
        types: without an autoscaler none.
        max_workers: at a time, of all types together, those that are up included.
    """

    nodes: tuple[Node, ...]
    types: tuple[NodeType, ...] = ()
    max_workers: int = 0

    def more(self) -> Iterator[tuple[NodeType, int]]:
        """How many nodes may come of each type that is started for trials, the smallest first, as Ray chooses."""
        room = self.max_workers - sum(not node.is_head for node in self.nodes)
        for node_type in sorted(self.types, key=_size):
            count = min(room, node_type.max_nodes - sum(_is_of(node, node_type) for node in self.nodes))
            if count > 0 and node_type.resources.get("CPU") and not node_type.is_on_demand:
                yield node_type, count

    @property
    def room(self) -> int:
        """How many nodes may come in all."""
        return max(0, min(self.max_workers - sum(not n.is_head for n in self.nodes), sum(c for _, c in self.more())))

    def slots(self, per_node: Callable[[Mapping[str, float]], int]) -> int:
        """How many trials fit side by side, on what there is and what may come.

        Args:
            per_node: how many fit on a node with these resources.
        """
        slots, room = sum(per_node(node.resources) for node in self.nodes), self.room
        for node_type, count in self.more():
            if fit := per_node(node_type.resources):
                slots += fit * min(room, count)
                room -= min(room, count)
        return slots

    def has(self, resource: str) -> bool:
        """Whether any node, live or possible, offers a resource."""
        live: Sequence[Node | NodeType] = self.nodes
        return any(item.resources.get(resource, 0) > 0 for item in (*live, *(kind for kind, _ in self.more())))

    def describe(self) -> str:
        """Describe it for a heading: `1 node, 4 CPU; up to 8 more: gpu_1 (4 CPU, 1 GPU)`."""
        total = {name: sum(node.resources.get(name, 0) for node in self.nodes) for name in ("CPU", "GPU")}
        names = {name for node in self.nodes for name in node.resources}
        kinds = sorted(name.removeprefix("accelerator_type:") for name in names if name.startswith("accelerator_type:"))
        parts = [f"{len(self.nodes)} node" + ("s" if len(self.nodes) != 1 else ""), f"{total['CPU']:g} CPU"]
        if total["GPU"]:
            parts.append(f"{total['GPU']:g} GPU" + (f" ({', '.join(kinds)})" if kinds else ""))
        more = ", ".join(f"{kind.name} ({describe_size(kind.resources)})" for kind, _ in self.more())
        return ", ".join(parts) + (f"; up to {self.room} more: {more}" if self.room else "")


def describe_size(resources: Mapping[str, float]) -> str:
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "")


def _size(item: Node | NodeType) -> tuple[float, float]:
    return item.resources.get("GPU", 0), item.resources.get("CPU", 0)


def _is_of(node: Node, node_type: NodeType) -> bool:
    if node.type_name:
        return node.type_name == node_type.name
    # Ray's older autoscaler does not name the types of its nodes.
    same_market = node.is_on_demand == node_type.is_on_demand
    return not node.is_head and same_market and _size(node) == _size(node_type)


def live_nodes() -> tuple[Node, ...]:
    """The nodes that are up, asked from the head: about 1 ms."""
    names = _type_names()
    return tuple(
        Node(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            resources=node["Resources"],
            labels=node["Labels"],
            type_name=names.get(node["NodeID"], ""),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def look_at_cluster() -> Cluster:
    """What the cluster has now, and what its autoscaler may add by the configuration that it had when first asked."""
    nodes = live_nodes()
    config = _autoscaler_config(ray.get_runtime_context().gcs_address)
    if config is None:
        return Cluster(nodes)
    return Cluster(nodes, types_of(config), int(config.get("max_workers", 0)))


def send_away(node_id: str, why: str, *, deadline_s: float) -> None:
    """Let nothing new start on a node. What runs there moves at its epoch's end, and then Ray on that node ends."""
    from ray.core.generated import autoscaler_pb2

    worker: Any = ray._private.worker.global_worker
    messages: Any = autoscaler_pb2
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    worker.gcs_client.drain_node(node_id, reason, why, int(1000 * (time.time() + deadline_s)))


def end_node(node_id: str) -> None:
    """End Ray on a node now, and with it what runs there."""
    worker: Any = ray._private.worker.global_worker
    worker.gcs_client.drain_nodes([bytes.fromhex(node_id)], timeout=10)


def types_of(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """The types of workers in a configuration of the autoscaler, as its file has them after `ray up`."""
    return tuple(
        NodeType(
            name=name,
            resources={key: float(value) for key, value in kind.get("resources", {}).items()},
            max_nodes=int(kind.get("max_workers", config.get("max_workers", 0))),
            labels=kind.get("labels", {}),
        )
        for name, kind in config["available_node_types"].items()
    )


def _type_names() -> dict[str, str]:
    """Node id -> name of its type, as the autoscaler gave it; nothing where it gave none."""
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    try:
        worker: Any = ray._private.worker.global_worker
        states = get_cluster_resource_state(worker.gcs_client).node_states
    except Exception:  # Ray raises bare ones; the sizes of nodes then tell the types
        return {}
    return {state.node_id.hex(): state.ray_node_type_name for state in states}


@functools.cache
def _autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """The configuration of the cluster's autoscaler, from its head; None where it has none, or the head is silent."""
    heads = [node for node in live_nodes() if node.is_head]
    if not heads or ray.get_runtime_context().get_node_id() == heads[0].node_id:
        return read_autoscaler_config(gcs_address)
    there = NodeAffinitySchedulingStrategy(heads[0].node_id, soft=False)
    task = ray.remote(read_autoscaler_config).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        config: dict[str, Any] | None = ray.get(task.remote(gcs_address), timeout=READ_TIMEOUT_S)
        return config
    except (RayError, TimeoutError):
        return None


def read_autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """Read on the head what its autoscaler reads: its file, or the RayCluster; None where nothing scales."""
    import psutil  # type: ignore[import-untyped]  # Ray brings it along
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        options = dict(part[2:].split("=", 1) for part in line if part.startswith("--") and "=" in part)
        if options.get("gcs-address") == gcs_address and "autoscaling-config" in options:
            try:
                config: dict[str, Any] = yaml.safe_load(Path(options["autoscaling-config"]).expanduser().read_text())
            except (OSError, yaml.YAMLError):
                return None
            return config
    return _read_ray_cluster()


def _read_ray_cluster() -> dict[str, Any] | None:
    """On Kubernetes the autoscaler runs beside the head and reads the RayCluster, as the head's account may too."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config as kuberay

    try:
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
        producer = kuberay.AutoscalingConfigProducer(name, namespace)
        ray_cluster = producer.kubernetes_api_client.get(producer._ray_cr_path)
        return autoscaling_of(ray_cluster)
    except Exception:  # no rights, no answer: as without an autoscaler
        return None


def autoscaling_of(ray_cluster: dict[str, Any]) -> dict[str, Any] | None:
    """The autoscaler's configuration that a RayCluster stands for; None where it does not scale."""
    from ray.autoscaler._private.kuberay import autoscaling_config as kuberay

    if not ray_cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    config: dict[str, Any] = kuberay._derive_autoscaling_config_from_ray_cr(ray_cluster)
    return config
