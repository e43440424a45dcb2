"""`raftq kill` and `raftq start`: one node of the cluster that `raftq up` runs on this machine; and what all commands
that have to do with such a cluster need.

They speak to `raftq up` through its `cluster.json` alone: a killed node is marked as kept down there, and started again
when the mark is gone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raftq.node import folder_lock
from raftq.node.cluster_file import ClusterFile, LocalNode
from raftq.node.exits import Exit, Fatal
from raftq.node.waiting import wait_until

WAIT_SECONDS = 15.0


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("--data", type=kind, default="data", show_default=True, help="The folder of the cluster.")(
        command
    )


@click.command()
@click.argument("node_id", metavar="ID")
@data_option
def kill(node_id: str, data: Path) -> None:
    """Kill a node of the cluster that `raftq up` runs (SIGKILL).

    It stays down until `raftq start ID`, or the next `raftq up`.
    """
    file = running_cluster(data)
    with file.change() as state:
        node = state.node(node_id)
        node.kept_down, pid = True, node.pid
    if pid is None:
        click.echo(f"{node_id} was down already; it stays down until: raftq start {node_id} --data {data}")
        return
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: node_of(file, node_id).pid is None, f"the end of {node_id}")
    click.echo(f"{node_id} (process {pid}) is killed; it stays down until: raftq start {node_id} --data {data}")


@click.command()
@click.argument("node_id", metavar="ID")
@data_option
def start(node_id: str, data: Path) -> None:
    """Start a node that `raftq kill` killed."""
    file = running_cluster(data)
    with file.change() as state:
        node = state.node(node_id)
        node.kept_down, pid = False, node.pid
    if pid is not None:
        click.echo(f"{node_id} runs already (process {pid})")
        return
    wait_for(lambda: node_of(file, node_id).pid is not None, f"raftq up to start {node_id}")
    click.echo(f"{node_id} is started (process {node_of(file, node_id).pid}), {node.api_url}")


def running_cluster(data: Path) -> ClusterFile:
    if not folder_lock.is_held(data):
        raise Fatal(Exit.USAGE, f"no cluster runs on {data}: start one with raftq up --data {data}")
    return ClusterFile(data)


def node_of(file: ClusterFile, node_id: str) -> LocalNode:
    state = file.read()
    assert state is not None, f"{file.path} is gone"
    return state.node(node_id)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Raises Fatal(NOT_READY)."""
    try:
        wait_until(condition, WAIT_SECONDS, what)
    except TimeoutError as error:
        raise Fatal(Exit.NOT_READY, str(error)) from error
