"""Enqueues made inside the leader's process, for `bench/`, which may not import the node: `python -m raftq.cli.bench`.

Two followers are `raftq node` processes; the third node is composed here as `raftq node` would, leads, and proposes
what the front end would: the same commands, encoded anew for each. Prints a JSON line per scenario, in the shape of
`raftq.bench.scenarios.Figure`. A tool of the project's developers: `raftq --help` does not list it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import click
import uvloop

from raftq.bench import cluster as bench
from raftq.bench.load import BODY_CHARACTERS, Latency
from raftq.bench.measure import percentile
from raftq.bench.scenarios import BATCH, Figure, figure
from raftq.node import identity, listening, logs, security
from raftq.node.config import Config
from raftq.node.local_cluster import LocalCluster
from raftq.node.node import Node
from raftq.node.process import SWITCH_SECONDS
from raftq.replication.shard import Shard
from raftq.storage.environment import Environment
from raftq.storage.machine import commands, packing
from raftq.storage.machine.commands import Enqueue, Part

#: The followers wait longer than the node in this process before they stand for election, so that this one leads.
FOLLOWER_FLAGS = ("--election-ms-min=1500", "--election-ms-max=3000")
WARMUP_SECONDS = 1.0
BODY = b'"%b"' % (b"x" * BODY_CHARACTERS)


@click.command("in-process")
@click.option("--seconds", type=float, default=5.0, help="Of each scenario.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default="data", help="Where to put the cluster."
)
def in_process(seconds: float, data: Path) -> None:
    """Enqueue inside the leader's process."""
    logs.setup("warning", "logfmt", "bench")
    sys.setswitchinterval(SWITCH_SECONDS)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data) as folder:
        local = LocalCluster(Path(folder), size=3, port=bench.free_ports(3), flags=FOLLOWER_FLAGS)
        try:
            uvloop.run(_measure(local, seconds))
        finally:
            local.close()


async def _measure(local: LocalCluster, seconds: float) -> None:
    async with _leader(local) as node:
        # As `node.process` does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        for messages, in_flight in ((1, 64), (BATCH, 1), (BATCH, 64)):
            made = await _enqueue(node.shard, bench.Cluster(local.folder), messages, in_flight, seconds)
            print(json.dumps(asdict(made)), flush=True)


@asynccontextmanager
async def _leader(local: LocalCluster) -> AsyncIterator[Node]:
    """The cluster's last node in this process, once it leads and the others follow."""
    *others, own = local.nodes
    for other in others:
        local.start(other.id)
    with local.file.change() as state:
        config = Config(
            node_id=own.id,
            cluster_id=state.cluster_id,
            data=Path(own.data),
            members={each.id: each.peer_address for each in state.nodes},
            api_listen=own.api_url.removeprefix("http://"),
            peer_listen=own.peer_address,
        )
        # So that whoever measures the cluster finds this process too.
        state.node(own.id).pid = os.getpid()
    environment = Environment(config.data)
    me = identity.begin(environment, config.cluster_id, config.node_id)
    node = Node(config, environment, me, security.load(config))
    await node.start(listening.bind(config.api_listen, "api_listen"))
    try:
        await asyncio.to_thread(bench.wait, bench.Cluster(local.folder).settled, "all nodes are ready")
        if not node.leads():
            raise click.ClickException("another node leads: try again")
        yield node
    finally:
        await node.stop()


async def _enqueue(shard: Shard, nodes: bench.Cluster, messages: int, in_flight: int, seconds: float) -> Figure:
    command = _single if messages == 1 else _batch
    await _drive(shard, command, in_flight, WARMUP_SECONDS)
    before = await asyncio.to_thread(nodes.usage)
    began = time.perf_counter()
    took = sorted(await _drive(shard, command, in_flight, seconds))
    elapsed = time.perf_counter() - began
    used = await asyncio.to_thread(nodes.usage) - before
    name = f"in process, {'singles' if messages == 1 else f'batches of {messages}'}, {in_flight} in flight"
    latency = Latency(percentile(took, 0.5) * 1e3, percentile(took, 0.99) * 1e3)
    return figure(name, len(took) * messages, elapsed, latency, used)


async def _drive(shard: Shard, command: Callable[[], bytes], in_flight: int, seconds: float) -> list[float]:
    """Keeps `in_flight` proposals under way; the seconds that each took. Whatever is not committed raises."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def keep() -> None:
        while (began := time.perf_counter()) < end:
            await shard.propose(command())
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(keep() for _ in range(in_flight)))
    return took


def _single() -> bytes:
    return _command([packing.pack_message(BODY)])


def _batch() -> bytes:
    return _command([packing.pack_message(BODY) for _ in range(BATCH)])


def _command(messages: list[bytes]) -> bytes:
    return commands.encode(Enqueue("default/in-process", [Part(0, None, packing.pack(messages))]))


if __name__ == "__main__":
    in_process()
