"""What must happen after faults, and what is said when it does not."""

from __future__ import annotations

import pytest

from raftq.chaos.simulation.checkers.liveness import Liveness, converged
from raftq.chaos.simulation.history import Op, Violation
from raftq.replication.engine import NO_OP
from raftq.storage.machine import commands
from tests.simulation.seen import FakeNode, entry, put

A, B = entry(put("a")), entry(put("b"))


def nodes() -> list[FakeNode]:
    """Three that agree."""
    found = [FakeNode(name, [(1, NO_OP), (1, A)]) for name in ("n1", "n2", "n3")]
    for node in found:
        node.term, node.commit_index, node.applied_index = 1, 3, 3
    found[0].role = "leader"
    return found


def write(invoked_at: float, outcome: str = "ok") -> Op:
    return Op(1, "c1", "write", commands.encode(put("a")), "n1", invoked_at, invoked_at + 1, outcome)  # type: ignore[arg-type]


def test_recovered_in_time() -> None:
    liveness = Liveness(10.0, 0.5)
    assert not liveness.reached(10.0, nodes(), idle=True)
    liveness.returned(write(10.5))
    assert not liveness.reached(14.9, nodes(), idle=False)
    assert liveness.reached(14.9, nodes(), idle=True)


@pytest.mark.parametrize("op", [write(9.9), write(10.5, "unknown"), write(10.5, "no")])
def test_no_write_succeeds(op: Op) -> None:
    liveness = Liveness(10.0, 0.5)
    liveness.returned(op)
    assert not liveness.reached(14.9, nodes(), idle=True)
    with pytest.raises(Violation, match=r"liveness: no write succeeded from 10\.000 to 15\.000: n1 leader of term 1"):
        liveness.reached(15.0, nodes(), idle=True)


@pytest.mark.parametrize(
    "change",
    [
        {"commit_index": 2},
        {"applied_index": 2},
        {"role": "leader"},
        {"log": [(0, NO_OP), (1, NO_OP), (1, A), (1, B)]},
        {"log": [(0, NO_OP), (1, NO_OP), (2, A)]},
    ],
)
def test_the_nodes_do_not_agree(change: dict[str, object]) -> None:
    liveness, found = Liveness(10.0, 0.5), nodes()
    liveness.returned(write(10.5))
    for name, value in change.items():
        setattr(found[2], name, value)
    assert not liveness.reached(14.9, found, idle=True)
    with pytest.raises(Violation, match="liveness: the nodes did not converge"):
        liveness.reached(15.0, found, idle=True)


def test_who_lacks_much_may_take_long_as_long_as_it_gets_on() -> None:
    liveness, found = Liveness(10.0, 0.5), nodes()
    liveness.returned(write(10.5))
    whole = found[2].log
    found[2].log = whole[:1]
    assert not liveness.reached(14.0, found, idle=True)
    found[2].received_bytes = 100
    assert not liveness.reached(14.9, found, idle=True)
    found[2].received_bytes = 0
    found[2].log = whole[:2]
    assert not liveness.reached(19.8, found, idle=True)
    found[2].received_bytes = 100
    assert not liveness.reached(24.7, found, idle=True)
    found[2].received_bytes = 0  # all over again: that is not getting on
    assert not liveness.reached(29.6, found, idle=True)
    found[2].received_bytes = 100
    with pytest.raises(Violation, match="did not converge"):
        liveness.reached(29.7, found, idle=True)


def test_getting_on_ends_too() -> None:
    liveness, found = Liveness(10.0, 0.5), nodes()
    liveness.returned(write(10.5))
    found[2].log = found[2].log[:1]
    for second in range(60):
        found[2].received_bytes += 1
        assert not liveness.reached(10.0 + second, found, idle=True)
    found[2].received_bytes += 1
    with pytest.raises(Violation, match="did not converge"):
        liveness.reached(70.0, found, idle=True)


def test_a_write_may_have_to_wait_for_who_lacks_much() -> None:
    liveness, found = Liveness(10.0, 0.5), nodes()
    found[2].log = found[2].log[:1]
    assert not liveness.reached(14.0, found, idle=True)
    found[2].received_bytes = 100
    assert not liveness.reached(15.0, found, idle=True)
    with pytest.raises(Violation, match="no write succeeded"):
        liveness.reached(20.0, found, idle=True)


def test_without_a_leader_nothing_has_converged() -> None:
    found = nodes()
    assert converged(found)
    found[0].role = "follower"
    assert not converged(found)


def test_nodes_that_all_go_on_applying_are_waited_for() -> None:
    """Seed 14 ended while a redrive went on, an entry at a time: each follower was one behind at every look."""
    liveness, found = Liveness(10.0, 0.5), nodes()
    liveness.returned(write(10.5))
    for node in found:
        node.log += [(1, B)] * 3
    found[0].commit_index = found[0].applied_index = 4
    assert not liveness.reached(14.9, found, idle=True)
    for node in found[1:]:
        node.commit_index = node.applied_index = 4
    found[0].commit_index = found[0].applied_index = 5
    assert not liveness.reached(19.7, found, idle=True)
    with pytest.raises(Violation, match="liveness: the nodes did not converge"):
        liveness.reached(24.8, found, idle=True)
