"""The engine alone: Raft's safety under a network and crashes in the test's hands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.replication.network import Network


@pytest.fixture
def network(tmp_path: Path):
    network = Network(tmp_path)
    yield network
    network.close()


def test_one_leader_is_elected_and_replicates(network: Network) -> None:
    network.settle()
    leader = network.leader
    index = network.propose(leader, b"one")
    network.settle()
    assert [member.engine.commit_index for member in network.members.values()] == [index] * 3
    assert all(member.applied == [(index, b"\0one")] for member in network.members.values())


def test_a_single_node_leads_itself_only_once_its_vote_is_durable(tmp_path: Path) -> None:
    network = Network(tmp_path, size=1)
    network.now += 1
    engine = network["n1"].engine
    engine.tick()
    assert engine.role == "candidate"
    network.cycle("n1")
    assert engine.is_leader
    network.settle(0.1)
    network.propose("n1", b"one")
    network.settle(0.1)
    assert network["n1"].applied
    network.close()


def test_an_entry_without_a_majority_is_not_committed(network: Network) -> None:
    network.settle()
    leader = network.leader
    network.isolate(leader)
    committed = network[leader].engine.commit_index
    network.propose(leader, b"lost")
    network.settle()
    assert network[leader].engine.commit_index == committed
    assert not network[leader].engine.is_leader
    network.settle()
    other = network.leader
    assert other != leader
    network.propose(other, b"kept")
    network.settle()
    network.heal()
    network.settle()
    assert all([command for _, command in member.applied] == [b"\0kept"] for member in network.members.values())


def test_a_killed_leader_is_replaced_and_comes_back(network: Network) -> None:
    network.settle()
    old = network.leader
    network.propose(old, b"before")
    network.settle()
    network.crash(old)
    network.settle(0.3)
    network.propose(network.leader, b"after")
    network.settle()
    network.restart(old)
    network.settle()
    logs = {member.engine.commit_index for member in network.members.values()}
    assert len(logs) == 1


def test_a_rejoining_node_does_not_depose_a_healthy_leader(network: Network) -> None:
    network.settle()
    leader, term = network.leader, network[network.leader].engine.term
    follower = next(name for name in network.names if name != leader)
    network.isolate(follower)
    network.settle(5)
    network.heal()
    network.settle()
    assert (network.leader, network[leader].engine.term) == (leader, term)


def test_transfer_hands_leadership_to_the_target(network: Network) -> None:
    network.settle()
    leader = network.leader
    target = next(name for name in network.names if name != leader)
    network.propose(leader, b"one")
    network[leader].engine.transfer(target)
    network.settle(0.2)
    assert network.leader == target
    assert not network[leader].engine.is_leader


def test_a_paused_leader_steps_down_before_it_serves(network: Network) -> None:
    network.settle()
    leader = network.leader
    others = [name for name in network.names if name != leader]
    stale = [item for item in network.wire if item[1] == leader]
    for _ in range(500):
        network.tick(names=others)
        network.wire = [item for item in network.wire if leader not in item[:2]] or []
        while network.wire:
            network.deliver()
            network.wire = [item for item in network.wire if leader not in item[:2]]
    network.wire += stale
    network.tick(names=[leader])
    assert not network[leader].engine.is_leader


def test_a_read_counts_only_rounds_begun_after_it(network: Network) -> None:
    network.settle()
    leader = network[network.leader].engine
    confirmed = leader.confirmed_round()
    leader.broadcast()
    begun = leader.round
    assert confirmed < begun
    assert leader.confirmed_round() < begun
    network.settle(0.05)
    assert leader.confirmed_round() >= begun


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("seed", range(int(os.environ.get("RAFTQ_SEEDS", "4"))))
def test_random_faults_keep_the_log_safe_and_the_cluster_alive(tmp_path: Path, seed: int, size: int) -> None:
    """Reordered, repeated and lost messages, cuts, crashes before and after commits; then no faults, and all agree."""
    network = Network(tmp_path, size=size, seed=seed)
    dice = network.random
    acknowledged: list[tuple[int, bytes]] = []
    for step in range(3000):
        _disturb(network)
        if network.wire and dice.random() < 0.9:
            place = dice.randrange(min(len(network.wire), 4 if dice.random() < 0.2 else 1))
            if dice.random() < 0.03:
                network.wire.append(network.wire[place])
            network.deliver(place, commit=dice.random() < 0.8)
        else:
            network.tick(dice.choice([0.005, 0.02, 0.1]))
        for name in network.names:
            member = network[name]
            if (
                member.up
                and member.engine.own_term_committed
                and not member.engine.transferring
                and dice.random() < 0.1
            ):
                network.propose(name, str(step).encode())
                network.cycle(name, commit=dice.random() < 0.7)
            if member.up:
                acknowledged += [item for item in member.applied[-3:] if item not in acknowledged[-50:]]
    for name in network.names:
        if not network[name].up:
            network.restart(name)
    network.heal()
    network.settle(5)
    network.propose(network.leader, b"end")
    network.settle(1)
    assert {member.engine.commit_index for member in network.members.values()} == {
        network[network.leader].journal.last_index
    }
    final = {index: command for index, (_, command) in network.committed.items()}
    assert all(final[index] == command for index, command in acknowledged)
    network.close()


def _disturb(network: Network) -> None:
    dice = network.random
    down = [name for name in network.names if not network[name].up]
    if dice.random() < 0.004 and len(down) * 2 + 1 < len(network.names):
        network.crash(dice.choice([name for name in network.names if network[name].up]))
    if down and dice.random() < 0.02:
        network.restart(dice.choice(down))
    if dice.random() < 0.004:
        network.isolate(dice.choice(network.names))
    if network.cut and dice.random() < 0.02:
        network.heal()
    if dice.random() < 0.003:
        leaders = [name for name in network.names if network[name].up and network[name].engine.is_leader]
        if leaders:
            network[leaders[0]].engine.transfer(dice.choice([name for name in network.names if name != leaders[0]]))
