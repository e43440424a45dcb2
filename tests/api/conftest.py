from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest

from raftq.api.ports import Limits
from tests.api import conformance
from tests.api.shard import LocalNode, LocalShard


class Reply(NamedTuple):
    status: int
    headers: Any
    data: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.data)

    @property
    def msgpack(self) -> Any:
        return msgspec.msgpack.decode(self.data)


class Client:
    """Sends to one node; follows nothing."""

    def __init__(self, node: LocalNode, session: aiohttp.ClientSession) -> None:
        self.node, self.session = node, session

    @property
    def shard(self) -> LocalShard:
        return self.node.shard

    async def __call__(self, method: str, path: str, json: Any = None, **options: Any) -> Reply:
        if json is not None:
            options["data"] = msgspec.json.encode(json)
            options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        if len(options.get("data", b"")) > 1024 * 1024:
            options["data"] = io.BytesIO(options["data"])
        options.setdefault("skip_auto_headers", ["Content-Type"])
        async with self.session.request(method, self.node.url + path, allow_redirects=False, **options) as response:
            reply = Reply(response.status, response.headers, await response.read())
        conformance.check(method, path, reply.status, reply.headers.get("Content-Type", ""), reply.data)
        return reply

    async def enqueue(self, *bodies: Any, queue: str = "jobs") -> list[str]:
        reply = await self("POST", f"/v1/queues/{queue}/messages", {"messages": [{"body": body} for body in bodies]})
        assert reply.status == 201, reply
        return [message["id"] for message in reply.json["messages"]]

    async def lease(self, queue: str = "jobs", **fields: Any) -> list[Any]:
        reply = await self("POST", f"/v1/queues/{queue}/lease", fields)
        assert reply.status == 200, reply
        messages = reply.json["messages"]
        assert isinstance(messages, list)
        return messages


Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start nodes, each with its own shard."""
    nodes: list[LocalNode] = []
    async with aiohttp.ClientSession() as session:

        async def start(limits: Limits | None = None) -> Client:
            node = LocalNode(limits=limits)
            await node.start()
            nodes.append(node)
            return Client(node, session)

        yield start
        for node in nodes:
            if node.shard.gate is not None:
                node.shard.gate.set()
            await node.api.stop(1.0)


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await serve()
