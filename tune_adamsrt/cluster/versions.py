"""What is installed on the cluster's nodes, against what the driver has. Other versions would train other networks.

Ray itself turns away nodes with another Ray or Python when they join. The rest is asked: one tiny task per node. A
worker that is handed a trial before that looks for itself.
"""

import contextlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_adamsrt.cluster.nodes import Node, send_away

# What decides a trial's numbers, or whether its results reach the driver.
PACKAGES = ("ray", "torch", "torchvision", "numpy", "pyarrow")
ANSWER_TIMEOUT_S = 15.0
MOVE_WITHIN_S = 60.0  # what a trial on a node that must go has to reach its epoch's end

Versions = dict[str, str | None]
Asked = list[tuple[Node, "ray.ObjectRef[Versions]"]]


class OtherVersionsError(Exception):
    """A task has come to a node with other versions than the driver's."""


def installed() -> Versions:
    """The versions here; None for what is missing. A build's own mark (`+cpu`) is left out."""
    versions: Versions = {"Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def check_versions(nodes: Iterable[Node], *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
    """Check nodes against what is installed here. One that does not answer in time is let be, and so is this machine.

    Raises:
        ValueError: a node has other versions; the line names it.
    """
    own = ray.get_runtime_context().get_node_id()
    wrong = wrong_nodes(ask(node for node in nodes if node.node_id != own), timeout_s=timeout_s)
    if wrong:
        node, difference = wrong[0]
        others = f" (and {len(wrong) - 1} more nodes)" if len(wrong) > 1 else ""
        raise ValueError(f"node {node.address} must have {difference}{others}; run cluster/node_setup.sh there")


def ask(nodes: Iterable[Node]) -> Asked:
    """Start asking these nodes; none waits for another."""
    # Bound to its node: one that is lost meanwhile, or is busy, must not move the question elsewhere.
    task = ray.remote(num_cpus=0, max_retries=0)(installed)
    return [
        (node, task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote())
        for node in nodes
    ]


def wrong_nodes(asked: Asked, *, timeout_s: float) -> list[tuple[Node, str]]:
    """Which nodes have other versions than this process, and how they differ; only of those that answer in time."""
    if not asked:
        return []
    here = installed()
    answered, _ = ray.wait([answer for _, answer in asked], num_returns=len(asked), timeout=timeout_s)
    wrong = []
    for node, answer in asked:
        if answer not in answered:
            continue
        try:
            difference = describe_difference(here, ray.get(answer))
        except RayError:  # the node was lost meanwhile
            continue
        if difference is not None:
            wrong.append((node, difference))
    return wrong


def describe_difference(here: Versions, there: Versions) -> str | None:
    """Say how a node differs, `torch 2.15.0, got 2.11.0`; None where it has what is here."""
    for name, version in here.items():
        if version is not None and there.get(name) != version:
            return f"{name} {version}, got {there.get(name) or 'none'}"
    return None


def has_other_versions(wanted: Versions | None) -> bool:
    """Tell whether this worker's node is none for a search's trials; then nothing more of it starts there.

    Args:
        wanted: what the driver has; None where it did not say.
    """
    difference = None if wanted is None else describe_difference(wanted, installed())
    if difference is None:
        return False
    with contextlib.suppress(Exception):  # a head that is away for a moment: the driver sends it away soon
        send_away(ray.get_runtime_context().get_node_id(), f"must have {difference}", deadline_s=MOVE_WITHIN_S)
    return True


class NewNodes:
    """Asks nodes that come while a search runs, and sends those away that have other versions.

    Args:
        known: nodes that were asked before.
        note: tells the user one line.
    """

    def __init__(self, known: Iterable[Node], note: Callable[[str], None]) -> None:
        self._known = {node.node_id for node in known}
        self._note = note
        self._asked: Asked = []

    def look(self, nodes: Iterable[Node]) -> None:
        """Ask the nodes that are new, and hear those that have an answer by now. Does not wait."""
        new = [node for node in nodes if node.node_id not in self._known]
        self._known |= {node.node_id for node in new}
        self._asked += ask(new)
        for node, difference in wrong_nodes(self._asked, timeout_s=0.0):
            send_away(node.node_id, f"must have {difference}", deadline_s=MOVE_WITHIN_S)
            self._note(f"node {node.address} sent away: it must have {difference}; run cluster/node_setup.sh there")
        answers = [answer for _, answer in self._asked]
        waits = set(ray.wait(answers, num_returns=len(answers), timeout=0)[1]) if answers else set()
        self._asked = [(node, answer) for node, answer in self._asked if answer in waits]
