"""A new cluster from a backup: the data folders of its nodes, as they are before their first start.

All nodes begin alike: with the tables of the backup, and a log of its boundary and one entry after it, the new
incarnation. Invariant: nothing else of the old cluster comes along, neither its id nor its members, so that none of its
nodes can take part; and receipts that it gave settle nothing here.
"""

from __future__ import annotations

import time
from pathlib import Path

from raftq.node import folders, identity
from raftq.node.cluster_file import ClusterFile, LocalClusterState
from raftq.node.exits import Exit, Fatal
from raftq.node.folder_lock import FolderInUse, FolderLock
from raftq.node.local_cluster import new_state
from raftq.replication import membership
from raftq.replication.cycle import CLOCKS, MEMBERSHIP
from raftq.replication.engine import REGULAR
from raftq.replication.membership import Memberships
from raftq.storage import snapshot
from raftq.storage.machine import commands, entries
from raftq.storage.machine.commands import Incarnate
from raftq.storage.machine.entries import Clocks
from raftq.storage.snapshot import SnapshotHead


def checked(file: Path) -> SnapshotHead:
    """Reads all of a backup. Raises Fatal(FILE_REFUSED)."""
    try:
        with folders.fatal(file.parent):
            return snapshot.check(file)
    except OSError as error:
        raise Fatal(Exit.FILE_REFUSED, f"cannot read {file}: {error.strerror}") from error


def node(
    file: Path, folder: Path, *, cluster_id: str, node_id: str, members: dict[str, str], wall_ms: int
) -> SnapshotHead:
    """The data folder of one node of a cluster of `members`. `wall_ms`, when the restore took place, must be the same
    for all of them. Raises Fatal, and leaves a folder that holds data as it is."""
    head = checked(file)
    if head.cluster_id == cluster_id:
        raise Fatal(
            Exit.CONFIG,
            f"{file} is of the cluster {cluster_id} itself: give the new one another cluster_id, so that what is left "
            f"of the old one cannot mix with it",
        )
    meta = {
        identity.META: identity.encode(identity.new(cluster_id, node_id)),
        MEMBERSHIP: Memberships((0, membership.bootstrap(members))).encode(),
    }
    clocks = Clocks(*CLOCKS.unpack(head.clocks)) if head.clocks else Clocks(0, 0)
    with folders.fatal(folder):
        return snapshot.restore(file, folder, meta, command=incarnation(clocks, wall_ms))


def incarnation(clocks: Clocks, wall_ms: int) -> bytes:
    """The entry with which a new incarnation begins, after one of `clocks`. Cluster time never goes back."""
    now = clocks._replace(wall_ms=max(clocks.wall_ms, wall_ms))
    return entries.encode(now, [commands.encode(Incarnate())], REGULAR)


def local(file: Path, folder: Path, size: int, port: int) -> tuple[LocalClusterState, SnapshotHead]:
    """A cluster of local processes in `folder`, ready for `raftq up`. Raises Fatal."""
    folder = folder.absolute()
    try:
        lock = FolderLock(folder)
    except FolderInUse as error:
        raise Fatal(Exit.FOLDER_IN_USE, f"{error}: restore into another --data") from error
    except OSError as error:
        raise Fatal(Exit.CONFIG, f"cannot use the folder {folder}: {error.strerror}") from error
    try:
        return _local(file, folder, size, port)
    finally:
        lock.release()


def _local(file: Path, folder: Path, size: int, port: int) -> tuple[LocalClusterState, SnapshotHead]:
    """`cluster.json` comes last: an interrupted restore is none."""
    state = new_state(folder, size, port)
    there = [path for path in (ClusterFile(folder).path, *(Path(each.data) for each in state.nodes)) if path.exists()]
    if there:
        raise Fatal(Exit.CONFIG, f"{there[0]} is there already: restore into a new folder, with another --data")
    members = {each.id: each.peer_address for each in state.nodes}
    now_ms = time.time_ns() // 1_000_000
    for each in state.nodes:
        head = node(
            file,
            Path(each.data),
            cluster_id=state.cluster_id,
            node_id=each.id,
            members=members,
            wall_ms=now_ms,
        )
    ClusterFile(folder).create(state)
    return state, head
