"""Where a search runs: a Ray cluster that exists, or one started on this machine; CPUs and GPUs per trial."""

import contextlib
import logging
import math
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

import adamsrt
import tune_adamsrt
from tune_adamsrt.cluster.loopback import on_this_machine_only
from tune_adamsrt.cluster.nodes import Cluster, Node, NodeType, look_at_cluster

# Read by Ray when it starts or connects.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # results go to the study and MLflow instead
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output engine prints its banner at any verbosity
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's announced default; silences its warning
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

CONNECT_TIMEOUT_S = 10.0
LOCAL_OBJECT_STORE_BYTES = 200 * 1024**2  # trials pass a few numbers an epoch through it, no tensors


@dataclass(frozen=True)
class TrialResources:
    """What one trial occupies. GPUs may be a fraction below 1, or a whole number."""

    cpus: float
    gpus: float

    def __post_init__(self) -> None:
        if not self.cpus > 0:
            raise ValueError(f"cpus per trial must be > 0, got {self.cpus}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"gpus per trial must be a fraction up to 1 or a whole number, got {self.gpus}")

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def for_tune(self) -> dict[str, float]:
        return {"cpu": self.cpus, "gpu": self.gpus}

    def per_node(self, node: Mapping[str, float]) -> int:
        """How many trials fit on a node with these resources."""
        by_cpu = math.floor(node.get("CPU", 0) / self.cpus + 1e-9)
        return min(by_cpu, math.floor(node.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else by_cpu

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")


def connect(address: str | None) -> None:
    """Connect to a Ray cluster, or start one on this machine.

    Args:
        address: "auto", "host:port"; None for RAY_ADDRESS, else the cluster that `ray start` left
            running on this machine, else a new local one; "local" always starts a new one.
    Raises:
        ConnectionError: no cluster answers at that address, or none can be started.
        ValueError: ray://, Ray's client, which would run Tune in another process than the study.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "ignore_reinit_error": True}
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hush_ray()
    address = address or os.environ.get("RAY_ADDRESS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address == "local" or (address is None and _started_cluster() is None):
            _start_here(quiet)
            return
        # This code goes along: the cluster's nodes need the packages it uses, and not this very version of it.
        packages = [str(Path(module.__file__).parent) for module in (adamsrt, tune_adamsrt) if module.__file__]
        quiet["runtime_env"] = {"py_modules": packages}
        if address is None:
            ray.init(**quiet)  # Ray finds the same cluster, and uses this machine's token for no address but its own
            return
        if address.startswith("ray://"):
            raise ValueError(
                f"--address must be auto or HOST:PORT, got {address}; run the search on a cluster's machine"
            )
        _check_answers(address)
        try:
            with _without_stderr():
                ray.init(address=address, **quiet)
        except (ConnectionError, RayError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConnectionError(
                f"the Ray cluster at {address} must let this search in, got {reason}; it must run the same versions of "
                "Ray and Python, and if it asks for a token, set RAY_AUTH_MODE=token"
            ) from None


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep what is written to stderr, also by code that is not Python's, off the terminal while this is open.

    Ray logs there every second that a cluster does not let it in, and raises what it comes to in the end.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def hush_ray() -> None:
    """Keep pages of Ray's own log of lost nodes and workers off the terminal: `Checkpoints` tells in a line."""
    worker: Any = ray._private.worker
    worker.print_to_stdstream = lambda data, ignore_prefix: None


def _start_here(quiet: dict[str, Any]) -> None:
    """Start Ray on this machine. Raises ConnectionError where it does not come up."""
    try:
        with on_this_machine_only():
            ray.init(address="local", include_dashboard=False, object_store_memory=LOCAL_OBJECT_STORE_BYTES, **quiet)
    except Exception as error:  # Ray raises bare ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"Ray must start on this machine, got {reason}; try again when it has less to do"
        ) from None


def _check_answers(address: str) -> None:
    """Raise ConnectionError at once where nothing listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"a Ray cluster must answer at {address}, got {error.strerror or error}; start one with "
            "`ray start --head`, or leave --address and RAY_ADDRESS out to run on this machine"
        ) from None


def _started_cluster() -> str | None:
    """The address of the cluster that `ray start` left running here; another search's private one does not count."""
    from ray._private.services import find_gcs_addresses
    from ray._private.utils import read_ray_address

    address: str | None = read_ray_address()
    return address if address in find_gcs_addresses() else None


def choose_trial_resources(
    *, cpus: float | None, gpus: float | None, default_cpus: float, default_gpus: float
) -> TrialResources:
    """Choose what a trial asks for: the options, else the setting's defaults, GPUs only where the cluster has any.

    What its autoscaler may yet start counts as well.

    Raises:
        ValueError: no node of the cluster could ever hold such a trial.
    """
    cluster = look_at_cluster()
    resources = TrialResources(
        cpus=default_cpus if cpus is None else cpus,
        gpus=(default_gpus if cluster.has("GPU") else 0.0) if gpus is None else gpus,
    )
    if cluster.slots(resources.per_node) < 1:
        raise ValueError(
            f"a trial must fit on one node, got a request for {resources}, while {_largest(cluster)}; "
            "lower --cpus-per-trial or --gpus-per-trial"
        )
    return resources


def _largest(cluster: Cluster) -> str:
    def size(item: Node | NodeType) -> tuple[float, float]:
        return item.resources.get("GPU", 0), item.resources.get("CPU", 0)

    live = size(max(cluster.nodes, key=size))
    text = f"the largest node has {live[1]:g} CPU and {live[0]:g} GPU"
    if types := [node_type for node_type, _ in cluster.more()]:
        largest = max(types, key=size)
        text += f", the largest that may come ({largest.name}) {size(largest)[1]:g} CPU and {size(largest)[0]:g} GPU"
    return text


def count_slots(resources: TrialResources) -> int:
    """How many trials fit on the cluster side by side, on the nodes that are up and those that may come."""
    return look_at_cluster().slots(resources.per_node)


def describe_cluster() -> str:
    """Describe what the cluster has, for the heading: `1 node, 16 CPU, 1 GPU (H200)`."""
    return look_at_cluster().describe()
