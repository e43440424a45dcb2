"""`raftq cluster add`, `remove`, `replace` and `transfer`.

With --data they also start and stop the processes of a cluster that `raftq up` runs, through its `cluster.json`: a new
node is written there and started by `raftq up`, which drops one that leaves when the cluster has done so. What the
cluster refuses is taken back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftq.cli.connection import Hints, access, ask, connection_options, remember, say_json
from raftq.cli.local import node_of, running_cluster, wait_for
from raftq.client.client import AsyncClient
from raftq.client.models import Cluster, ClusterNode
from raftq.node import probe, settings
from raftq.node.cluster_file import ClusterFile, LocalClusterState, LocalNode
from raftq.node.exits import Exit, Fatal
from raftq.node.local_cluster import joining

LOOK_SECONDS = 0.3
#: A node that cannot be reached, or is no member, for so long is waited for no more.
PATIENCE_SECONDS = 60.0

_HINTS = Hints(unknown="see with raftq cluster whether it did")


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data, --url and --json."""
    kind = click.Path(path_type=Path, file_okay=False)
    data = click.option("--data", type=kind, callback=remember, help="The folder of a cluster that `raftq up` runs.")
    return data(connection_options(command))


def _joining_options(command: Callable[..., Any]) -> Callable[..., Any]:
    address = click.option("--peer-address", metavar="HOST:PORT", help="Where the other nodes reach it.")
    wait = click.option("--wait/--no-wait", default=True, help="Wait until it votes.  [--wait]")
    return address(wait(_options(command)))


@click.command()
@click.argument("node")
@_joining_options
def add(node: str, peer_address: str | None, wait: bool, data: Path | None, url: str | None, as_json: bool) -> None:
    """Add a node to the cluster.

    It gets everything first, and votes once it has caught up. Start it, with an empty folder, before or after this:
    raftq node --join. With --data it is made and started here, on ports of its own.
    """
    settings.checked("node_id", node, "NODE")
    if data is not None:
        _Local(data, url, as_json).join(node, None, wait)
    elif peer_address is not None:
        _join(url, node, peer_address, None, wait, as_json)
    else:
        raise click.UsageError("give --peer-address HOST:PORT, or --data of a cluster that raftq up runs")


@click.command()
@click.argument("old")
@click.argument("new")
@_joining_options
def replace(
    old: str, new: str, peer_address: str | None, wait: bool, data: Path | None, url: str | None, as_json: bool
) -> None:
    """Replace a node, dead or alive, by a new one.

    NEW votes once it has caught up, and then OLD is removed. NEW may have the name of OLD, for a new, empty folder:
    stop OLD then, first, and start the new one with raftq node --join. With --data that is done here.
    """
    settings.checked("node_id", new, "NEW")
    if data is not None:
        _Local(data, url, as_json).join(new, old, wait)
        return
    if peer_address is None and old == new:
        known = ask(url, lambda client: client.cluster(), hints=_HINTS)
        peer_address = next((member.peer_address for member in known.nodes if member.id == old), None)
    if peer_address is None:
        raise click.UsageError("give --peer-address HOST:PORT, or --data of a cluster that raftq up runs")
    _join(url, new, peer_address, old, wait, as_json)


@click.command()
@click.argument("node")
@_options
def remove(node: str, data: Path | None, url: str | None, as_json: bool) -> None:
    """Remove a node from the cluster.

    Its process ends by itself, and its folder is of no more use to the cluster. A leader hands leadership over first.
    """
    if data is not None:
        _Local(data, url, as_json).remove(node)
        return
    index = ask(url, lambda client: client.remove_node(node), hints=_HINTS)
    if as_json:
        say_json({"index": index})
    else:
        click.echo(f"{node} is removed; its process ends by itself, with exit code {Exit.FENCED:d}")


@click.command()
@click.argument("node", required=False)
@connection_options
def transfer(node: str | None, url: str | None, as_json: bool) -> None:
    """Hand leadership to a node, or to the one that is most advanced."""
    leader = ask(url, lambda client: client.transfer(node), hints=_HINTS)
    if as_json:
        say_json({"leader": leader})
    else:
        click.echo(f"{leader} leads")


