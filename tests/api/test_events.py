from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from raftq.api import events
from raftq.replication.shard import Peer
from raftq.storage.machine import commands
from tests.api.conftest import Client, Serve
from tests.api.test_leases import until


class Watching:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.events: list[Any] = []
        self.reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            binary = message.type is aiohttp.WSMsgType.BINARY
            self.events += msgspec.msgpack.decode(message.data) if binary else msgspec.json.decode(message.data)

    async def wait(self, kind: str, **fields: Any) -> Any:
        """The first event of that kind with those fields; those before it are forgotten."""

        def found() -> list[Any]:
            return [one for one in self.events if one["event"] == kind and fields.items() <= one.items()]

        await until(lambda: found() or self.reader.done())
        event = found()[0]
        del self.events[: self.events.index(event) + 1]
        return event


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.005)


@pytest.fixture
async def watch() -> AsyncIterator[Any]:
    opened: list[Watching] = []

    async def start(client: Client, query: str = "", *protocols: str) -> Watching:
        url = f"{client.node.url}/v1/events{query}"
        opened.append(Watching(await client.session.ws_connect(url, protocols=protocols)))
        return opened[-1]

    yield start
    for one in opened:
        await one.socket.close()
        await one.reader


@pytest.mark.parametrize("protocol", ["raftq.v1.json", "raftq.v1.msgpack"])
async def test_queues_are_told_of_as_they_change(client: Client, watch: Any, protocol: str) -> None:
    await client.enqueue("before", queue="old")
    seen = await watch(client, "", protocol)
    first = await seen.wait("cluster")
    assert (first["node"], first["role"], first["leader"], first["term"]) == ("n1", "leader", "n1", 3)
    assert [node["id"] for node in first["nodes"]] == ["n1"]
    await client.enqueue("a", "b")
    assert await seen.wait("queue-defined", queue="jobs") == {
        "event": "queue-defined",
        "queue": "jobs",
        "created": True,
    }
    counts = {"event": "queue", "queue": "jobs", "ready": 2, "leased": 0, "delayed": 0}
    assert await seen.wait("queue") == counts
    await client.lease()
    assert await seen.wait("queue") == counts | {"ready": 1, "leased": 1}
    await client("PATCH", "/v1/queues/jobs", {"paused": True})
    assert (await seen.wait("queue-defined"))["created"] is False
    await client("DELETE", "/v1/queues/jobs")
    assert await seen.wait("queue-deleted") == {"event": "queue-deleted", "queue": "jobs"}
    assert not any(event.get("queue") == "old" for event in seen.events)


async def test_a_queue_of_the_same_name_is_another_one(client: Client, watch: Any) -> None:
    await client.enqueue("a")
    seen = await watch(client)
    await seen.wait("cluster")
    client.shard.apply(commands.DeleteQueue("default/jobs"))
    client.shard.apply(commands.DefineQueue("default/jobs", commands.QueueSettings()))
    await seen.wait("queue-deleted")
    assert (await seen.wait("queue-defined"))["created"] is True


async def test_only_queues_with_the_prefix(client: Client, watch: Any) -> None:
    seen = await watch(client, "?prefix=mail.")
    await seen.wait("cluster")
    await client.enqueue("a", queue="jobs")
    await client.enqueue("a", queue="mail.out")
    assert (await seen.wait("queue"))["queue"] == "mail.out"
    assert not any(event["queue"] == "jobs" for event in seen.events)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="422"):
        await watch(client, "?prefix=a/b")


async def test_members_and_leaders(client: Client, watch: Any) -> None:
    seen = await watch(client)
    await seen.wait("cluster")
    peer = Peer("n2", "http://y", "y:1", "follower", True, True, 0, 0, "0")
    client.shard.members.append(peer)
    joined = await seen.wait("node-joined")
    assert joined["node"] == {"id": "n2", "api_url": "http://y", "role": "follower", "voter": True, "reachable": True}
    client.shard.members[0] = msgspec.structs.replace(peer, reachable=False)
    assert (await seen.wait("node-changed"))["node"]["reachable"] is False
    client.shard.members.clear()
    assert (await seen.wait("node-left"))["node"] == {"id": "n2"}
    client.node.follow("http://127.0.0.1:1")
    assert await seen.wait("leader") == {"event": "leader", "leader": "n2", "role": "follower", "term": 4}
    assert not seen.reader.done(), "events go on through a change of leader"


async def test_a_follower_tells_what_it_has_applied(serve: Serve, watch: Any) -> None:
    client = await serve()
    client.node.follow("http://127.0.0.1:1")
    seen = await watch(client)
    assert (await seen.wait("cluster"))["role"] == "follower"
    client.shard.apply(commands.DefineQueue("default/jobs", commands.QueueSettings()))
    await seen.wait("queue-defined")


async def test_who_reads_too_slowly_is_told_how_much_was_dropped(client: Client, watch: Any) -> None:
    seen = await watch(client)
    await seen.wait("cluster")
    [watcher] = client.node.api.connections
    assert isinstance(watcher, events.Watcher)
    for number in range(events.WAITING_MAX + 7):
        watcher.offer({"event": "leader", "term": number})
    assert len(watcher._waiting) == events.WAITING_MAX
    assert await seen.wait("lagged") == {"event": "lagged", "dropped": 7}
    watcher.offer({"event": "leader", "term": "next"})
    assert (await seen.wait("leader"))["term"] == "next"


async def test_one_that_does_not_read_at_all_keeps_nothing_but_its_buffer(client: Client, watch: Any) -> None:
    seen = await watch(client)
    await seen.wait("cluster")
    transport = seen.socket._response.connection.transport
    transport.pause_reading()
    [watcher] = client.node.api.connections
    for _ in range(300):
        for number in range(100):
            watcher.offer({"event": "leader", "term": number, "filling": "x" * 1000})
        await asyncio.sleep(0)
    assert watcher._dropped > 0
    assert len(watcher._waiting) <= events.WAITING_MAX
    transport.resume_reading()
    assert (await seen.wait("lagged"))["dropped"] > 0


async def test_nothing_is_looked_at_without_watchers(client: Client, watch: Any) -> None:
    one, other = await watch(client), await watch(client)
    await one.wait("cluster")
    await other.wait("cluster")
    for seen in (one, other):
        assert client.node.api.events._looking is not None
        await seen.socket.close()
    await until(lambda: client.node.api.events._looking is None)
    assert not client.node.api.connections
    again = await watch(client)
    await again.wait("cluster")


async def test_it_ends_when_the_node_stops_or_something_is_sent(client: Client, watch: Any) -> None:
    seen, talks = await watch(client), await watch(client)
    await talks.socket.send_str("hello")
    await talks.reader
    assert talks.socket.close_code == 1003
    client.node.stopping = True
    assert await client.node.api.drain(5)
    await seen.reader
    assert seen.socket.close_code == 1001
