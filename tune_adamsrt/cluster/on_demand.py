"""When spot machines are refused: on-demand machines instead, for no more than a sum of money. The rule alone.

Ray's autoscaler asks for the spot type again and again and takes no other. `cluster/gpu.yaml` has a twin of it without
the spot option. It offers the resource `on_demand` beside CPUs and GPUs, so that trials alone never bring it up, and
has its price as the label `usd-per-hour`. `tune_adamsrt.cluster.watching` sees the cluster and does what is decided
here.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MOVE_WITHIN_S = 300.0  # what trials on a node that must go have to reach an epoch's end
NEXT_LOOK_S = 60.0  # by when what is decided is done, however busy the driver is
ENDING_S = 120.0  # until a machine that was given up costs no more
WORTH_STARTING_S = 1800.0  # with money for less, a node would hardly pay for the minutes in which it sets itself up
FORGOTTEN_AFTER_S = 900.0  # a node that nobody watches ends after the cluster's idle time-out


def least_usd(usd_per_hour: float) -> float:
    """What a node costs that is worth asking for: half an hour, and its end."""
    return usd_per_hour * (WORTH_STARTING_S + MOVE_WITHIN_S + ENDING_S) / 3600


class Money:
    """What on-demand nodes have cost: from the asking until two minutes after a node was last seen.

    Args:
        path: keeps the sum over a restart of the driver; None for not at all.
        now: seconds on the caller's clock.
    """

    def __init__(self, path: Path | None, now: float) -> None:
        self.usd = 0.0
        self._nodes: dict[str, float] = {}  # those seen last, with their prices per hour
        self._path = path
        self._at = now
        if path is not None and path.exists():
            kept = json.loads(path.read_text())
            unwatched_s = min(max(0.0, time.time() - kept["written_at"]), FORGOTTEN_AFTER_S)
            self.usd = kept["usd"] + sum(kept["nodes"].values()) * unwatched_s / 3600

    def charge(self, nodes: Mapping[str, float], now: float, asked_at: float | None) -> None:
        """Charge for the time since the last call.

        Args:
            nodes: prices per hour of those that are up.
            asked_at: when they were asked for; a new one costs since then.
        """
        for node_id, usd_per_hour in nodes.items():
            since = self._at if node_id in self._nodes or asked_at is None else asked_at
            self.usd += usd_per_hour * (now - since) / 3600
        self.usd += sum(usd for node_id, usd in self._nodes.items() if node_id not in nodes) * ENDING_S / 3600
        changed = bool(nodes or self._nodes)
        self._nodes, self._at = dict(nodes), now
        if changed and self._path is not None:
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"usd": self.usd, "nodes": self._nodes, "written_at": time.time()}))
            temporary.replace(self._path)

    @property
    def shown(self) -> str:
        """In dollars and cents, rounded up."""
        return f"${math.ceil(100 * self.usd - 1e-9) / 100:.2f}"


@dataclass(frozen=True)
class Seen:
    """The cluster at a moment.

    Attributes:
        waiting: trials that wait for a node to come.
        arriving: spot nodes that the cloud has granted and that set themselves up.
        spot: ids of the other workers that are up.
        on_demand: prices per hour of the on-demand nodes that are up, by id.
        room: how many more on-demand nodes the cluster's ceilings allow.
    """

    now: float
    waiting: int
    arriving: int
    spot: frozenset[str]
    on_demand: Mapping[str, float]
    room: int


@dataclass(frozen=True)
class Decision:
    """What to do: how many on-demand nodes the autoscaler is to have up, which to send away, a line for the user."""

    ask: int = 0
    send_away: frozenset[str] = frozenset()
    note: str | None = None


@dataclass
class Fallback:
    """Decides from what is seen.

    Args:
        after_s: how long trials wait, while no spot node comes, before on-demand nodes are asked for.
        max_usd: the most that they may cost together.
        usd_per_hour: the price of a node.
        per_node: how many trials fit on it.
    """

    after_s: float
    max_usd: float
    usd_per_hour: float
    per_node: int
    money: Money
    _since: float | None = None  # trials have waited in vain since then
    _spot: frozenset[str] = frozenset()
    _asked: int = 0
    _asked_at: float | None = None
    _is_on: bool = False
    _is_spent: bool = False
    _leaving: frozenset[str] = frozenset()
    _told: str = field(default="", repr=False)

    def decide(self, seen: Seen) -> Decision:
        self.money.charge(seen.on_demand, seen.now, self._asked_at)
        spot_came = bool(seen.spot - self._spot) and self._since is not None
        self._spot = seen.spot
        if self._since is None or spot_came or seen.arriving or not seen.waiting:
            self._since = seen.now
        self._leaving = self._leaving.intersection(seen.on_demand)
        staying = {node_id: usd for node_id, usd in seen.on_demand.items() if node_id not in self._leaving}
        if staying and self._left_for(seen.on_demand) <= 0:
            self._is_spent = True
            return self._give_up(staying, f"${self.max_usd:g} for on-demand nodes is spent")
        if self._is_on and spot_came:
            return self._give_up(staying, "there are spot nodes again")
        if not seen.waiting:
            self._asked = 0  # a node that is up stays as long as it has trials
            self._is_on = bool(staying)
        elif self._asked <= len(staying) and seen.now - self._since >= self.after_s and not self._is_spent:
            return self._ask(seen, len(staying))
        return Decision(ask=self._asked)

    def _ask(self, seen: Seen, staying: int) -> Decision:
        wanted = min(math.ceil(seen.waiting / self.per_node), seen.room)
        count = min(wanted, math.floor(self._left_for(seen.on_demand) / least_usd(self.usd_per_hour) + 1e-9))
        self._since = seen.now  # whatever comes of it, the next word is due after as long again
        if count < 1:
            note = f"spot nodes are refused, and what is left of ${self.max_usd:g} buys no more on-demand nodes"
            return Decision(
                note=self._once(note if wanted else "spot nodes are refused, and there is no room for others")
            )
        self._asked, self._asked_at, self._is_on = staying + count, seen.now, True
        nodes = "1 on-demand node" if count == 1 else f"{count} on-demand nodes"
        note = f"no spot node for {self.after_s / 60:g} min: asked for {nodes} at ${self.usd_per_hour:g} an hour"
        return Decision(ask=self._asked, note=note)

    def _give_up(self, nodes: Mapping[str, float], why: str) -> Decision:
        self._asked, self._is_on = 0, False
        self._leaving = self._leaving.union(nodes)
        return Decision(send_away=frozenset(nodes), note=self._once(f"{why}: on-demand nodes are given back"))

    def _left_for(self, nodes: Mapping[str, float]) -> float:
        """The money that is left when these nodes are given up now."""
        return self.max_usd - self.money.usd - sum(nodes.values()) * (NEXT_LOOK_S + MOVE_WITHIN_S + ENDING_S) / 3600

    def _once(self, note: str) -> str | None:
        told, self._told = self._told, note
        return note if told != note else None
