"""What a forced recovery finds in a folder, and makes of it. Whole clusters: tests/cluster/test_recover.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftq.node import identity, recovery
from raftq.node.exits import Exit, Fatal
from raftq.replication import membership
from raftq.replication.cycle import CLOCKS, FENCED, MEMBERSHIP
from raftq.replication.engine import CONFIGURATION, NO_OP, REGULAR
from raftq.replication.membership import Configuration, Member, Memberships
from raftq.replication.roster import META as ROSTER
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.machine import commands, entries
from raftq.storage.machine.commands import Expire, Incarnate
from raftq.storage.machine.entries import Clocks

THREE = membership.bootstrap({"n1": "h:1", "n2": "h:2", "n3": "h:3"})
EXPIRE = commands.encode(Expire())


def folder_of(path: Path, *entries_: tuple[int, bytes], applied: int = 1, **meta: bytes) -> Path:
    """A folder of n1 with a log of (term, command) from index 2 on."""
    environment = Environment(path)
    owner = identity.begin(environment, "c1", "n1")
    assert owner.boot == 1
    log = [(1, 0, NO_OP), *((index, term, command) for index, (term, command) in enumerate(entries_, 2))]
    meta = {"applied": u64(applied), "clocks": CLOCKS.pack(5, 6), "term": u64(3), "vote": b"n2"} | meta
    identity.commit(environment, WriteBatch(entries=log, meta=meta))
    environment.close()
    return path


def regular(lease_ms: int, wall_ms: int) -> bytes:
    return entries.encode(Clocks(lease_ms, wall_ms), [EXPIRE], REGULAR)


def stored(path: Path) -> tuple[dict[str, bytes | None], list[tuple[bytes, int, int]]]:
    environment = Environment(path)
    named = {name: environment.meta(name) for name in ("term", "vote", "applied", ROSTER, FENCED, identity.META)}
    log = environment.log_entries(1, 1 << 30, 1 << 30) if environment.log_bounds() else []
    environment.close()
    return named, log


def test_what_a_folder_holds(tmp_path: Path) -> None:
    learner = THREE.with_member("n4", Member("h:4", voter=False))
    folder = folder_of(
        tmp_path / "n1",
        (2, regular(7, 8)),
        (2, CONFIGURATION + learner.encode()),
        (3, regular(9, 10)),
        (3, NO_OP),
        applied=2,
        **{MEMBERSHIP: Memberships((0, THREE)).encode()},
    )
    found = recovery.look(folder)
    assert (found.identity.node_id, found.identity.cluster_id, found.identity.boot) == ("n1", "c1", 1)
    assert (found.term, found.place, found.applied_index) == (3, (3, 5), 2)
    assert (found.configuration, found.clocks, found.fenced) == (learner, Clocks(9, 10), "")


def test_the_folder_with_the_later_term_is_ahead_of_the_longer_one(tmp_path: Path) -> None:
    longer = recovery.look(folder_of(tmp_path / "n1", (1, NO_OP), (1, NO_OP), (1, NO_OP)))
    later = recovery.look(folder_of(tmp_path / "n2", (2, NO_OP)))
    assert later.place > longer.place


def test_a_cluster_of_one_with_what_the_folder_holds(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "n1",
        (2, regular(7, 8)),
        (2, CONFIGURATION + THREE.without("n1").encode()),
        **{ROSTER: b"known", FENCED: b"it was removed", MEMBERSHIP: Memberships((0, THREE)).encode()},
    )
    before = recovery.look(folder).identity
    recovery.recover(folder, "c2", "h:9", wall_ms=1000)
    named, log = stored(folder)
    assert [(index, term) for _, index, term in log[3:]] == [(4, 4), (5, 4)]
    assert log[:3] == [(NO_OP, 1, 0), (regular(7, 8), 2, 2), (CONFIGURATION + THREE.without("n1").encode(), 3, 2)]
    after = recovery.look(folder)
    assert (after.identity.cluster_id, after.identity.node_id, after.identity.boot) == ("c2", "n1", 0)
    assert after.identity.node_uuid != before.node_uuid
    assert after.configuration == Configuration({"n1": Member("h:9", uuid=after.identity.node_uuid)})
    clocks, [command] = entries.decode(log[4][0], 1)
    assert (clocks, commands.decode(command)) == (Clocks(7, 1000), Incarnate())
    assert (named["term"], named["vote"], named["applied"], named[ROSTER]) == (u64(4), b"", u64(1), b"")
    assert after.fenced == ""


def test_cluster_time_never_goes_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "n1", (2, regular(7, 8000)))
    recovery.recover(folder, "c2", "h:1", wall_ms=1000)
    assert recovery.look(folder).clocks == Clocks(7, 8000)


def test_its_peer_address_is_what_the_members_know_or_must_be_given(tmp_path: Path) -> None:
    known = folder_of(tmp_path / "n1", (2, CONFIGURATION + THREE.encode()))
    recovery.recover(known, "c2", None, wall_ms=0)
    found = recovery.look(known).configuration
    assert found is not None
    assert found.members["n1"].peer_address == "h:1"
    unknown = folder_of(tmp_path / "n2", (2, NO_OP))
    assert "give --peer-address" in refusal(unknown, "c2")


def refusal(folder: Path, cluster_id: str, code: Exit = Exit.USAGE) -> str:
    """Why; and nothing is changed."""
    before = stored(folder) if (folder / "data.mdb").exists() else None
    with pytest.raises(Fatal) as caught:
        recovery.recover(folder, cluster_id, None, wall_ms=0)
    assert caught.value.code is code
    assert before is None or stored(folder) == before
    return str(caught.value)


def test_the_cluster_needs_a_new_id(tmp_path: Path) -> None:
    assert "another id than c1" in refusal(folder_of(tmp_path / "n1", (2, CONFIGURATION + THREE.encode())), "c1")


def test_what_is_no_folder_of_a_node_is_refused_and_not_made_one(tmp_path: Path) -> None:
    assert "holds no data.mdb" in refusal(tmp_path / "none", "c2")
    assert not (tmp_path / "none").exists()
    Environment(tmp_path / "empty").close()
    assert "holds nothing" in refusal(tmp_path / "empty", "c2")


def test_a_node_that_runs_is_left_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "n1", (2, NO_OP))
    environment = Environment(folder)
    with pytest.raises(Fatal) as caught:
        recovery.recover(folder, "c2", "h:1", wall_ms=0)
    environment.close()
    assert caught.value.code is Exit.FOLDER_IN_USE
