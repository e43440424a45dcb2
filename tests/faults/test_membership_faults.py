"""Fault 22: who a node takes for a member, after a restart, after a truncation, and while a change is under way.

Of stock pysyncobj it was read in the source that the list given to the constructor is used until the log is replayed.
That two changes may be under way at once was seen when it was run: the index of the last change is never noted.
"""

from __future__ import annotations

from typing import Any

import pytest

from raftq.replication.shard import ChangeUnderway
from tests.faults.conftest import Maker
from tests.faults.harness import Cluster, Told

#: The stock journal leaves files open when it reads its meta file.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def restarted_after_a_removal(cluster: Cluster) -> Cluster:
    """c is removed while it is cut off; a and b have committed and applied that. Then b is killed, and starts. Stock
    writes the commit index once a second: not since the removal."""
    cluster.elect("a", "b", "c")
    for _ in range(4):
        cluster.step("a", "b")
        cluster.exchange("a", "b")
    cluster.cut("c", "a", "b")
    told = cluster["a"].remove("c")
    for _ in range(3):
        cluster.step("a", "b")
        cluster.exchange("a", "b")
    assert told == ["ok"]
    assert (cluster["a"].others, cluster["b"].others) == ({"b"}, {"a"})
    cluster.crash("b")
    cluster.restart("b")
    return cluster


def test_fault_22_a_restart_brings_back_who_was_removed_stock(stock: Maker) -> None:
    """A node that starts again uses the list that it was given first, until it has applied the log once more. Here it
    is elected by one that is no member any more, and commits by it what no other member has."""
    cluster = restarted_after_a_removal(stock(durable=True, dynamicMembershipChange=True))
    assert cluster["b"].others == {"a", "c"}
    cluster.cut("b", "a")
    cluster.heal("b", "c")
    cluster.elect("b", "c")
    for _ in range(3):
        cluster.step("b")
        cluster.exchange("b", "c")
    assert cluster["b"].leads
    assert cluster["b"].commit_index > max(cluster["a"].log())


def test_fault_22_a_restart_knows_the_members_ours(ours: Maker) -> None:
    """The configuration at the applied index is with the tables, and those after it are in the log: both are in force
    from the start."""
    cluster = restarted_after_a_removal(ours())
    assert cluster["b"].others == {"a"}
    cluster.cut("b", "a")
    cluster.heal("b", "c")
    cluster.step("b", "c", seconds=2.0)
    cluster.exchange("b", "c")
    assert not cluster["b"].leads
    assert not cluster["c"].leads


def removes_all_others(cluster: Cluster) -> dict[str, Any]:
    """The leader a is cut off. It is told to remove b, and then c; if it does, it is a majority by itself."""
    cluster.elect("a", "b", "c")
    cluster.step("a")
    cluster.cut("a", "b", "c")
    told: dict[str, Any] = {"b": cluster["a"].remove("b")}
    try:
        told["c"] = cluster["a"].remove("c")
        told["x"] = cluster.write("a", "x")
        cluster.step("a")
    except ChangeUnderway:
        pass
    cluster.elect("b", "c")
    return told


def test_fault_22_two_changes_at_once_lose_what_was_acknowledged_stock(stock: Maker) -> None:
    """A change is to wait until the one before it is committed, but nothing notes which that is. A leader that nobody
    hears removes the others one by one, and commits alone, beside another leader."""
    cluster = stock(dynamicMembershipChange=True)
    told = removes_all_others(cluster)
    assert told == {"b": ["ok"], "c": ["ok"], "x": ["ok"]}
    assert cluster["a"].leads
    assert cluster["b"].leads
    assert "x" not in cluster["b"].log().values()


def test_fault_22_a_second_change_waits_for_the_first_ours(ours: Maker) -> None:
    """`change` is refused as long as the newest configuration in the log is not committed."""
    cluster = ours()
    assert removes_all_others(cluster) == {"b": []}
    assert cluster["a"].others == {"c"}
    assert cluster["a"].commit_index < max(cluster["a"].log())


def truncated(cluster: Cluster) -> tuple[Told, set[str]]:
    """The leader a adds d, heard by nobody, and is deposed; the new leader has other entries in that place. What the
    client was told, and whom a takes for the others then."""
    cluster.elect("a", "b", "c")
    cluster.step("a")
    cluster.cut("a", "b", "c")
    told = cluster["a"].add("d")
    assert cluster["a"].others == {"b", "c", "d"}
    cluster.elect("b", "c")
    cluster.write("b", "x")
    cluster.exchange("b", "c")
    cluster.heal("a", "b", "c")
    for _ in range(3):
        cluster.step("b")
        cluster.exchange("a", "b", "c")
    assert "x" in cluster["a"].log().values()
    return told, cluster["a"].others


def test_fault_22_a_change_that_is_truncated_is_undone_ours(ours: Maker) -> None:
    """A configuration is in force while it is in the log: what was before it is in force again, also when it differs in
    more than what the change named."""
    told, others = truncated(ours())
    assert told != ["ok"]
    assert others == {"b", "c"}


def test_fault_22_a_repeated_append_undoes_a_change_that_is_committed_stock(stock: Maker) -> None:
    """Undoing follows truncation, which follows any append (fault 2): one that is heard again takes back a removal that
    the leader has committed and acknowledged, and until the entry is sent again the two count differently."""
    cluster = stock(dynamicMembershipChange=True)
    cluster.elect("a", "b", "c")
    cluster.step("a")
    cluster.write("a", "x")
    early = cluster.waiting("a", "b")
    told = cluster["a"].remove("c")
    for _ in range(2):
        cluster.step("a")
        cluster.exchange("a", "b")
    assert told == ["ok"]
    assert (cluster["a"].others, cluster["b"].others) == ({"b"}, {"a"})
    cluster.inject("a", "b", early[-1])
    assert cluster["b"].others == {"a", "c"}


def test_fault_22_a_repeated_append_changes_no_member_ours(ours: Maker) -> None:
    """Only what conflicts is truncated."""
    cluster = ours()
    cluster.elect("a", "b", "c")
    cluster.step("a")
    cluster.write("a", "x")
    early = cluster.waiting("a", "b")
    told = cluster["a"].remove("c")
    for _ in range(2):
        cluster.step("a")
        cluster.exchange("a", "b")
    assert told == ["ok"]
    for message in early:
        cluster.inject("a", "b", message)
    assert (cluster["a"].others, cluster["b"].others) == ({"b"}, {"a"})
