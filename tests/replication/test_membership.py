"""Membership: the steps from one configuration to the next, and whole shards that join, leave and are replaced."""

from __future__ import annotations

import asyncio
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from raftq.replication.cycle import RaftShard
from raftq.replication.membership import (
    Configuration,
    Member,
    Memberships,
    added,
    base_of,
    bootstrap,
    next_step,
    removed,
)
from raftq.replication.shard import ChangeRefused, ChangeUnderway, Fenced, NotLeader
from tests.replication.shards import Shards, enqueue, free_addresses, shards, until

THREE = bootstrap({"n1": "h:1", "n2": "h:2", "n3": "h:3"})
ALL = ["n1", "n2", "n3"]


def step(now: Configuration, *, live: list[str], caught_up: bool = True, **uuids: str) -> Configuration | None:
    return next_step(now, uuids=uuids, live=live, caught_up=lambda _node: caught_up)


def test_a_node_is_added_as_a_learner_and_promoted_when_it_has_caught_up() -> None:
    now = added(THREE, "n4", "h:4", None, ALL)
    assert now.voters == THREE.voters
    assert step(now, live=[*ALL, "n4"], caught_up=False, n4="u4") == now.with_member("n4", Member("h:4", False, "u4"))
    now = now.with_member("n4", Member("h:4", False, "u4"))
    assert step(now, live=[*ALL, "n4"], caught_up=False) is None
    assert step(now, live=ALL) is None
    promoted = step(now, live=[*ALL, "n4"])
    assert promoted is not None
    assert promoted.voters == ("n1", "n2", "n3", "n4")


def test_each_step_of_a_replacement_changes_one_voter() -> None:
    now: Configuration | None = added(THREE, "n4", "h:4", "n3", ["n1", "n2"])
    seen = []
    while now is not None:
        seen.append(now.voters)
        now = step(now, live=["n1", "n2", "n4"], n1="u1", n2="u2", n4="u4")
    assert list(dict.fromkeys(seen)) == [("n1", "n2", "n3"), ("n1", "n2", "n3", "n4"), ("n1", "n2", "n4")]
    assert all(len(set(one) ^ set(other)) <= 1 for one, other in pairwise(seen))


def test_a_node_that_comes_back_with_a_new_folder_is_a_learner_of_unknown_uuid() -> None:
    now = THREE.with_member("n3", Member("h:3", True, "old"))
    after = added(now, "n3", "h:9", "n3", ["n1", "n2"])
    assert after.members["n3"] == Member("h:9", voter=False, void="old")
    assert after.voters == ("n1", "n2")
    assert step(after, live=ALL, n1="u1", n2="u2", n3="old") == step(after, live=ALL, n1="u1", n2="u2")
    replacing = added(THREE, "n4", "h:4", "n1", ALL)
    assert added(replacing, "n4", "h:5", "n4", ALL).members["n4"].replaces == "n1"  # what it was to do stays to be done
    noted = step(after, live=ALL, n3="new")
    assert noted is not None
    assert noted.members["n3"] == Member("h:9", voter=False, uuid="new")


@pytest.mark.parametrize(
    ("node", "address", "replaces", "live", "reason"),
    [
        ("n3", "h:3", None, ALL, "n3 is a member already"),
        ("n4", "h:2", None, ALL, "h:2 is the peer address of n2"),
        ("n4", "h:4", "n9", ALL, "n9 is no member"),
        ("n3", "h:3", "n3", ["n1", "n3"], "only 1 answer, and writes need 2: bring back n2 first"),
    ],
)
def test_what_may_not_be_added(node: str, address: str, replaces: str | None, live: list[str], reason: str) -> None:
    with pytest.raises(ChangeRefused, match=reason):
        added(THREE, node, address, replaces, live)


def test_a_second_learner_waits_for_the_first() -> None:
    with pytest.raises(ChangeRefused, match="n4 is still catching up"):
        added(added(THREE, "n4", "h:4", None, ALL), "n5", "h:5", None, ALL)


def test_what_would_lose_quorum_is_refused() -> None:
    with pytest.raises(ChangeRefused, match=r"\(n1, n3\) only 1 answer"):
        removed(THREE, "n2", ["n1", "n2"])
    assert removed(THREE, "n2", ["n1", "n3"]).voters == ("n1", "n3")
    with pytest.raises(ChangeRefused, match="n1 is the only voter"):
        removed(bootstrap({"n1": "h:1"}), "n1", ["n1"])
    with pytest.raises(ChangeRefused, match="n9 is no member"):
        removed(THREE, "n9", ALL)


def test_a_promotion_that_would_lose_quorum_waits() -> None:
    """With one of three dead, and another that does not answer now, four voters could not go on."""
    now = THREE.with_member("n4", Member("h:4", False, "u4"))
    assert step(now, live=["n1", "n4"]) is None


