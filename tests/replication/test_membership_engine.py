"""Changes of the members at the engine: what a configuration means that is not committed, truncated, or skipped by a
snapshot; and random changes under random faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftq.replication.engine import CONFIGURATION, NO_OP
from raftq.replication.membership import Configuration, Member, bootstrap
from raftq.replication.progress import Flow
from raftq.replication.shard import ChangeRefused
from tests.replication.network import Message, Network, Snapshot

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
