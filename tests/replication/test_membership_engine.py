"""Changes of the members at the engine: what a configuration means that is not committed, truncated, or skipped by a
snapshot; and random changes under random faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from raftq.replication.engine import CONFIGURATION, NO_OP
from raftq.replication.membership import Configuration, Member, bootstrap
from raftq.replication.progress import Flow
from raftq.replication.shard import ChangeUnderway
from tests.replication.network import Message, Network, Snapshot
from tests.replication.test_engine import Faults

Maker = Callable[..., Network]

VOTER, LEARNER = Member(""), Member("", voter=False)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Maker]:
    made: list[Network] = []

    def make(size: int = 3, seed: int = 1, flow: Flow | None = None) -> Network:
        made.append(Network(tmp_path, size=size, seed=seed, flow=flow))
        return made[-1]

    yield make
    for network in made:
        network.close()


def of(*names: str) -> Configuration:
    return bootstrap(dict.fromkeys(names, ""))


def append(network: Network, name: str, prev: int, *entries: tuple[int, bytes], term: int, commit: int = 0) -> Message:
    """What a leader of `term` sends to `name`, whose log holds `prev`."""
    return {
        "type": "append",
        "term": term,
        "round": 1,
        "prev_index": prev,
        "prev_term": network[name].journal.term_at(prev),
        "commit": commit,
        "compact": 0,
        "entries": list(entries),
    }


def test_a_configuration_in_the_place_of_another_is_acted_on(network: Maker) -> None:
    """n3 leads, and makes a change at some index that nobody hears of. Another leader has its own no-op in the place of
    an entry before it, and another change at the same index."""
    cluster = network(5)
    n3 = cluster["n3"].engine
    committed = n3.commit_index
    n3.step("n1", append(cluster, "n3", 1, (1, NO_OP), (1, b"\0x"), term=1))
    n3.step("n1", append(cluster, "n3", 3, (1, CONFIGURATION + of("n1", "n2", "n3", "n4").encode()), term=1))
    cluster.cycle("n3")
    assert (n3.memberships.index, n3.voters) == (4, ("n1", "n2", "n3", "n4"))
    others = of("n1", "n3", "n4", "n5")
    n3.step("n2", append(cluster, "n3", 2, (2, NO_OP), (2, CONFIGURATION + others.encode()), term=2))
    cluster.cycle("n3")
    assert n3.commit_index == committed
    assert n3.configuration == others
    assert n3.voters == others.voters
    assert sorted(n3._others) == ["n1", "n4", "n5"]


def test_votes_that_were_counted_before_a_snapshot_do_not_count_after_it(network: Maker) -> None:
    """A candidate has a vote of n4 when a snapshot is installed, by which n4 is a voter no more."""
    cluster = network(5)
    n1 = cluster["n1"].engine
    cluster.now += 1
    n1.tick()
    for name in ("n4", "n5"):
        n1.step(name, {"type": "prevote_answer", "term": 0, "asked": 1, "granted": True})
    assert n1.role == "candidate"
    cluster.cycle("n1")
    n1.step("n4", {"type": "vote_answer", "term": 1, "asked": 1, "granted": True})
    assert n1.role == "candidate"
    assert cluster["n1"].install(Snapshot(50, 1, (40, of("n1", "n2", "n3", "n6", "n7"))))
    n1.step("n2", {"type": "vote_answer", "term": 1, "asked": 1, "granted": True})
    cluster.cycle("n1")
    assert not n1.is_leader


def test_a_new_leader_changes_nothing_before_its_term_is_committed(network: Maker) -> None:
    """Else what it takes for committed may be a change that another leader has undone meanwhile (Ongaro's erratum)."""
    cluster = network(3)
    cluster.settle()
    old = cluster.leader
    cluster.crash(old)
    follower = next(name for name in cluster.names if cluster[name].up)
    while not cluster[follower].engine.is_leader:
        cluster.tick(names=[follower])
        while cluster.wire and not cluster[follower].engine.is_leader:
            cluster.deliver()
    engine = cluster[follower].engine
    assert engine.memberships.index <= engine.commit_index
    with pytest.raises(ChangeUnderway):
        engine.change(of("n1", "n2"))
    cluster.settle(0.1)
    assert engine.change(of("n1", "n2")) > engine.commit_index


def test_a_voter_whose_folder_is_exchanged_begins_with_nothing(network: Maker) -> None:
    """What its old folder had acknowledged counts no more, also when that was heard after the change."""
    cluster = network(3)
    cluster.settle()
    leader = cluster.leader
    node = next(name for name in cluster.names if name != leader)
    engine = cluster[leader].engine
    cluster.propose(leader, b"x")
    cluster.cycle(leader)
    assert engine.match_index(node)
    cluster.change(leader, engine.configuration.with_member(node, LEARNER))
    assert engine.match_index(node) == 0
    cluster.settle(0.1)
    assert engine.match_index(node) == engine.commit_index
    cluster.unlink(leader, node)
    assert engine.match_index(node) == 0


@pytest.mark.parametrize("kind", ["prevote", "vote"])
def test_a_folder_that_waits_to_be_added_does_not_vote(network: Maker, kind: str) -> None:
    """It may be the new folder of a voter, and what that had promised is not in it. With a configuration it votes,
    also as a learner: it may be a voter by one that it has not seen."""
    cluster = network(3)
    cluster.settle()
    cluster.add("n4")
    engine = cluster["n4"].engine
    request = {"type": kind, "term": 9, "last_index": 50, "last_term": 99, "transfer": False}
    engine.step("n1", request)
    assert [message["granted"] for _, message in engine.held] == [False]
    cluster.cycle("n4")
    cluster.change(cluster.leader, cluster[cluster.leader].engine.configuration.with_member("n4", LEARNER))
    cluster.settle(1)
    assert engine.configuration.members["n4"] == LEARNER
    cluster.now += 1
    engine.step("n1", request | {"term": engine.term + 1})
    assert [message["granted"] for _, message in engine.held] == [True]


def test_a_change_and_a_transfer_are_never_under_way_together(network: Maker) -> None:
    cluster = network(3)
    cluster.settle()
    leader = cluster.leader
    engine = cluster[leader].engine
    target, other = (name for name in cluster.names if name != leader)
    cluster.change(leader, engine.configuration.without(target))
    engine.transfer(target)
    assert not engine.transferring
    cluster.settle(0.2)
    engine.transfer(other)
    assert engine.transferring
    with pytest.raises(ChangeUnderway):
        engine.change(engine.configuration.without(other))


def test_a_leader_that_removed_itself_leads_until_that_is_committed(network: Maker) -> None:
    """It does not count itself for it (thesis, 4.2.2)."""
    cluster = network(3)
    cluster.settle()
    leader = cluster.leader
    engine = cluster[leader].engine
    others = [name for name in cluster.names if name != leader]
    cluster.isolate(others[1])
    index = cluster.change(leader, engine.configuration.without(leader))
    cluster.cycle(leader)
    while cluster.wire:
        cluster.deliver()
    assert engine.is_leader
    assert (engine.commit_index < index, engine.match_index(others[0])) == (True, index)
    cluster.heal()
    cluster.settle(1)
    assert not engine.is_leader
    assert cluster.leader in others
    assert cluster[cluster.leader].engine.commit_index > index
    assert engine.election_in < 1  # it lets time pass
    cluster.settle(2)
    assert cluster.leader in others


class Unrest(Faults):
    """As `Faults`, and the members change: nodes are added, promoted, made learners and removed, the leader too. Who
    lacks what the log holds no more gets a snapshot, at some later moment."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.changes = self.installed = 0
        self._snapshots: list[tuple[str, Snapshot]] = []

    def step(self, number: int) -> None:
        super().step(number)
        network = self.network
        if len(network.names) < 8 and self._chance(0.003):
            network.add(f"n{len(network.names) + 1}")
        for name in network.names:
            if network[name].up and name not in network.paused:
                self._begin_changes(name)
                self._offer(name)
        self._install()

    def _begin_changes(self, name: str) -> None:
        """Several at once, as far as they are taken; sometimes by a leader that nobody hears from now on."""
        engine = self.network[name].engine
        if not engine.is_leader or not self._chance(0.02):
            return
        if self._chance(0.1):
            self.network.isolate(name)
        self._change(name)
        while engine.is_leader and self._chance(0.7):
            self._change(name)

    def _change(self, name: str) -> None:
        engine = self.network[name].engine
        now = engine.configuration
        node = self.dice.choice(self.network.names)
        member = now.members.get(node)
        if member is None:
            after = now.with_member(node, LEARNER)
        elif member.voter:
            after = self.dice.choice([now.without(node), now.with_member(node, LEARNER)])
        elif (engine.match_index(node) or 0) >= engine.memberships.index:  # else it may be empty, and does not vote
            after = now.with_member(node, VOTER)
        else:
            return
        if not after.voters:
            return
        with suppress(ChangeUnderway):
            self.network.change(name, after)
            self.changes += 1
            self.network.cycle(name, commit=name not in self.slow and self._chance(0.7))

    def _offer(self, name: str) -> None:
        member = self.network[name]
        for node in member.engine.lacking():
            if self._chance(0.1) and (name, node) in self.network.linked:
                self._snapshots.append((node, member.snapshot()))

    def _install(self) -> None:
        if self._snapshots and self._chance(0.2):
            node, snapshot = self._snapshots.pop(self.dice.randrange(len(self._snapshots)))
            member = self.network[node]
            free = member.up and node not in self.network.paused and not member.journal.dirty
            if free and not member.engine.is_leader:
                self.installed += member.install(snapshot)
                self.network.cycle(node)

    def settle(self, seconds: float) -> None:
        """Let time pass without faults; snapshots are installed at once."""
        end = self.network.now + seconds
        while self.network.now < end:
            self.network.settle(0.1)
            for name in self.network.names:
                for node in self.network[name].engine.lacking():
                    self.installed += self.network[node].install(self.network[name].snapshot())
                    self.network.cycle(node)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("seed", range(int(os.environ.get("RAFTQ_SEEDS", "4"))))
def test_random_changes_under_random_faults(network: Maker, seed: int, size: int) -> None:
    """Then no faults, and the members agree on all, as on who they are."""
    cluster = network(size, seed=1000 + seed, flow=Flow(lag_bytes=1))
    unrest = Unrest(cluster)
    for number in range(2500):
        unrest.step(number)
    unrest.heal()
    unrest.settle(5)
    cluster.propose(cluster.leader, b"end")
    unrest.settle(1)
    assert unrest.changes > 0
    leader = cluster[cluster.leader]
    members = [cluster[name] for name in leader.engine.configuration.members]
    assert leader.engine.memberships.index <= leader.engine.commit_index
    assert {member.engine.commit_index for member in members} == {leader.journal.last_index}
    assert all(member.engine.configuration == leader.engine.configuration for member in members)
    for index in range(max(member.journal.first_index for member in members) + 1, leader.journal.last_index + 1):
        assert len({member.journal.entries(index, 0, 1)[0] for member in members}) == 1
    final = {index: command for index, (_, command) in cluster.committed.items()}
    assert all(final[index] == command for index, command in unrest.acknowledged)
