"""Watches the cluster while a search runs on it: nodes that come are checked, and refused spot nodes made up for."""

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_adamsrt.cluster.nodes import ON_DEMAND, Cluster, NodeType, end_node, look_at_cluster, send_away
from tune_adamsrt.cluster.on_demand import MOVE_WITHIN_S, Fallback, Money, Seen, least_usd
from tune_adamsrt.cluster.versions import NewNodes, check_versions
from tune_adamsrt.resources import TrialResources

LOOK_EVERY_S = 5.0
LEASE_S = 60.0
PRICE = "usd-per-hour"


@contextlib.contextmanager
def watched(
    resources: TrialResources,
    note: Callable[[str], None],
    *,
    on_demand_after_s: float,
    max_on_demand_cost: float | None,
    kept: Path,
    every_s: float = LOOK_EVERY_S,
) -> Iterator[None]:
    """Watch the cluster from a thread. On a cluster that this process has started itself there is nothing to watch.

    Args:
        max_on_demand_cost: USD; None where no on-demand node may be asked for.
        kept: the file that keeps what they have cost.
    """
    if is_private():
        yield
        return
    cluster = look_at_cluster()
    new_nodes = NewNodes((), note)  # all once more: one that did not answer before may do so now
    on_demand = None
    if max_on_demand_cost is not None:
        on_demand = OnDemand(cluster, resources, on_demand_after_s, max_on_demand_cost, kept, note)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(every_s):
            with contextlib.suppress(Exception):  # a head that does not answer for a moment; Ray raises bare ones
                seen = look_at_cluster()
                new_nodes.look(node for node in seen.nodes if resources.per_node(node.resources))
                if on_demand is not None:
                    on_demand.look(seen)

    thread = threading.Thread(target=look, name="watching", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * LOOK_EVERY_S)
        if on_demand is not None:
            with contextlib.suppress(Exception):
                on_demand.close()


def is_private() -> bool:
    """Whether this process has started the cluster itself, so that nobody else adds nodes to it."""
    worker: Any = ray._private.worker
    return bool(worker._global_node.is_head())


def check_cluster(resources: TrialResources, max_on_demand_cost: float | None) -> None:
    """Check the nodes that may get trials, and that there is something to buy. Raises ValueError in one line."""
    if max_on_demand_cost is not None:
        check_on_demand(resources, max_on_demand_cost)
    if not is_private():
        check_versions(node for node in look_at_cluster().nodes if resources.per_node(node.resources))


def check_on_demand(resources: TrialResources, max_usd: float) -> None:
    """Raise ValueError where the cluster has no on-demand type that holds a trial, or the money buys none of it."""
    kind = on_demand_type(look_at_cluster(), resources)
    if kind is None:
        raise ValueError(
            f"--max-on-demand-cost must find a node type that holds a trial of {resources}, with the resource "
            f"{ON_DEMAND} and its price as the label {PRICE}, got none; see cluster/gpu.yaml, or leave the option out"
        )
    least = least_usd(price_of(kind.labels) or 0.0)
    if max_usd < least:
        shown = math.ceil(100 * least - 1e-9) / 100
        raise ValueError(
            f"--max-on-demand-cost must be at least {shown:.2f}, which buys half an hour of one {kind.name}, "
            f"got {max_usd:g}"
        )


def on_demand_type(cluster: Cluster, resources: TrialResources) -> NodeType | None:
    """The cheapest on-demand type that holds a trial."""
    types = [kind for kind in cluster.types if kind.is_on_demand and kind.max_nodes and price_of(kind.labels)]
    fitting = [kind for kind in types if resources.per_node(kind.resources)]
    return min(fitting, key=lambda kind: price_of(kind.labels) or 0.0, default=None)


def price_of(labels: Mapping[str, str]) -> float | None:
    """USD per hour; None where nobody has said it."""
    try:
        price = float(labels.get(PRICE, ""))
    except ValueError:
        return None
    return price if 0 < price < math.inf else None


