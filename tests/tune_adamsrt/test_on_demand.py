"""When on-demand nodes are asked for, and what they may cost: a clock that is set by hand."""

import dataclasses
import json
import threading
import time
from types import SimpleNamespace

import pytest

from tune_adamsrt.cluster import watching
from tune_adamsrt.cluster.on_demand import Decision, Fallback, Money, Seen

HOUR = 3600.0


def rule(max_usd=10.0, *, path=None, per_node=1):
    return Fallback(after_s=600, max_usd=max_usd, usd_per_hour=1.0, per_node=per_node, money=Money(path, 0.0))


QUIET = Seen(now=0.0, waiting=0, arriving=0, spot=frozenset(), on_demand={}, room=8)


def seen(now, **changes):
    return dataclasses.replace(QUIET, now=now, **changes)


def on_demand(count):
    return {f"node-{n}": 1.0 for n in range(count)}


def test_nothing_is_asked_for_before_the_time_and_then_what_trials_need():
    fallback = rule()
    assert [fallback.decide(seen(now, waiting=3)).ask for now in (0, 300, 599)] == [0, 0, 0]
    decision = fallback.decide(seen(600, waiting=3))
    assert decision.ask == 3
    assert decision.note == "no spot node for 10 min: asked for 3 on-demand nodes at $1 an hour"
    assert fallback.decide(seen(605, waiting=3)) == Decision(ask=3)  # the user is told once
    assert fallback.decide(seen(900, waiting=0, on_demand=on_demand(3))) == Decision(ask=0)  # trials hold them now


@pytest.mark.parametrize(
    "between",
    [
        pytest.param({"waiting": 0}, id="no trial waits"),
        pytest.param({"waiting": 3, "arriving": 1}, id="a spot node sets itself up"),
        pytest.param({"waiting": 3, "spot": frozenset({"s"})}, id="a spot node came"),
    ],
)
def test_the_time_begins_anew(between):
    fallback = rule()
    fallback.decide(seen(0, waiting=3))
    assert fallback.decide(seen(500, **between)).ask == 0
    spot = between.get("spot", frozenset())
    assert fallback.decide(seen(1000, waiting=3, spot=spot)).ask == 0
    assert fallback.decide(seen(1100, waiting=3, spot=spot)).ask == 3


@pytest.mark.parametrize(
    ("max_usd", "room", "per_node", "asked"),
    # Half an hour of a node and its end cost $0.62.
    [(10, 8, 1, 8), (10, 2, 1, 2), (1.9, 8, 1, 3), (0.6, 8, 1, 0), (10, 8, 4, 3), (10, 0, 1, 0)],
)
def test_no_more_is_asked_for_than_money_room_and_trials_allow(max_usd, room, per_node, asked):
    fallback = rule(max_usd, per_node=per_node)
    fallback.decide(seen(0, waiting=9, room=room))
    assert fallback.decide(seen(600, waiting=9, room=room)).ask == asked


def test_a_node_costs_from_the_asking_to_two_minutes_after_its_end():
    fallback = rule()
    fallback.decide(seen(0, waiting=1))
    fallback.decide(seen(600, waiting=1))
    fallback.decide(seen(900, waiting=1))
    assert fallback.money.usd == 0  # it has not come, and may never
    fallback.decide(seen(1200, on_demand=on_demand(1)))
    assert fallback.money.usd == pytest.approx(600 / HOUR)
    fallback.decide(seen(1500, on_demand=on_demand(1)))
    fallback.decide(seen(1510))
    assert fallback.money.usd == pytest.approx((900 + 120) / HOUR)
    assert fallback.money.shown == "$0.29"  # 0.2833


@pytest.mark.parametrize("nodes", [1, 3, 8])
def test_the_ceiling_holds_whatever_the_trials_do(nodes):
    """Nodes stay to the last moment (given late, by a busy driver), and new ones come as soon as they are asked for."""
    fallback, up, leave_at, told = rule(5.0), {}, {}, []
    for now in range(0, 24 * 3600, 5):
        decision = fallback.decide(seen(now, waiting=nodes, on_demand=up, room=nodes - len(up)))
        told += [decision.note] if decision.note else []
        for node_id in decision.send_away:
            leave_at.setdefault(node_id, now + 360)
        up = {node_id: 1.0 for node_id in up if now < leave_at.get(node_id, now + 1)}
        while len(up) < decision.ask:
            up[f"node-{now}-{len(up)}"] = 1.0
    assert not up
    assert 0.9 * 5 <= fallback.money.usd <= 5.0 + 1e-9
    assert told[-1] == "$5 for on-demand nodes is spent: on-demand nodes are given back"


def test_spot_nodes_that_are_back_take_the_place():
    fallback = rule()
    for now, waiting, nodes in ((0, 4, 0), (600, 4, 0), (700, 2, 2)):
        fallback.decide(seen(now, waiting=waiting, on_demand=on_demand(nodes)))
    decision = fallback.decide(seen(800, waiting=2, on_demand=on_demand(2), spot=frozenset({"s"})))
    assert (decision.ask, decision.send_away) == (0, {"node-0", "node-1"})
    assert decision.note == "there are spot nodes again: on-demand nodes are given back"
    # They are refused once more: those that leave do not count as help.
    fallback.decide(seen(805, waiting=2, on_demand=on_demand(2), spot=frozenset({"s"})))
    assert fallback.decide(seen(1401, waiting=2, on_demand=on_demand(2), spot=frozenset({"s"}))).ask == 2


def test_the_sum_outlives_the_driver(tmp_path):
    path = tmp_path / "money.json"
    money = Money(path, 0.0)
    money.charge(on_demand(2), 0.0, None)
    money.charge(on_demand(2), HOUR, None)
    assert Money(path, 0.0).usd == pytest.approx(2.0, abs=0.01)
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"written_at": time.time() - 600}))
    assert Money(path, 0.0).usd == pytest.approx(2 + 2 * 600 / HOUR, abs=0.01)  # nobody watched them
    path.write_text(json.dumps(kept | {"written_at": time.time() - 24 * HOUR}))
    assert Money(path, 0.0).usd == pytest.approx(2 + 2 * 900 / HOUR, abs=0.01)  # idle nodes end by themselves


def test_a_request_that_nobody_renews_is_taken_back(monkeypatch):
    """A driver that was killed must leave nothing behind that keeps nodes up."""
    requests, ended, now = [], threading.Event(), [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: time.sleep(0.001))
    monkeypatch.setattr(watching, "time", clock)
    monkeypatch.setattr(watching, "request_on_demand", requests.append)
    monkeypatch.setattr(watching.os, "_exit", lambda code: ended.set())
    request = watching.Request()
    for _ in range(4):
        request.hold(2)
        now[0] += watching.LEASE_S - 1
    assert not ended.wait(0.1)
    assert requests == [2]
    now[0] += 2
    assert ended.wait(60)
    assert requests == [2, 0]
