"""A node for the client's tests: the real front end and the real state machine, no Raft (`tests.api.shard`), and
transports that lose, refuse or hold back what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ssl import SSLContext

import msgspec

from raftq.client.calls import Patience
from raftq.client.client import AsyncClient
from raftq.client.transport import AiohttpTransport, Answer, Exchange, Lost, NotSent, Socket
from raftq.replication.shard import Status
from tests.api.shard import LocalNode

#: Gives up soon, tries often.
IMPATIENT = Patience(
    timeout_seconds=5, attempt_seconds=2, look_seconds=1, first_delay_seconds=0.001, max_delay_seconds=0.01
)


class Node(LocalNode):
    """Tells its true address to who asks for the cluster."""

    async def start(self, ssl: SSLContext | None = None) -> str:
        url = await super().start(ssl)
        told = self.shard.status

        def status() -> Status:
            status = told()
            for peer in status.peers:
                peer.api_url = url
            return status

        self.shard.status = status  # type: ignore[method-assign]
        return url


@asynccontextmanager
async def running(ssl: SSLContext | None = None) -> AsyncIterator[Node]:
    node = Node()
    await node.start(ssl)
    try:
        yield node
    finally:
        await node.api.stop(1.0)


Take = Callable[[bytes], Awaitable[None]]
#: What happens to an exchange: None lets it pass.
Fault = Callable[[Exchange], str | None]


class FaultyTransport:
    """Sends for real, but for what `fault` says of an exchange:

    refused  the node is not reached
    lost     it is reached and the answer lost
    sunk     the request is lost on the way, and nobody knows
    busy     503, not applied; of a backup 409
    cut      a backup's connection is lost after its first piece
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._real = AiohttpTransport()

    async def send(self, exchange: Exchange) -> Answer:
        match self.fault(exchange):
            case "refused":
                raise NotSent("connection refused")
            case "sunk":
                raise Lost("connection reset")
            case "busy":
                return problem(503, "no")
            case "lost":
                await self._real.send(exchange)
                raise Lost("connection reset")
            case _:
                return await self._real.send(exchange)

    async def receive(self, exchange: Exchange, take: Take) -> Answer:
        match self.fault(exchange):
            case "refused":
                raise NotSent("connection refused")
            case "busy":
                return problem(409, "no")
            case "cut":

                async def some(piece: bytes) -> None:
                    await take(piece)
                    raise Lost("connection reset")

                return await self._real.receive(exchange, some)
            case _:
                return await self._real.receive(exchange, take)

    async def connect(self, url: str, headers: Mapping[str, str], protocol: str) -> Socket | Answer:
        return await self._real.connect(url, headers, protocol)

    async def close(self) -> None:
        await self._real.close()


class ScriptedTransport:
    """Answers each exchange as `script` does, with an answer or an exception, and remembers it."""

    def __init__(self, script: Callable[[Exchange], Answer]) -> None:
        self.script = script
        self.seen: list[Exchange] = []

    async def send(self, exchange: Exchange) -> Answer:
        self.seen.append(exchange)
        return self.script(exchange)

    async def receive(self, exchange: Exchange, take: Take) -> Answer:
        self.seen.append(exchange)
        answer = self.script(exchange)
        if answer.status == 200:
            await take(answer.body)
        return answer

    async def close(self) -> None:
        pass


def answer(value: object, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/msgpack"}, msgspec.msgpack.encode(value))


def problem(status: int, applied: str, **headers: str) -> Answer:
    document = {"type": "about:test", "title": "Not now", "detail": "Wait.", "applied": applied}
    return Answer(status, {"Content-Type": "application/problem+json", **headers}, msgspec.json.encode(document))


def client_of(node: LocalNode, fault: Fault = lambda _: None) -> AsyncClient:
    return AsyncClient(node.url, patience=IMPATIENT, transport=FaultyTransport(fault))
