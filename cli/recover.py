"""`raftq recover`: forced recovery from a lost quorum."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import click

from raftq.cli.tables import show
from raftq.node import recovery, settings
from raftq.node.cluster_file import ClusterFile, LocalClusterState
from raftq.node.exits import Exit, Fatal
from raftq.node.folder_lock import FolderInUse, FolderLock
from raftq.node.recovery import Found

_DANGER = """
This makes a cluster of {node} alone out of this folder, and cannot be undone. Do it only when a majority of the nodes
is lost for ever: their disks are gone, not only their processes or the network.
  - What was acknowledged and stands in the logs of the lost nodes alone is gone.
  - Entries above {applied:,} were perhaps never acknowledged, or were answered as unknown. They count from now on.
  - Leases end, and receipts given so far are gone. Messages that were leased are delivered again.
  - The cluster gets a new id. The other nodes, should they come back, are refused, and what they have stays there.
Choose the folder with the longest log: raftq recover --look FOLDER ...
Copy the folder first, if there is room.
"""


@click.command()
@click.option("--look", is_flag=True, help="Compare the FOLDERs, and change nothing.")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, file_okay=False), metavar="[FOLDER]...")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder of the node to go on.")
@click.option("--cluster-id", metavar="NAME", help="The new id of the cluster.  [default: made up]")
@click.option("--peer-address", metavar="HOST:PORT", help="Where others will reach it.  [default: as before]")
@click.option("--yes", is_flag=True, help="Do not ask.")
def recover(
    look: bool,
    folders: tuple[Path, ...],
    data: Path | None,
    cluster_id: str | None,
    peer_address: str | None,
    yes: bool,
) -> None:
    """Make a cluster of one node that is left, when a majority is lost for ever.

    Offline, on the data folder of that node, which is stopped. It goes on from what that folder holds, committed or
    not; what it lacks is lost. Add other nodes afterwards, with new folders: raftq cluster add.
    """
    if look:
        if data is not None or not folders:
            raise click.UsageError("give --look the data folders to be compared")
        _show([recovery.look(folder) for folder in folders])
        return
    if data is None or folders:
        raise click.UsageError("give --data FOLDER, the data folder of the node to go on; or --look FOLDER ...")
    if peer_address is not None:
        settings.checked("peer_address", peer_address, "--peer-address")
    new_id = settings.checked("cluster_id", cluster_id or f"recovered-{uuid.uuid4().hex[:8]}", "--cluster-id")
    local = _Local(data)
    try:
        _recover(data, new_id, peer_address or local.peer_address, yes)
        local.keep_alone(new_id)
    finally:
        local.release()
    click.echo(local.next_steps(new_id))


def _recover(data: Path, cluster_id: str, peer_address: str | None, yes: bool) -> None:
    found = recovery.look(data)
    node = found.identity.node_id
    _show([found])
    if not yes:
        click.echo(_DANGER.format(node=node, applied=found.applied_index))
        if click.prompt(f"Type {node} to go on", default="", show_default=False) != node:
            raise Fatal(Exit.USAGE, "nothing was changed")
    recovery.recover(data, cluster_id, peer_address, time.time_ns() // 1_000_000)
    click.echo(f"{node} is the only node of the new cluster {cluster_id}")


def _show(found: list[Found]) -> None:
    rows: list[tuple[str, ...]] = [
        ("folder", "node", "cluster", "starts", "term", "last entry", "of term", "applied", "may take part")
    ]
    for each in found:
        owner = each.identity
        numbers = (owner.boot, each.term, each.last_index, each.last_term, each.applied_index)
        text = [f"{number:,}" for number in numbers]
        barred = f"no: {each.fenced}" if each.fenced else "yes"
        rows.append((str(each.folder), owner.node_id, owner.cluster_id, *text, barred))
    show(rows)
    if len(found) < 2:
        return
    if len({each.identity.cluster_id for each in found}) > 1:
        raise Fatal(Exit.USAGE, "these are folders of several clusters: compare those of one")
    best = max(found, key=lambda each: (not each.fenced, each.place))
    click.echo(f"the longest log is that of {best.identity.node_id}: raftq recover --data {best.folder}")


class _Local:
    """The cluster that `raftq up` ran with this data folder, if it did. Held until `release`."""

    def __init__(self, data: Path) -> None:
        self._data = data.absolute()
        self._lock: FolderLock | None = None
        self._file = ClusterFile(self._data.parent)
        state = self._file.read()
        nodes = state.nodes if state else []
        self._node = next((node for node in nodes if Path(node.data).name == self._data.name), None)
        if self._node is not None:
            try:
                self._lock = FolderLock(self._data.parent)
            except FolderInUse as error:
                raise Fatal(Exit.FOLDER_IN_USE, f"{error}: stop raftq up first") from error

    @property
    def peer_address(self) -> str | None:
        return self._node.peer_address if self._node else None

    def keep_alone(self, cluster_id: str) -> None:
        if self._node is not None:
            self._file.create(LocalClusterState(cluster_id, [self._node]))

    def next_steps(self, cluster_id: str) -> str:
        if self._node is not None:
            folder = self._data.parent
            return f"start it: raftq up --data {folder}; then add others: raftq cluster add NODE --data {folder}"
        return (
            f"set its cluster_id to {cluster_id}, and its members to itself; start it, and then others with new "
            f"folders, --join and the same cluster_id: raftq cluster add NODE --peer-address HOST:PORT"
        )

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
