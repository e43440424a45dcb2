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
from raftq.cli.tour import Tour, curl_flags
from raftq.node import probe, secure_folder
from raftq.node.cluster_file import ClusterFile
from raftq.node.exits import Exit, Fatal
from raftq.node.local_cluster import FIRST_PORT, LocalCluster
from raftq.node.node_process import last_line
from raftq.node.probe import Access
from raftq.node.secure_folder import SecureFolder

STOP_SECONDS = 10.0


@click.command()
@click.option("--nodes", type=click.IntRange(1, 9), help="Nodes of a new cluster.  [3]")
@data_option
@click.option("--port", type=click.IntRange(1, 60_000), help=f"API port of a new cluster's first node.  [{FIRST_PORT}]")
@click.option("--tour", is_flag=True, help="Show first what the cluster does when its leader is killed.")
@click.option("--no-restart", is_flag=True, help="Leave a node that dies down until `raftq start`.")
@click.option("--secure", is_flag=True, help="A new cluster has certificates, a secret and tokens.")
def up(nodes: int | None, data: Path, port: int | None, tour: bool, no_restart: bool, secure: bool) -> None:
    """Run a cluster on this machine.

    Started again on the same --data, it comes back with its nodes, ports and messages. The peers' ports are 1000 above
    those of the API. --data/cluster.json tells what runs where. Ctrl-C stops the nodes, Ctrl-C twice kills them.

    With --secure its first token is printed once, and kept nowhere: put it into RAFTQ_TOKEN.
    """
    if tour and nodes is not None and nodes < 3:
        raise Fatal(Exit.USAGE, "the tour kills the leader, and needs 3 nodes for that: leave out --nodes")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    if secure or ((state := ClusterFile(data).read()) is not None and state.secure):
        os.umask(0o077)  # for all that is written here, and by the nodes
    cluster = LocalCluster(data, size=nodes, port=port, secure=secure)
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
    shown = probe.NO_ACCESS
    if cluster.secure is not None:
        token = cluster.secure.first_token
        shown = Access(token or os.environ.get("RAFTQ_TOKEN"), secure_folder.authority(data))
        if token is not None:
            _tell_token(cluster.secure, cluster.url(leader))
    if tour:
        if cluster.secure is not None and shown.token is None:
            raise Fatal(Exit.USAGE, "the tour needs the token of this cluster: put it into RAFTQ_TOKEN")
        Tour(cluster, shown).run()
    _show_first_steps(cluster, data)
    Supervisor(cluster, restart=restart, leader=cluster.leader()).run()


def _tell_token(secure: SecureFolder, leader: str) -> None:
    """Only once it was told, the cluster is born: an interrupted start makes another."""
    click.echo(f"""
The first token of this cluster, which may do everything. It is told this once, and kept nowhere: keep it.
  export RAFTQ_TOKEN={secure.first_token}
""")
    try:
        secure.told(leader)
    except OSError as error:
        raise Fatal(Exit.NOT_READY, f"start it again, for another first token: {error}") from error


def _show_first_steps(cluster: LocalCluster, data: Path) -> None:
    curl = "curl" if cluster.secure is None else f"curl{curl_flags(Access('', secure_folder.authority(data)))}"
    first, last = cluster.nodes[0].api_url, cluster.nodes[-1].api_url
    raftq = "raftq" if shutil.which("raftq") else os.path.relpath(sys.argv[0])
    click.echo(f"""
From another terminal, put a message into the queue jobs through one node and take it from another:
  {curl} -d hello {first}/q/jobs
  {curl} {last}/q/jobs

Lease it and ack it when the work is done, with the receipt that the lease gives:
  {curl} -L --json '{{"body": {{"to": "ada"}}}}' {first}/v1/queues/jobs/messages
  {curl} -L --json '{{"lease_seconds": 60}}' {last}/v1/queues/jobs/lease
  {curl} -L --json '{{"receipts": ["THE-RECEIPT"]}}' {last}/v1/queues/jobs/ack

See the cluster, kill a node, start it again:
  {curl} {first}/v1/cluster
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
