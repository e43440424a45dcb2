"""`raftq backup` and `raftq restore`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from raftq.cli.connection import Hints, ask, connection_options, say_json
from raftq.cli.node import config, setting_flags
from raftq.node import settings
from raftq.node.config import Config
from raftq.node.exits import Exit, Fatal
from raftq.node.local_cluster import FIRST_PORT

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("file", type=_FILE)
@connection_options
def backup(file: Path, url: str | None, as_json: bool) -> None:
    """Save a backup of the cluster, while it works.

    It is made by the first of the nodes given that can, of what that node has applied: ask one that follows, to spare
    the leader. FILE is replaced once the new one is whole and was read again.
    """
    from raftq.node import restoring  # the storage is needed to read it

    unread = file.with_name(f"{file.name}.unread")
    try:
        saved = ask(
            url,
            lambda client: client.backup(unread),
            hints=Hints(unavailable="see with raftq cluster which nodes run, and give another --url"),
        )
        head = restoring.checked(unread)
        unread.replace(file)
    except OSError as error:
        raise Fatal(Exit.FILE_REFUSED, f"cannot write {file}: {error.strerror}") from error
    finally:
        unread.unlink(missing_ok=True)
    if as_json:
        say_json({"cluster_id": head.cluster_id, "index": head.index, "bytes": saved.bytes, "url": saved.url})
    else:
        click.echo(f"{file}: cluster {head.cluster_id} at entry {head.index:,}, {saved.bytes:,} bytes, of {saved.url}")


@click.command()
@click.argument("file", type=_FILE)
@click.option("--nodes", type=click.IntRange(1, 9), help="Nodes of a cluster for raftq up.  [3]")
@click.option("--port", type=click.IntRange(1, 60_000), help=f"API port of its first node.  [{FIRST_PORT}]")
@click.option(
    "--at-ms",
    type=click.IntRange(0),
    help="Of one node: when the restore takes place, in milliseconds since 1970, the same for every node. Give it when "
    "FILE was restored before, so that receipts of that cluster are refused too.  [when FILE was made]",
)
@setting_flags
def restore(
    file: Path,
    nodes: int | None,
    port: int | None,
    at_ms: int | None,
    config_file: Path | None,
    **flags: str | None,
) -> None:
    """Make a new cluster from a backup.

    With --data alone: a cluster for `raftq up --data DATA`. With the settings of a node, as raftq node takes them: the
    data folder of that node; do so for every node of the new cluster, with the same FILE, cluster_id and members,
    before you start the first. All messages are there; receipts that the old cluster gave are gone, and what was leased
    is ready.
    """
    variables = (settings.FILE_VARIABLE, settings.variable("node_id"))
    if config_file or flags["node_id"] or any(name in os.environ for name in variables):
        if nodes is not None or port is not None:
            raise click.UsageError("--nodes and --port are of a cluster for raftq up: leave them out, or the settings")
        _restore_node(file, at_ms or 0, config(config_file, flags))
        return
    if others := [settings.flag(name) for name, value in flags.items() if value is not None and name != "data"]:
        raise click.UsageError(f"{others[0]} is a setting of one node: give --node-id too, or leave it out")
    if at_ms is not None:
        raise click.UsageError("--at-ms is of one node: leave it out")
    _restore_local(file, Path(flags["data"] or "data"), nodes or 3, FIRST_PORT if port is None else port)


def _restore_node(file: Path, at_ms: int, read: Config) -> None:
    from raftq.node import restoring

    if read.join:
        raise Fatal(Exit.CONFIG, "join is for a cluster that runs, and a restored node begins a new one: leave it out")
    head = restoring.node(
        file,
        read.data,
        cluster_id=read.cluster_id,
        node_id=read.node_id,
        members=read.first_members,
        wall_ms=at_ms,
    )
    click.echo(
        f"{read.data}: {read.node_id} of the new cluster {read.cluster_id}, with what {head.cluster_id} had at entry "
        f"{head.index:,}. Its members are {', '.join(read.first_members)}: restore each of them before you start one"
    )


def _restore_local(file: Path, data: Path, nodes: int, port: int) -> None:
    from raftq.node import restoring

    state, head = restoring.local(file, data, nodes, port)
    click.echo(
        f"{data}: the new cluster {state.cluster_id} of {nodes} nodes, with what {head.cluster_id} had at entry "
        f"{head.index:,}. Start it: raftq up --data {data}"
    )
