"""A stream through a follower, while the leader ends: what is answered is true, and what is unknown is said to be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import aiohttp
import msgspec
import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import OutcomeUnknown, Unavailable
from raftq.client.models import NewMessage
from raftq.client.stream import Stream
from raftq.node.local_cluster import LocalCluster
from tests.cluster.client import drain, enqueue

pytestmark = pytest.mark.cluster

IN_FLIGHT = 200


class Enqueued:
    """Numbers sent as bodies on one raw stream, and what was said of each."""

    def __init__(self) -> None:
        self.acknowledged: set[int] = set()
        self.not_applied: set[int] = set()
        self.unknown: set[int] = set()
        self.open: set[int] = set()

    async def run(self, socket: aiohttp.ClientWebSocketResponse, numbers: Iterator[int]) -> int | None:
        """Keep IN_FLIGHT of them on their way until the connection is closed: its code."""
        await self._send(socket, [next(numbers) for _ in range(IN_FLIGHT)])
        async for frame in socket:
            answers = msgspec.json.decode(frame.data)
            for answer in answers:
                self._note(answer)
            if not any("problem" in answer for answer in answers):
                await self._send(socket, [next(numbers) for _ in answers])
        return socket.close_code

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, numbers: list[int]) -> None:
        operations = [{"op": "enqueue", "id": number, "queue": "jobs", "body": number} for number in numbers]
        self.open.update(numbers)
        try:
            await socket.send_str(msgspec.json.encode(operations).decode())
        except ConnectionError:
            self.unknown.update(numbers)  # closed under its hands: nobody answers these
            self.open.difference_update(numbers)

    def _note(self, answer: dict[str, Any]) -> None:
        self.open.remove(answer["id"])
        if "answer" in answer:
            self.acknowledged.add(answer["id"])
        else:
            (self.not_applied if answer["problem"]["applied"] == "no" else self.unknown).add(answer["id"])


@pytest.mark.parametrize("end", [LocalCluster.kill, LocalCluster.stop_one], ids=["killed", "stopped"])
async def test_a_leader_that_ends_under_a_proxied_stream(
    cluster: LocalCluster, end: Callable[[LocalCluster, str], None]
) -> None:
    leader = cluster.wait_ready()
    follower = next(node for node in cluster.running if node != leader)
    seen, numbers = Enqueued(), count()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{cluster.url(follower)}/v1/stream", max_msg_size=0) as socket,
    ):
        running = asyncio.ensure_future(seen.run(socket, numbers))
        while len(seen.acknowledged) < 2000:
            assert not running.done()
            await asyncio.sleep(0.005)
        await asyncio.to_thread(end, cluster, leader)
        async with asyncio.timeout(20):
            assert await running == 1012, "connect again"
    assert seen.unknown or end is LocalCluster.stop_one, "what the dead leader left open is told as unknown"
    assert len(seen.open) <= IN_FLIGHT, "what was sent as the connection closed has no answer"
    new = await asyncio.to_thread(cluster.wait_ready)
    found = await asyncio.to_thread(drain, cluster, new)
    assert len(found) == len(set(map(int, found)))  # type: ignore[call-overload]
    assert seen.acknowledged <= set(found)
    assert set(found) <= seen.acknowledged | seen.unknown
    assert not seen.not_applied & set(found)


async def test_the_clients_streams_over_a_change_of_leader(cluster: LocalCluster) -> None:
    """Enqueues with request ids, repeated on the next stream when the last one ended: each is there once."""
    leader = cluster.wait_ready()
    urls = [cluster.url(node) for node in cluster.running if node != leader]
    done: set[int] = set()
    numbers = list(range(3000))

    async def put(stream: Stream, number: int) -> None:
        await stream.enqueue("jobs", NewMessage(body=number), request_id=f"r{number}")
        done.add(number)

    async with AsyncClient(urls) as client:
        async with asyncio.timeout(60):
            while len(done) < len(numbers):
                rest = [number for number in numbers if number not in done]
                async with client.stream() as stream:
                    if len(done) > 500 and leader in cluster.running:
                        await asyncio.to_thread(cluster.kill, leader)
                    some = rest[:300]
                    results = await asyncio.gather(*[put(stream, one) for one in some], return_exceptions=True)
                assert all(one is None or isinstance(one, OutcomeUnknown | Unavailable) for one in results), results
        assert leader not in cluster.running
    found = await asyncio.to_thread(drain, cluster, await asyncio.to_thread(cluster.wait_ready))
    assert sorted(map(int, found)) == numbers  # type: ignore[call-overload]


async def test_a_followers_events_go_on_through_a_change_of_leader(cluster: LocalCluster) -> None:
    leader = cluster.wait_ready()
    follower = next(node for node in cluster.running if node != leader)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{cluster.url(follower)}/v1/events?prefix=jobs") as socket,
        asyncio.timeout(30),
    ):
        seen: list[Any] = []

        async def wait(kind: str, **fields: Any) -> Any:
            while True:
                for event in seen:
                    if event["event"] == kind and fields.items() <= event.items():
                        return event
                seen.extend(msgspec.json.decode((await socket.receive()).data))

        first = await wait("cluster")
        assert (first["leader"], first["role"], len(first["nodes"])) == (leader, "follower", 3)
        await asyncio.to_thread(enqueue, cluster, follower, "a")
        assert (await wait("queue-defined"))["queue"] == "jobs"
        await wait("queue", ready=1)
        await asyncio.to_thread(cluster.kill, leader)
        await wait("node-changed")
        new = await asyncio.to_thread(cluster.wait_ready)
        await wait("leader", leader=new)
        await asyncio.to_thread(enqueue, cluster, follower, "b")
        await wait("queue", ready=2)