def test_configurations_that_are_truncated_are_undone_and_those_applied_are_kept() -> None:
    one, two = THREE.without("n3"), bootstrap({"n1": "h:1"})
    found = Memberships((0, THREE))
    found.note(5, one)
    found.note(8, two)
    assert (found.index, found.current, found.base) == (8, two, THREE)
    found.truncate(8)
    assert (found.index, found.current) == (5, one)
    found.settle(4)
    assert (found.base, found.dirty) == (THREE, False)
    found.settle(5)
    assert (found.base, found.dirty) == (one, True)
    assert base_of(found.encode()) == (5, one)


def test_a_voter_that_is_being_removed_may_be_needed_to_commit_that() -> None:
    found = Memberships((3, THREE))
    found.note(9, THREE.without("n3"))
    assert found.votes("n3", 8)
    assert not found.votes("n3", 9)


# Whole shards


async def join(cluster: Shards, name: str) -> RaftShard:
    cluster.voters.setdefault(name, free_addresses(1)[0])
    return await cluster.start(name, join=True)


def voters(shard: RaftShard) -> list[str]:
    return [peer.id for peer in shard.status().peers if peer.voter]


async def on_leader(cluster: Shards, change: Any) -> RaftShard:
    """Ask leader after leader."""
    async with asyncio.timeout(20):
        while True:
            leader = await cluster.leader()
            try:
                await change(leader)
            except (NotLeader, ChangeRefused) as error:
                if isinstance(error, ChangeRefused) and not isinstance(error, ChangeUnderway):
                    raise
                await asyncio.sleep(0.02)
            else:
                return leader


