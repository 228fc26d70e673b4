"""A cluster whose autoscaler starts nodes, and nodes that someone adds: real ones, on this machine."""

import json
import math

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from scaling_cluster import ENVIRONMENT, ScalingCluster

from benchmarks.ray_nodes import alive, draining, wait_until
from tune_adamsrt.cluster.nodes import live_nodes
from tune_adamsrt.cluster.on_demand import least_usd
from tune_adamsrt.cluster.versions import NewNodes, check_versions, has_other_versions, installed
from tune_adamsrt.cluster.watching import check_on_demand, is_private, watched
from tune_adamsrt.resources import TrialResources, choose_trial_resources, count_slots, describe_cluster

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PRICE = 3.6
ONE_CPU = TrialResources(cpus=1.0, gpus=0.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    types = {
        "spot": {"resources": {"CPU": 1}, "max_workers": 2},
        "on_demand": {
            "resources": {"CPU": 1, "on_demand": 1},
            "labels": {"usd-per-hour": str(PRICE)},
            "max_workers": 1,
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
            patch.delenv(name, raising=False)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        made = ScalingCluster(tmp_path_factory.mktemp("scaling"), types, max_workers=2)
        ray.init(address=made.address, log_to_driver=False, logging_level="CRITICAL")
        yield made
        made.shut_down()


def test_what_may_come_counts_where_nothing_is_up(cluster):
    assert not is_private()
    assert describe_cluster() == "1 node, 0 CPU; up to 2 more: spot (1 CPU)"
    chosen = choose_trial_resources(cpus=None, gpus=None, default_cpus=0.5, default_gpus=0.5)
    assert (chosen, count_slots(chosen)) == (TrialResources(cpus=0.5, gpus=0.0), 4)
    with pytest.raises(ValueError, match=r"got a request for 4 CPU, while .*may come \(spot\) 1 CPU and 0 GPU"):
        choose_trial_resources(cpus=4, gpus=None, default_cpus=1, default_gpus=0)


def test_a_node_with_other_versions_is_named_and_sent_away(cluster, tmp_path):
    other = tmp_path / "torch-2.11.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Name: torch\nVersion: 2.11.0\n")

    class Busy:  # keeps a node in use
        def is_here(self):
            return True

    told = []
    new_nodes = NewNodes(live_nodes(), told.append)
    node_id = cluster.add(PYTHONPATH=str(tmp_path))
    [node] = [node for node in live_nodes() if node.node_id == node_id]
    with pytest.raises(ValueError, match=rf"^node {node.address} must have torch 2.\d+.\d+, got 2.11.0; run"):
        check_versions([node])

    new_nodes.look(live_nodes())
    ray.wait([answer for _, answer in new_nodes._asked], num_returns=len(new_nodes._asked))
    # a worker there that is handed a trial meanwhile
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    worker = ray.remote(num_cpus=0)(has_other_versions).options(scheduling_strategy=there)
    busy = ray.remote(num_cpus=1)(Busy).options(scheduling_strategy=there).remote()  # an idle node leaves at once
    ray.get(busy.is_here.remote())
    assert not ray.get(worker.remote({**installed(), "torch": "2.11.0"})) and not draining()
    assert ray.get(worker.remote(installed()))
    assert node_id in draining()
    ray.kill(busy)

    def told_of() -> list[str]:
        new_nodes.look(live_nodes())
        return told

    wait_until(told_of)
    assert told[0].startswith(f"node {node.address} sent away: it must have torch 2.")
    wait_until(lambda: not alive(node_id))


def test_refused_spot_nodes_are_made_up_for_until_they_are_back(cluster, tmp_path):
    """Two trials wait. One on-demand node comes; when spot nodes do, it goes."""
    told, kept = [], tmp_path / "runs" / "money.json"
    late = "spot nodes are refused, and there is no room for others"  # for the other trial, where nodes take their time
    (cluster.refused / "spot").touch()
    waiting = [placement_group([{"CPU": 1}]) for _ in range(2)]

    def up():
        return sorted(node.type_name for node in live_nodes() if not node.is_head)

    def placed():
        return sum(placement_group_table(group)["state"] == "CREATED" for group in waiting)

    with watched(ONE_CPU, told.append, on_demand_after_s=2.0, max_on_demand_cost=20.0, kept=kept, every_s=0.5):
        wait_until(lambda: placed() == 1, 60)
        assert up() == ["on_demand"]
        asked = "no spot node for 0.0333333 min: asked for 1 on-demand node at $3.6 an hour"
        assert [line for line in told if line != late] == [asked]
        (cluster.refused / "spot").unlink()
        wait_until(lambda: placed() == 2, 60)
        wait_until(lambda: "there are spot nodes again: on-demand nodes are given back" in told)
        on_demand = {node.node_id for node in live_nodes() if node.is_on_demand}
        remove_placement_group(next(group for group in waiting if node_of(group) in on_demand))
        wait_until(lambda: up() == ["spot"])  # it ends as soon as its trials have left it
    for group in waiting:
        remove_placement_group(group)
    usd = json.loads(kept.read_text())["usd"]
    assert 120 * PRICE / 3600 < usd < 1800 * PRICE / 3600
    cost = f"on-demand nodes have cost about ${math.ceil(100 * usd) / 100:.2f} of at most $20"
    assert [line for line in told if line != late][2:] == [cost]


def node_of(group):
    [node_id] = placement_group_table(group)["bundles_to_node_id"].values()
    return node_id


def test_money_that_buys_nothing_is_refused(cluster):
    check_on_demand(ONE_CPU, least_usd(PRICE))
    with pytest.raises(ValueError, match=r"must be at least 2.22, which buys half an hour of one on_demand, got 1.5"):
        check_on_demand(ONE_CPU, 1.5)
    with pytest.raises(ValueError, match=r"must find a node type that holds a trial of 2 CPU, with the resource on_de"):
        check_on_demand(TrialResources(cpus=2.0, gpus=0.0), 100.0)
