"""Where a search runs: addresses, and what a trial may ask for."""

import socket

import pytest

from tune_adamsrt import resources
from tune_adamsrt.cluster.nodes import Cluster, Node, NodeType
from tune_adamsrt.resources import TrialResources, choose_trial_resources, connect, count_slots, describe_cluster


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of a CPU head and two GPU nodes, without Ray."""
    cluster = [
        Node("a", "10.0.0.1", {"CPU": 4.0}),
        Node("b", "10.0.0.2", {"CPU": 8.0, "GPU": 2.0}),
        Node("c", "10.0.0.3", {"CPU": 3.0, "GPU": 1.0}),
    ]
    monkeypatch.setattr(resources, "look_at_cluster", lambda: Cluster(tuple(cluster)))
    return cluster


def test_gpus_are_asked_for_where_there_are_any(nodes):
    chosen = choose_trial_resources(cpus=None, gpus=None, default_cpus=2, default_gpus=1)
    assert chosen == TrialResources(cpus=2, gpus=1)
    assert chosen.device == "cuda"
    del nodes[1:3]
    chosen = choose_trial_resources(cpus=None, gpus=None, default_cpus=2, default_gpus=1)
    assert (chosen, chosen.device) == (TrialResources(cpus=2, gpus=0), "cpu")


@pytest.mark.parametrize(
    ("cpus", "gpus", "slots"), [(2, 1, 3), (1, 0.5, 6), (4, 1, 2), (1, 0, 15), (2, 2, 1), (1, 0.3, 9)]
)
def test_slots_count_what_fits_on_each_node(nodes, cpus, gpus, slots):
    assert count_slots(TrialResources(cpus=cpus, gpus=gpus)) == slots


def test_a_trial_that_fits_nowhere_is_refused_with_the_numbers(nodes):
    with pytest.raises(ValueError, match=r"got a request for 2 CPU, 4 GPU, while the largest node has 8 CPU and 2 GPU"):
        choose_trial_resources(cpus=2, gpus=4, default_cpus=1, default_gpus=0)


@pytest.fixture
def scales(nodes, monkeypatch):
    """A CPU head and an autoscaler, as cluster/gpu.yaml makes it; no worker is up."""
    types = (
        NodeType("gpu_8", {"CPU": 192.0, "GPU": 8.0}, 1),
        NodeType("gpu_1", {"CPU": 4.0, "GPU": 1.0}, 8),
        NodeType("gpu_1_on_demand", {"CPU": 4.0, "GPU": 1.0, "on_demand": 1.0}, 8),
        NodeType("gpu_4", {"CPU": 48.0, "GPU": 4.0}, 2),
    )
    nodes[:] = [Node("a", "10.0.0.1", {"node:__internal_head__": 1.0})]
    monkeypatch.setattr(resources, "look_at_cluster", lambda: Cluster(tuple(nodes), types, 8))
    return nodes


def test_what_may_yet_come_decides_where_nothing_is_up(scales):
    chosen = choose_trial_resources(cpus=None, gpus=None, default_cpus=2, default_gpus=0.5)
    assert chosen == TrialResources(cpus=2, gpus=0.5)
    assert count_slots(chosen) == 16
    more = "gpu_1 (4 CPU, 1 GPU), gpu_4 (48 CPU, 4 GPU), gpu_8 (192 CPU, 8 GPU)"
    assert describe_cluster() == f"1 node, 0 CPU; up to 8 more: {more}"
    with pytest.raises(
        ValueError, match=r"got a request for 1 CPU, 16 GPU, while the largest node has 0 CPU and 0 GPU, "
        r"the largest that may come \(gpu_8\) 192 CPU and 8 GPU"
    ):  # fmt: skip
        choose_trial_resources(cpus=1, gpus=16, default_cpus=1, default_gpus=0)


@pytest.mark.parametrize(("gpus", "slots"), [(1, 8), (0.25, 16), (2, 8), (4, 4), (8, 1)])
def test_slots_count_what_may_come_within_the_ceilings(scales, gpus, slots):
    """Of 8 nodes at most 2 have 4 GPUs and 1 has 8; a trial has 2 CPUs."""
    assert count_slots(TrialResources(cpus=2, gpus=gpus)) == slots


def test_workers_that_are_up_are_not_counted_twice(scales):
    scales += [Node(str(n), f"10.0.0.{n}", {"CPU": 4.0, "GPU": 1.0}, type_name="gpu_1") for n in range(2, 8)]
    assert count_slots(TrialResources(cpus=2, gpus=1)) == 8
    scales.append(Node("9", "10.0.0.9", {"CPU": 4.0, "GPU": 1.0}))  # Ray's older autoscaler gives no names
    assert "up to 1 more" in describe_cluster()
    scales.append(Node("10", "10.0.0.10", {"CPU": 4.0, "GPU": 1.0, "on_demand": 1.0}, type_name="gpu_1_on_demand"))
    assert "more" not in describe_cluster()
    assert count_slots(TrialResources(cpus=2, gpus=1)) == 8


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (-1, 0), (1, -0.5), (1, 1.5)])
def test_impossible_requests_are_refused(cpus, gpus):
    with pytest.raises(ValueError, match="per trial must be"):
        TrialResources(cpus=cpus, gpus=gpus)


def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(resources.ray, "init", lambda *args, **kwargs: pytest.fail("ray.init was called"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"a Ray cluster must answer at {address}"):
            connect(address)
    with pytest.raises(ValueError, match="must be auto or HOST:PORT, got ray://head:10001"):
        connect("ray://head:10001")


def test_an_existing_cluster_gets_this_code_and_a_local_one_does_not(monkeypatch):
    asked = []
    monkeypatch.setattr(resources.ray, "init", lambda **kwargs: asked.append(kwargs))
    monkeypatch.setattr(resources, "_started_cluster", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connect(None)
    connect("auto")
    assert [kwargs["address"] for kwargs in asked] == ["local", "auto"]
    assert "runtime_env" not in asked[0]
    names = [path.rsplit("/", 1)[-1] for path in asked[1]["runtime_env"]["py_modules"]]
    assert names == ["adamsrt", "tune_adamsrt"]


def test_a_machine_on_which_ray_does_not_start_is_told_in_one_line(monkeypatch):
    def fail(**kwargs):
        raise Exception("The current node timed out during startup.\nTraceback ...")

    monkeypatch.setattr(resources.ray, "init", fail)
    with pytest.raises(
        ConnectionError, match=r"^Ray must start on this machine, got The current node timed out during"
    ):
        connect("local")