def _join(url: str | None, node: str, address: str, replaces: str | None, wait: bool, as_json: bool) -> None:
    index = ask(url, lambda client: client.add_node(node, address, replaces=replaces), hints=_HINTS)
    _say(f"{node} is a learner now (entry {index:,})", as_json)
    _finish(url, node, replaces, index, wait, as_json)


def _finish(url: str | None, node: str, replaces: str | None, index: int | None, wait: bool, as_json: bool) -> None:
    if wait:
        progress = _Progress(node, None if replaces == node else replaces, as_json)
        ask(url, progress.follow, hints=_HINTS)
    if as_json:
        found = ask(url, lambda client: client.cluster(), hints=_HINTS)
        say_json({"index": index, "node": next((member for member in found.nodes if member.id == node), None)})


def _say(line: str, as_json: bool) -> None:
    """With --json the answer alone goes to stdout."""
    click.echo(line, err=as_json)


class _Progress:
    """Of a learner, until it votes and what it replaces is gone."""

    def __init__(self, node: str, replaces: str | None, as_json: bool) -> None:
        self._node, self._replaces, self._as_json = node, replaces, as_json
        self._said = ""
        self._well = time.monotonic()

    async def follow(self, client: AsyncClient) -> None:
        """Raises Fatal(NOT_READY) when the node is away for long."""
        while not self._look(await client.cluster(of_leader=True)):
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, cluster: Cluster) -> bool:
        found = {member.id: member for member in cluster.nodes}
        member, leader = found.get(self._node), found.get(cluster.leader or "")
        if member is None or leader is None:  # a node that does not know yet, or no leader for the moment
            self._give_up_in_time()
            return False
        if member.voter and self._replaces not in found:
            self._tell(f"{self._node} votes" + (f", and {self._replaces} is removed" if self._replaces else ""))
            return True
        self._tell(self._state(member, leader))
        if member.reachable:  # a snapshot may take long
            self._well = time.monotonic()
        self._give_up_in_time()
        return False

    def _state(self, member: ClusterNode, leader: ClusterNode) -> str:
        if not member.reachable:
            return f"waiting for {self._node} at {member.peer_address}: start it with raftq node --join"
        if member.voter:
            return f"{self._node} votes; {self._replaces} is to be removed"
        if leader.match_index is None:  # only the leader itself knows
            return f"{self._node} catches up"
        return f"{self._node} has {member.match_index or 0:,} of {leader.match_index:,} entries"

    def _tell(self, line: str) -> None:
        if line != self._said:
            self._said = line
            _say(line, self._as_json)

    def _give_up_in_time(self) -> None:
        if time.monotonic() - self._well > PATIENCE_SECONDS:
            where = self._said or "it is not among the members"
            raise Fatal(
                Exit.NOT_READY,
                f"{self._node} makes no progress ({where}): look at its log; the cluster goes on with it by itself",
            )


