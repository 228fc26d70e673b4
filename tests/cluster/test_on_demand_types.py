"""The on-demand type of the cluster files, as Ray's own scheduler treats it: for a request, never for trials."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint, GangResourceRequest

from tune_adamsrt.cluster.nodes import types_of
from tune_adamsrt.cluster.watching import price_of
from tune_adamsrt.resources import TrialResources

CLOUDS = ["gpu.yaml", "gcp.yaml"]
HEAD = 1  # Ray counts the head among the nodes of which a cluster has at most so many, and it is not there yet

Prepared = Callable[[str], dict[str, Any]]


def launched(config: dict[str, Any], trials: int, demand: dict[str, float], on_demand: int = 0) -> dict[str, int]:
    """What the autoscaler starts for trials that wait, as Ray Tune asks, and for a request of on-demand nodes."""
    autoscaling = AutoscalingConfig(config, skip_content_hash=True)
    constraint = ClusterResourceConstraint()
    if on_demand:
        request = ResourceRequestUtil.make({"on_demand": 1})
        constraint.resource_requests.add(count=on_demand).request.CopyFrom(request)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=autoscaling.get_node_type_configs(),
            max_num_nodes=(autoscaling.get_max_num_nodes() or 0) - HEAD,
            gang_resource_requests=[GangResourceRequest(requests=[ResourceRequestUtil.make(demand)])] * trials,
            cluster_resource_constraints=[constraint] if on_demand else [],
        )
    )
    return {item.instance_type: item.count for item in reply.to_launch}


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("memory", [0, 16e9], ids=["", "memory"])  # on AWS `ray up` adds it
@pytest.mark.parametrize("demand", [{"CPU": 2, "GPU": 1}, {"CPU": 1, "GPU": 0.25}, {"CPU": 1}, {"CPU": 4, "GPU": 1}])
@pytest.mark.parametrize("trials", [1, 7, 100])
def test_trials_alone_never_start_it(
    prepared: Prepared, name: str, memory: float, demand: dict[str, float], trials: int
) -> None:
    config = prepared(name)
    for node_type in config["available_node_types"].values():
        node_type["resources"] |= {"memory": memory} if memory else {}
    started = launched(config, trials, demand)
    assert started and not any(kind.endswith("_on_demand") for kind in started)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_request_starts_it_within_the_ceilings(prepared: Prepared, name: str) -> None:
    config = prepared(name)
    trial = {"CPU": 2, "GPU": 1}
    assert launched(config, 20, trial, on_demand=1) == {"gpu_1_on_demand": 1, "gpu_1": config["max_workers"] - 1}
    assert launched(config, 0, trial, on_demand=2) == {"gpu_1_on_demand": 2}
    assert launched(config, 0, trial, on_demand=3) == {}  # all or none: never ask for more than there can be


@pytest.mark.parametrize("name", CLOUDS)
def test_it_holds_what_the_spot_type_holds_and_has_no_price_until_someone_chooses(
    prepared: Prepared, name: str
) -> None:
    types = {kind.name: kind for kind in types_of(prepared(name))}
    spot, on_demand = types["gpu_1"], types["gpu_1_on_demand"]
    assert on_demand.is_on_demand and not spot.is_on_demand
    assert {**spot.resources, "on_demand": 1} == on_demand.resources
    assert spot.max_nodes == prepared(name)["max_workers"]
    assert TrialResources(cpus=4, gpus=1).per_node(on_demand.resources) == 1
    assert price_of(on_demand.labels) is None
    assert price_of({"usd-per-hour": "1.25"}) == 1.25
