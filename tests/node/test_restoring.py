"""The data folders that a restore makes. Whole clusters: tests/cluster/test_backup.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftq.node import identity, restoring
from raftq.node.cluster_file import ClusterFile
from raftq.node.exits import Exit, Fatal
from raftq.node.folder_lock import FolderLock
from raftq.replication import membership
from raftq.replication.cycle import CLOCKS, FENCED, MEMBERSHIP
from raftq.replication.engine import NO_OP, REGULAR
from raftq.replication.membership import Memberships, base_of
from raftq.replication.roster import META as ROSTER
from raftq.storage import snapshot
from raftq.storage.environment import Environment, WriteBatch, u64
from raftq.storage.machine import commands, entries
from raftq.storage.machine.commands import Incarnate
from raftq.storage.machine.entries import Clocks

OLD = membership.bootstrap({"n1": "h:1", "n2": "h:2"})
NEW = {"a": "h:7", "b": "h:8"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A backup of c1 at (4, 2)."""
    environment = Environment(tmp_path / "old")
    identity.begin(environment, "c1", "n1")
    meta = {"applied": u64(4), "clocks": CLOCKS.pack(50, 60), "term": u64(9), "vote": b"n2", ROSTER: b"r", FENCED: b"f"}
    meta[MEMBERSHIP] = Memberships((3, OLD)).encode()
    log = [(index, term, NO_OP) for index, term in ((1, 0), (2, 1), (3, 1), (4, 2), (5, 2))]
    identity.commit(environment, WriteBatch(entries=log, meta=meta, tables=[(b"k", b"v")]))
    snapshot.write(environment, tmp_path / "b.snapshot", "c1")
    environment.close()
    return tmp_path / "b.snapshot"


def make(file: Path, folder: Path, name: str = "a", cluster_id: str = "c2", wall_ms: int = 0) -> None:
    restoring.node(file, folder, cluster_id=cluster_id, node_id=name, members=NEW, wall_ms=wall_ms)


def test_a_node_begins_with_the_tables_and_nothing_else_of_the_old_cluster(file: Path, tmp_path: Path) -> None:
    make(file, tmp_path / "a", wall_ms=70)
    environment = Environment(tmp_path / "a")
    owner = identity.stored(environment)
    assert owner is not None
    assert (owner.cluster_id, owner.node_id, owner.boot) == ("c2", "a", 0)
    stored = environment.meta(MEMBERSHIP)
    assert stored is not None
    assert base_of(stored) == (0, membership.bootstrap(NEW))
    assert (environment.applied(), environment.meta("term"), environment.meta("vote")) == (4, u64(3), b"")
    assert (environment.meta(ROSTER), environment.meta(FENCED)) == (None, None)
    boundary, (command, index, term) = environment.log_entries(4, 1 << 20, 9)
    assert (boundary, index, term) == ((NO_OP, 4, 2), 5, 3)
    clocks, [incarnate] = entries.decode(command, 1)
    assert (command[:1], clocks, commands.decode(incarnate)) == (REGULAR, Clocks(50, 70), Incarnate())
    with environment.begin_read() as txn:
        assert txn.get(b"k") is not None
    environment.close()


def test_the_logs_of_all_nodes_are_equal(file: Path, tmp_path: Path) -> None:
    logs, uuids = [], []
    for name in NEW:
        make(file, tmp_path / name, name)
        environment = Environment(tmp_path / name)
        logs.append(environment.log_entries(4, 1 << 20, 9))
        owner = identity.stored(environment)
        assert owner is not None
        uuids.append(owner.node_uuid)
        environment.close()
    assert logs[0] == logs[1]
    assert uuids[0] != uuids[1]


def refusal(code: Exit, file: Path, folder: Path, **given: str) -> str:
    with pytest.raises(Fatal) as caught:
        make(file, folder, **given)  # type: ignore[arg-type]
    assert caught.value.code is code
    return str(caught.value)


def test_what_cannot_be_restored(file: Path, tmp_path: Path) -> None:
    assert "another cluster_id" in refusal(Exit.CONFIG, file, tmp_path / "a", cluster_id="c1")
    assert "No such file" in refusal(Exit.FILE_REFUSED, tmp_path / "none", tmp_path / "a")
    make(file, tmp_path / "a")
    assert "restore into a new folder" in refusal(Exit.CONFIG, file, tmp_path / "a")
    file.write_bytes(file.read_bytes()[:-1])
    assert "b.snapshot: is damaged" in refusal(Exit.FILE_REFUSED, file, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_local_cluster(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    state, head = restoring.local(file, folder, 2, 21000)
    assert head.index == 4
    assert ClusterFile(folder).read() == state
    assert [(node.id, node.api_url) for node in state.nodes] == [
        ("n1", "http://127.0.0.1:21000"),
        ("n2", "http://127.0.0.1:21001"),
    ]
    for node in state.nodes:
        environment = Environment(Path(node.data))
        owner = identity.stored(environment)
        environment.close()
        assert owner is not None
        assert (owner.cluster_id, owner.node_id) == (state.cluster_id, node.id)


def test_no_cluster_that_is_there_is_touched(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "n2").mkdir(parents=True)
    with pytest.raises(Fatal, match="n2 is there already"):
        restoring.local(file, folder, 2, 21000)
    assert [path.name for path in folder.iterdir()] == ["n2"]
    lock = FolderLock(folder)
    with pytest.raises(Fatal) as caught:
        restoring.local(file, folder, 2, 21000)
    lock.release()
    assert caught.value.code is Exit.FOLDER_IN_USE
