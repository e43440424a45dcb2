"""Nodes that are nothing but their peers, and all that these reported; with real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from typing import Any

from raftq.replication import wire
from raftq.replication.peers import Hello, Peers, Refusal
from raftq.replication.security import PeerSecurity


class Node:
    """One end: its peers, and all that they reported, in order."""

    def __init__(
        self,
        name: str,
        addresses: dict[str, str],
        cluster: str = "c",
        boot: int = 1,
        security: PeerSecurity | None = None,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.boot = boot
        self.address = addresses[name]
        self.refuse: Refusal | None = None
        #: Called with each event, after it was noted.
        self.then: Callable[..., None] = lambda *_event: None
        self.events: list[tuple[Any, ...]] = []
        self.changed = asyncio.Event()
        self.peers = Peers(
            self.hello,
            self.address,
            on_message=lambda node, message: self.note("message", node, message),
            on_connected=lambda node, hello: self.note("connected", node),
            on_disconnected=lambda node: self.note("disconnected", node),
            on_bytes=lambda node: self.note("bytes", node),
            on_refused=lambda node, refusal: self.note("refused", node, refusal),
            admit=lambda hello: self.refuse,
            security=security,
        )
        self.peers.set_members(addresses)

    def hello(self) -> Hello:
        uuid = f"uuid-{self.name}"
        return Hello(2, self.cluster, self.name, uuid, self.boot, "http://x", self.address, "0", 7, 3)

    def note(self, *event: Any) -> None:
        self.events.append(event)
        self.changed.set()
        self.then(*event)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def saw(self, *event: Any, times: int = 1) -> None:
        await self.until(lambda: self.events.count(event) >= times)

    def messages(self) -> list[dict[str, Any]]:
        return [event[2] for event in self.events if event[0] == "message"]

    def changes(self) -> list[tuple[Any, ...]]:
        """Who came and went."""
        return [event for event in self.events if event[0] in ("connected", "disconnected")]


class Cluster:
    """Nodes by name, started with `start`, closed at the end of the test."""

    def __init__(self) -> None:
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in ("a", "b", "c")}
        self.nodes: list[Node] = []

    async def start(self, name: str, members: str = "abc", **options: Any) -> Node:
        node = Node(name, self.addresses, **options)
        node.peers.set_members(self.only(members))
        await node.peers.start()
        self.nodes.append(node)
        return node

    def only(self, names: str) -> dict[str, str]:
        return {name: self.addresses[name] for name in names}

    async def pair(self) -> tuple[Node, Node]:
        """With both connections of both."""
        a, b = await self.start("a"), await self.start("b")
        await a.saw("connected", "b")
        await b.saw("connected", "a")
        return a, b

    async def stranger(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.addresses[name].split(":")
        return await asyncio.open_connection(host, int(port))

    async def greet(self, name: str, hello: Hello) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Any]:
        """Say `hello` to a node by hand; what it answered."""
        reader, writer = await self.stranger(name)
        writer.write(wire.frame(hello))
        length = int.from_bytes(await reader.readexactly(4), "big")
        return reader, writer, wire.opening(memoryview(await reader.readexactly(length)))


def mark(number: int) -> dict[str, Any]:
    return {"type": "digest", "index": number, "digest": ""}


def chunk(number: int, size: int) -> dict[str, Any]:
    return {"type": "snapshot_chunk", "term": 1, "id": "x", "offset": number, "data": bytes(size), "checksum": 0}


async def until(condition: Callable[[], bool]) -> None:
    """For what only the log tells."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def free_port() -> int:
    """Below those that the system gives to connections: one that a node makes to its own future port, while nobody
    listens there, could be made to itself. Hypothesis sets the seed of `random`."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
