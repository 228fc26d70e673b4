"""A Ray cluster of several nodes on this machine, whose parts can be killed."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

# Without these each node would claim the whole machine.
SIZES = {"num_cpus": 1, "memory": 2 * 1024**3, "object_store_memory": 80 * 1024**2}
# A killed node refuses to answer, and is noticed after three checks; one on a busy machine answers late.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 10000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A head, and workers that can be killed, with one CPU each."""

    def __init__(self, workers: int) -> None:
        head = {"include_dashboard": False, "_system_config": HEALTH_CHECKS}
        self._cluster = Cluster(initialize_head=True, head_node_args=head | SIZES)
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, **environment: str) -> Any:
        """Start a node and wait until the cluster knows it. From the main thread only."""
        return self._cluster.add_node(env_vars=environment or None, **SIZES)

    def kill(self, node: Any) -> None:
        """SIGKILL for everything that runs on a node."""
        self._cluster.remove_node(node, allow_graceful=False)

    def of_process(self, pid: int) -> Any:
        """The node that a worker process belongs to; None where that is the head, or nobody's any more."""
        raylet = _parent(pid)
        return next((node for node in self._cluster.worker_nodes if raylet_pid(node) == raylet), None)

    def at_random(self, chance: random.Random) -> Any:
        """One of the workers."""
        return chance.choice(sorted(self._cluster.worker_nodes, key=lambda node: str(node.node_id)))

    def trial_processes(self) -> list[int]:
        """Ids of the processes that train, on all nodes."""
        raylets = {raylet_pid(node) for node in (self._cluster.head_node, *self._cluster.worker_nodes)}
        pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
        return sorted(pid for pid in pids if _parent(pid) in raylets and b"Trainable" in _command(pid))

    @property
    def workers(self) -> int:
        return len(self._cluster.worker_nodes)

    def shut_down(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def raylet_pid(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def kill_process(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _parent(pid) is None)


def _parent(pid: int) -> int | None:
    """Id of the parent of a process; None where the process is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(node_id: str) -> bool:
    return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id)


def draining() -> set[str]:
    """Ids of the nodes that are about to leave."""
    worker: Any = ray._private.worker.global_worker
    return set(worker.gcs_client.get_draining_nodes(timeout=5))


def wait_until(is_so: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
