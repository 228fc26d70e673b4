"""Where a search runs: addresses, and what a trial may ask for."""

import socket

import pytest

from tune_adamsrt import resources
from tune_adamsrt.resources import TrialResources, choose_trial_resources, connect, count_slots


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of a CPU head and two GPU nodes, without Ray."""
    cluster = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(resources.ray, "nodes", lambda: cluster)
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
