"""A Ray cluster on this machine whose autoscaler starts nodes, and a cloud that may refuse them."""

import json
import socket
from pathlib import Path
from typing import Any

import ray
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE
from ray.cluster_utils import Cluster

SMALL = {"object_store_memory": 80 * 1024**2}
# Of the autoscaler and of the nodes that it starts, which are its children.
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "PYTHONPATH": str(Path(__file__).parent),
    "OMP_NUM_THREADS": "1",
}


class Cloud(FakeMultiNodeProvider):
    """Starts nodes as processes. A type that has a file in the folder `refused` is not to be had."""

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: Any, labels: Any
    ) -> None:
        if Path(self.provider_config["refused"], tags[TAG_RAY_USER_NODE_TYPE]).exists():
            raise NodeLaunchException("InsufficientInstanceCapacity", "there is none", None)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


class ScalingCluster:
    """A head without CPUs. `types` are as in a file of `ray up`; ENVIRONMENT must be set."""

    def __init__(self, folder: Path, types: dict[str, Any], *, max_workers: int) -> None:
        self.refused = folder / "refused"
        self.refused.mkdir()
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        provider = {
            "type": "external",
            "module": "scaling_cluster.Cloud",
            "refused": str(self.refused),
            "gcs_address": f"{get_node_ip_address()}:{port}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        head = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
        for node_type in types.values():
            node_type["resources"] |= SMALL
            node_type["node_config"] = {}
        config = BASE_READONLY_CONFIG | {
            "max_workers": max_workers,
            "idle_timeout_minutes": 0.1,
            "provider": provider,
            "available_node_types": head | types,
        }
        (folder / "cluster.yaml").write_text(json.dumps(config))
        environment = {
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        }
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args=SMALL
            | {
                "gcs_server_port": port,
                "num_cpus": 0,
                "include_dashboard": False,
                "autoscaling_config": str(folder / "cluster.yaml"),
                "env_vars": environment,
            },
        )
        self.address = str(self._cluster.address)

    def add(self, **environment: str) -> str:
        """Start a node by hand, as `ray start` does, and give its id. From the main thread only."""
        node = self._cluster.add_node(num_cpus=1, env_vars=environment, **SMALL)
        return str(node.node_id)

    def shut_down(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()
        import psutil  # type: ignore[import-untyped]  # Ray brings it along, and a path to it

        for process in psutil.process_iter(["cmdline"]):  # of the nodes that the autoscaler has started
            if f"--gcs-address={self.address}" in (process.info["cmdline"] or []):
                process.kill()
