"""Three real shards in this process: real sockets on loopback, real environments, one loop."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from raftq.replication.cycle import RaftShard
from raftq.replication.shard_config import ShardConfig
from raftq.replication.world import World
from raftq.storage.environment import Environment
from raftq.storage.machine import commands, packing
from raftq.storage.machine.commands import Ack, Enqueue, Lease, Part, Slots

QUEUE = "default/jobs"


def free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{found.getsockname()[1]}" for found in sockets]
    for found in sockets:
        found.close()
    return addresses


class Shards:
    def __init__(
        self,
        folder: Path,
        size: int = 3,
        wall: Callable[[str], float] = lambda _name: time.time(),
        monotonic: Callable[[str], float] = lambda _name: time.monotonic(),
        **settings: Any,
    ) -> None:
        self.folder, self.wall, self.monotonic, self.settings = folder, wall, monotonic, settings
        self.voters = {f"n{number}": address for number, address in enumerate(free_addresses(size), 1)}
        self.running: dict[str, RaftShard] = {}
        self.boots: dict[str, int] = {}
        self.fatal: dict[str, BaseException] = {}

    async def start(self, name: str, **changed: Any) -> RaftShard:
        self.boots[name] = self.boots.get(name, 0) + 1
        config = ShardConfig(
            node_id=name,
            cluster_id="test",
            node_uuid=f"uuid-{name}",
            boot=self.boots[name],
            members=self.voters,
            peer_listen=self.voters[name],
            peer_address=self.voters[name],
            api_url=f"http://{name}",
            version="0",
            disk_reserve_bytes=0,
            **self.settings,
        )
        environment = Environment(self.folder / name, map_bytes=1 << 30)
        shard = RaftShard(
            msgspec.structs.replace(config, **changed),
            environment,
            on_fatal=lambda error: self.fatal.setdefault(name, error),
            world=World(monotonic=lambda: self.monotonic(name), wall=lambda: self.wall(name)),
        )
        await shard.start()
        self.running[name] = shard
        return shard

    async def kill(self, name: str) -> None:
        """As a crash: nothing that rides is written."""
        shard = self.running.pop(name)
        await shard.close()
        shard.environment.close()

    async def stop(self, name: str) -> None:
        shard = self.running.pop(name)
        await shard.stop()
        shard.environment.close()

    async def leader(self) -> RaftShard:
        found: list[RaftShard] = []

        def leads() -> bool:
            assert not self.fatal, self.fatal
            found[:] = [shard for shard in self.running.values() if shard.status().role == "leader"]
            return any(shard.status().ready for shard in found)

        await until(leads)
        return max(found, key=lambda shard: shard.status().term)


async def until(condition: Callable[[], bool], within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def shards(folder: Path, size: int = 3, **settings: Any) -> AsyncIterator[Shards]:
    cluster = Shards(folder, size, **settings)
    try:
        for name in cluster.voters:
            await cluster.start(name)
        yield cluster
    finally:
        for name in list(cluster.running):
            await cluster.kill(name)


def enqueue(*bodies: bytes) -> bytes:
    return commands.encode(
        Enqueue(QUEUE, [Part(0, None, packing.pack([packing.pack_message(body) for body in bodies]))])
    )


def lease(maximum: int = 1000) -> bytes:
    return commands.encode(Lease(QUEUE, maximum))


def ack(queue_number: int, lease_id: int, slots: list[int]) -> bytes:
    return commands.encode(Ack(QUEUE, queue_number, [Slots(lease_id, slots)]))


async def drain(shard: RaftShard) -> list[bytes]:
    """Lease and ack until nothing is ready; the bodies in their order."""
    bodies: list[bytes] = []
    while True:
        leased = await shard.propose(lease())
        if not leased.messages:
            return bodies
        bodies += [packing.unpack_message(message.data).body for message in leased.messages]
        settled = await shard.propose(
            ack(leased.reply.queue_number, leased.reply.lease_id, list(range(len(leased.messages))))
        )
        assert settled.reply.results == [bytes(len(leased.messages))]
