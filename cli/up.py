"""`raftq up`: a cluster of real processes on this machine, in the foreground, until Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from raftq.cli.local import data_option
from raftq.cli.supervisor import Supervisor, say
from raftq.cli.tour import Tour
from raftq.node.exits import Exit, Fatal
from raftq.node.local_cluster import FIRST_PORT, LocalCluster
from raftq.node.node_process import last_line

STOP_SECONDS = 10.0


@click.command()
@click.option("--nodes", type=click.IntRange(1, 9), help="Nodes of a new cluster.  [3]")
@data_option
@click.option("--port", type=click.IntRange(1, 60_000), help=f"API port of a new cluster's first node.  [{FIRST_PORT}]")
@click.option("--tour", is_flag=True, help="Show first what the cluster does when its leader is killed.")
@click.option("--no-restart", is_flag=True, help="Leave a node that dies down until `raftq start`.")
def up(nodes: int | None, data: Path, port: int | None, tour: bool, no_restart: bool) -> None:
    """Run a cluster on this machine.

    Started again on the same --data, it comes back with its nodes, ports and messages. The peers' ports are 1000 above
    those of the API. --data/cluster.json tells what runs where. Ctrl-C stops the nodes, Ctrl-C twice kills them.
    """
    if tour and nodes is not None and nodes < 3:
        raise Fatal(Exit.USAGE, "the tour kills the leader, and needs 3 nodes for that: leave out --nodes")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    cluster = LocalCluster(data, size=nodes, port=port)
    try:
        _run(cluster, data, tour=tour, restart=not no_restart)
    except KeyboardInterrupt:
        click.echo("")
    finally:
        _stop(cluster)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run(cluster: LocalCluster, data: Path, *, tour: bool, restart: bool) -> None:
    begun = time.monotonic()
    cluster.start_all()
    click.echo(f"{len(cluster.nodes)} nodes are starting ...")
    leader = cluster.wait_ready()
    click.echo(f"ready after {time.monotonic() - begun:.1f} s, with the data in {data}:")
    for node in cluster.nodes:
        how = f"process {node.pid}" if node.pid else f"is down: {last_line(node)}"
        click.echo(f"  {node.id}  {node.api_url}  {how}{'  leader' if node.id == leader else ''}")
    if tour:
        Tour(cluster).run()
    _show_first_steps(cluster, data)
    Supervisor(cluster, restart=restart, leader=cluster.leader()).run()


def _show_first_steps(cluster: LocalCluster, data: Path) -> None:
    first, last = cluster.nodes[0].api_url, cluster.nodes[-1].api_url
    raftq = "raftq" if shutil.which("raftq") else os.path.relpath(sys.argv[0])
    click.echo(f"""
From another terminal, put a message into the queue jobs through one node and take it from another:
  curl -d hello {first}/q/jobs
  curl {last}/q/jobs

Lease it and ack it when the work is done, with the receipt that the lease gives:
  curl -L --json '{{"body": {{"to": "ada"}}}}' {first}/v1/queues/jobs/messages
  curl -L --json '{{"lease_seconds": 60}}' {last}/v1/queues/jobs/lease
  curl -L --json '{{"receipts": ["THE-RECEIPT"]}}' {last}/v1/queues/jobs/ack

See the cluster, kill a node, start it again:
  curl {first}/v1/cluster
  {raftq} kill n1 --data {data}
  {raftq} start n1 --data {data}

Ctrl-C stops the cluster. Its data stays in {data}.
""")


def _stop(cluster: LocalCluster) -> None:
    running = len(cluster.running)
    try:
        late = cluster.close(STOP_SECONDS)
    except KeyboardInterrupt:
        late = cluster.close(0)
    if running:
        say(f"{running} nodes are stopped" + (f"; killed, since they took too long: {', '.join(late)}" if late else ""))