async def test_a_node_joins_catches_up_and_votes(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        for number in range(50):
            await leader.propose(enqueue(str(number).encode()))
        await join(cluster, "n4")
        await on_leader(cluster, lambda leader: leader.add("n4", cluster.voters["n4"]))
        await until(lambda: voters(cluster.running["n4"]) == ["n1", "n2", "n3", "n4"])
        leader = await cluster.leader()
        index, found = await leader.digest()
        assert set(found) == {"n1", "n2", "n3", "n4"}
        assert len(set(found.values())) == 1
        assert None not in found.values(), (index, found)


async def test_a_node_that_waits_to_be_added_disturbs_nobody(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        term = leader.status().term
        joiner = await join(cluster, "n4")
        await asyncio.sleep(2 * leader.config.timing.election_max)  # what must not happen has no condition to wait for
        assert (leader.status().role, leader.status().term) == ("leader", term)
        assert (joiner.status().leader, joiner.status().peers) == (None, [])


async def test_a_dead_node_is_replaced_while_the_cluster_works(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        dead = next(name for name in cluster.running if name != leader.config.node_id)
        await until(lambda: all(member.uuid for member in leader._engine.configuration.members.values()))
        await cluster.kill(dead)
        await join(cluster, "n4")
        await on_leader(cluster, lambda leader: leader.add("n4", cluster.voters["n4"], replaces=dead))
        rest = sorted({"n1", "n2", "n3", "n4"} - {dead})
        await until(lambda: all(voters(shard) == rest for shard in cluster.running.values()))
        # its old folder comes back, and is told that it is no member any more
        await cluster.start(dead)
        await until(lambda: dead in cluster.fatal)
        error = cluster.fatal.pop(dead)
        assert isinstance(error, Fenced)
        assert "removed" in str(error)


async def test_a_leader_that_is_removed_hands_over_first_and_ends(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        first = await cluster.leader()
        name = first.config.node_id
        await until(lambda: all(member.uuid for member in first._engine.configuration.members.values()))
        with pytest.raises(NotLeader):
            await first.remove(name)
        leader = await on_leader(cluster, lambda leader: leader.remove(name))
        assert leader is not first
        await until(lambda: name in cluster.fatal)
        assert isinstance(cluster.fatal.pop(name), Fenced)
        await leader.propose(enqueue(b"1"))
        assert voters(leader) == sorted({"n1", "n2", "n3"} - {name})


async def test_a_leader_whose_folder_is_exchanged_hands_over_first(tmp_path: Path) -> None:
    """Else its followers cut it off before they have confirmed the change, and all that is pending has no outcome."""
    async with shards(tmp_path) as cluster:
        first = await cluster.leader()
        name = first.config.node_id
        await until(lambda: all(member.uuid for member in first._engine.configuration.members.values()))
        with pytest.raises(NotLeader):
            await first.add(name, cluster.voters[name], replaces=name)
        assert first._engine.configuration.voters == ("n1", "n2", "n3")
        leader = await on_leader(cluster, lambda leader: leader.add(name, cluster.voters[name], replaces=name))
        assert leader is not first
        await until(lambda: name in cluster.fatal)
        assert isinstance(cluster.fatal.pop(name), Fenced)
        assert voters(leader) == sorted({"n1", "n2", "n3"} - {name})


async def test_an_emptied_folder_ends_and_comes_back_as_a_learner(tmp_path: Path) -> None:
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        name = next(name for name in cluster.running if name != leader.config.node_id)
        await until(lambda: all(member.uuid for member in leader._engine.configuration.members.values()))
        await leader.propose(enqueue(b"1"))
        await cluster.kill(name)
        shutil.rmtree(tmp_path / name)
        await cluster.start(name, node_uuid="another")
        await until(lambda: name in cluster.fatal)
        error = cluster.fatal.pop(name)
        assert isinstance(error, Fenced)
        assert "another data folder" in str(error)
        await cluster.kill(name)
        with pytest.raises(Fenced):
            await cluster.start(name, node_uuid="another")
        shutil.rmtree(tmp_path / name)
        await on_leader(cluster, lambda leader: leader.add(name, cluster.voters[name], replaces=name))
        await cluster.start(name, node_uuid="third", join=True)
        await until(lambda: all(voters(shard) == ALL for shard in cluster.running.values()))
        await (await cluster.leader()).propose(enqueue(b"2"))


async def test_a_follower_that_was_away_follows_a_leader_that_it_does_not_know(tmp_path: Path) -> None:
    """n3 sleeps while n4 and n5 take the places of n1 and n2: what it knows of the cluster is all gone but itself."""
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        sleeper = next(name for name in cluster.running if name != leader.config.node_id)
        await until(lambda: all(member.uuid for member in leader._engine.configuration.members.values()))
        await cluster.kill(sleeper)
        gone = [name for name in ALL if name != sleeper]
        for number, old in enumerate(gone, 4):
            await join(cluster, f"n{number}")
            await on_leader(
                cluster, lambda leader, new=f"n{number}", old=old: leader.add(new, cluster.voters[new], replaces=old)
            )
            rest = sorted({*ALL, "n4", *([f"n{number}"])} - set(gone[: number - 3]))
            await until(
                lambda rest=rest: (
                    voters(max(cluster.running.values(), key=lambda shard: shard.status().commit_index)) == rest
                )  # type: ignore[misc]
            )
            await until(lambda old=old: old in cluster.fatal)  # type: ignore[misc]
            cluster.fatal.pop(old)
            await cluster.kill(old)
        await cluster.start(sleeper)
        await until(lambda: voters(cluster.running[sleeper]) == sorted([sleeper, "n4", "n5"]))
        await (await cluster.leader()).propose(enqueue(b"1"))


async def test_a_node_that_began_a_cluster_of_its_own_is_not_let_in(tmp_path: Path) -> None:
    """It was started alone, without `join`, and then added. What it has committed would stay, at the indexes of other
    entries: its tables would differ, and it would vote."""
    async with shards(tmp_path) as cluster:
        cluster.voters["n4"] = free_addresses(1)[0]
        leader = await cluster.leader()
        alone = await cluster.start("n4", members={"n4": cluster.voters["n4"]})
        await until(lambda: alone.status().role == "leader" and alone.status().ready)
        for _ in range(5):
            await alone.propose(enqueue(b"alone"))
        for _ in range(15):
            await leader.propose(enqueue(b"together"))
        await leader.transfer()
        await on_leader(cluster, lambda _leader: _term_of_its_own(cluster).add("n4", cluster.voters["n4"]))
        leader = _term_of_its_own(cluster)
        told: list[str] = []
        leader._peers.tell = lambda _event, who, reason: told.append(reason)  # type: ignore[method-assign]
        await until(lambda: any("took part before" in reason for reason in told))
        assert not leader._peers.reachable("n4")
        assert "n4" not in leader._engine.voters
        # emptied, it joins
        await cluster.kill("n4")
        shutil.rmtree(tmp_path / "n4")
        await cluster.start("n4", node_uuid="new", join=True)
        await until(lambda: voters(cluster.running["n4"]) == ["n1", "n2", "n3", "n4"])
        _, found = await (await cluster.leader()).digest()
        assert len(set(found.values())) == 1


def _term_of_its_own(cluster: Shards) -> RaftShard:
    """The leader of the three."""
    found = [cluster.running[name] for name in ALL if cluster.running[name].status().role == "leader"]
    return max(found, key=lambda shard: shard.status().term)


async def test_a_voter_that_has_just_died_is_not_counted_on(tmp_path: Path) -> None:
    """It has echoed a round within the time of check-quorum, and its connection is closed: without it the two that
    would remain could not even commit the removal."""
    async with shards(tmp_path) as cluster:
        leader = await cluster.leader()
        await until(lambda: all(member.uuid for member in leader._engine.configuration.members.values()))
        dead, other = (name for name in ALL if name != leader.config.node_id)
        await cluster.kill(dead)
        await until(lambda: not leader._peers.reachable(dead))
        with pytest.raises(ChangeRefused, match=f"bring back {dead} first"):
            await leader.remove(other)
        await leader.propose(enqueue(b"1"))