class _Local:
    """Changes of a cluster that `raftq up` runs on this machine."""

    def __init__(self, data: Path, url: str | None, as_json: bool) -> None:
        self._file: ClusterFile = running_cluster(data)
        self._folder, self._url, self._as_json = data.absolute(), url, as_json

    def join(self, node: str, replaces: str | None, wait: bool) -> None:
        before = self._state()
        old = None if replaces is None else before.node(replaces)
        if replaces == node:
            self._check_can_do_without(node)
        made = self._write(node, replaces)
        try:
            ended = old.pid if old is not None and replaces == node else None
            wait_for(lambda: self._runs(node, ended), f"raftq up to start {node}; its log is {made.log}")
            index = self._ask_for(made, replaces)
        except Fatal as error:
            if error.code in (Exit.REFUSED, Exit.UNAVAILABLE, Exit.NOT_READY):
                self._put_back(node, before)
            raise
        _say(f"{node} is a learner now, {made.api_url}, its data in {made.data}", self._as_json)
        _finish(self._others(node), node, replaces, index, wait, self._as_json)
        if old is not None and replaces == node:
            _say(f"the old data of {node} stays in {old.data}", self._as_json)
        elif old is not None and wait:
            self._await_drop(old)

    def remove(self, node: str) -> None:
        leaving = self._mark(node, True)
        try:
            index = ask(self._others(node), lambda client: client.remove_node(node), hints=_HINTS)
        except Fatal as error:
            if error.code in (Exit.REFUSED, Exit.UNAVAILABLE):
                self._mark(node, False)
            raise
        self._await_drop(leaving)
        if self._as_json:
            say_json({"index": index})

    def _check_can_do_without(self, node: str) -> None:
        """Its process is stopped before the cluster is asked: that must not cost the quorum. Raises Fatal(REFUSED)."""
        members = ask(self._others(node), lambda client: client.cluster(of_leader=True), hints=_HINTS).nodes
        voters = [member for member in members if member.voter]
        answering = [member.id for member in voters if member.reachable and member.id != node]
        needed = len(voters) // 2 + 1
        if len(answering) < needed:
            missing = ", ".join(member.id for member in voters if member.id not in (node, *answering))
            hint = f"bring back {missing} first" if missing else "add another node first"
            line = f"without {node} only {len(answering)} of the voters answer, and writes need {needed}: {hint}"
            raise Fatal(Exit.REFUSED, line)

    def _write(self, node: str, replaces: str | None) -> LocalNode:
        """Put the new node into the file, where `raftq up` finds it; or find it there, after an interruption."""
        with self._file.change() as state:
            found = state.find(node)
            if found is not None and replaces != node:
                if not found.joins:
                    raise Fatal(Exit.USAGE, f"{node} is in {self._file.path} already: choose another name")
                made = found
            else:
                made = joining(self._folder, state, node)
                made.pid = found.pid if found else None
                state.nodes = [each if each is not found else made for each in state.nodes]
                if found is None:
                    state.nodes.append(made)
            if replaces not in (None, node):
                state.node(str(replaces)).leaves = True
        return made

    def _runs(self, node: str, ended: int | None) -> bool:
        """`raftq up` has started it, once the process `ended` has."""
        now = node_of(self._file, node)
        return now.pid not in (None, ended) and probe.cluster(now.api_url, access=access()) is not None

    def _ask_for(self, made: LocalNode, replaces: str | None) -> int | None:
        """The index of the change; None when it was made before an interruption."""
        node, url = made.id, self._others(made.id)
        if replaces != node:
            members = ask(url, lambda client: client.cluster(), hints=_HINTS).nodes
            if any(member.id == node for member in members):
                return None
        return ask(url, lambda client: client.add_node(node, made.peer_address, replaces=replaces), hints=_HINTS)

    def _put_back(self, node: str, before: LocalClusterState) -> None:
        """The file as it was, but for what `raftq up` noted meanwhile."""
        with self._file.change() as state:
            kept = []
            for each in state.nodes:
                if (was := before.find(each.id)) is not None:
                    was.pid, was.kept_down = each.pid, each.kept_down
                    kept.append(was)
                elif each.id != node:
                    kept.append(each)
            state.nodes = kept

    def _mark(self, node: str, leaves: bool) -> LocalNode:
        with self._file.change() as state:
            marked = state.node(node)
            marked.leaves = leaves
        return marked

    def _await_drop(self, leaving: LocalNode) -> None:
        wait_for(lambda: self._state().find(leaving.id) is None, f"raftq up to drop {leaving.id}")
        _say(f"{leaving.id} has left the cluster; its data stays in {leaving.data}", self._as_json)

    def _others(self, node: str) -> str:
        """The URLs of the nodes but for one that is being changed."""
        return self._url or ",".join(each.api_url for each in self._state().nodes if each.id != node)

    def _state(self) -> LocalClusterState:
        state = self._file.read()
        assert state is not None, f"{self._file.path} is gone"
        return state