class OnDemand:
    """Does what `Fallback` decides. Nodes that were asked for go when the search ends, whichever way."""

    def __init__(
        self,
        cluster: Cluster,
        resources: TrialResources,
        after_s: float,
        max_usd: float,
        kept: Path,
        note: Callable[[str], None],
    ) -> None:
        kind = on_demand_type(cluster, resources)
        assert kind is not None  # see check_on_demand
        self._kind = kind
        self._resources = resources
        self._note = note
        kept.parent.mkdir(parents=True, exist_ok=True)
        self._money = Money(kept, time.monotonic())
        self._price = price_of(kind.labels) or 0.0
        self._rule = Fallback(after_s, max_usd, self._price, resources.per_node(kind.resources), self._money)
        self._leaving: dict[str, float] = {}  # and when they are ended, whatever runs there
        self._request: Any = None

    def look(self, cluster: Cluster) -> None:
        decision = self._rule.decide(self._seen(cluster))
        if decision.ask or self._request is not None:
            self._ask(decision.ask)
        for node_id in decision.send_away - self._leaving.keys():
            send_away(node_id, "on-demand nodes are given back", deadline_s=MOVE_WITHIN_S)
            self._leaving[node_id] = time.monotonic() + MOVE_WITHIN_S
        for node in cluster.nodes:
            if time.monotonic() >= self._leaving.get(node.node_id, math.inf):
                end_node(node.node_id)
        if decision.note:
            self._note(decision.note)

    def close(self) -> None:
        """Take the request back, send the nodes away, and tell what they have cost."""
        nodes = self._prices(look_at_cluster())
        self._money.charge(nodes, time.monotonic(), None)
        if self._request is not None:
            self._ask(0)
            for node_id in nodes:
                end_node(node_id)
        self._money.charge({}, time.monotonic(), None)
        if self._money.usd:
            self._note(f"on-demand nodes have cost about {self._money.shown} of at most ${self._rule.max_usd:g}")

    def _seen(self, cluster: Cluster) -> Seen:
        workers = [node for node in cluster.nodes if not node.is_head]
        on_demand = self._prices(cluster)
        room = min(self._kind.max_nodes - len(on_demand), cluster.max_workers - len(workers))
        return Seen(
            now=time.monotonic(),
            waiting=waiting_trials(self._resources),
            arriving=arriving_nodes(besides=self._kind.name),
            spot=frozenset(node.node_id for node in workers if not node.is_on_demand),
            on_demand=on_demand,
            room=max(0, room),
        )

    def _prices(self, cluster: Cluster) -> dict[str, float]:
        nodes = [node for node in cluster.nodes if node.is_on_demand]
        return {node.node_id: price_of(node.labels) or self._price for node in nodes}

    def _ask(self, count: int) -> None:
        if self._request is None:
            beside_us = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            options = {"name": "on-demand", "namespace": "tune_adamsrt", "lifetime": "detached", "get_if_exists": True}
            self._request = ray.remote(Request).options(num_cpus=0, scheduling_strategy=beside_us, **options).remote()
        try:
            ray.get(self._request.hold.remote(count), timeout=LEASE_S / 2)
        except ray.exceptions.RayActorError:
            self._request = None


class Request:
    """Holds a request for on-demand nodes as long as it is renewed.

    Ray keeps a request until the next one: without this, nodes that a killed driver has asked for would stay for ever.
    A cluster has one request. A search that makes one takes the place of whoever made the last.
    """

    def __init__(self) -> None:
        self._renewed_at = time.monotonic()
        self._count = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def hold(self, count: int) -> None:
        """Ask the autoscaler to have so many on-demand nodes up; 0 takes it back."""
        self._renewed_at = time.monotonic()
        if count != self._count:
            self._count = count
            request_on_demand(count)

    def _watch(self) -> None:
        while time.monotonic() - self._renewed_at < LEASE_S:
            time.sleep(1)
        request_on_demand(0)
        os._exit(0)


def request_on_demand(count: int) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{ON_DEMAND: 1}] * count)


def waiting_trials(resources: TrialResources) -> int:
    """How many trials wait for a place, by what the cluster is asked for."""
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    worker: Any = ray._private.worker.global_worker
    gangs = get_cluster_resource_state(worker.gcs_client).pending_gang_resource_requests
    own = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    asked = [{name: round(value, 4) for name, value in gang.requests[0].resources_bundle.items()} for gang in gangs]
    return asked.count({name: round(value, 4) for name, value in own.items()})


def arriving_nodes(*, besides: str) -> int:
    """How many nodes a cloud has granted that are not up yet, of all types but one."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True):
        nodes = get_cluster_status(ray.get_runtime_context().gcs_address).pending_nodes
        return sum(node.ray_node_type_name != besides for node in nodes)
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    pending = (status.get("autoscaler_report") or {}).get("pending_nodes", [])
    return sum(kind != besides for _, kind, _ in pending)
