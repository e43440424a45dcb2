"""Many operations on one WebSocket, through the client."""

from __future__ import annotations

import asyncio

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import Busy, NotFound, OutcomeUnknown, Refused, Unavailable
from raftq.client.models import Enqueued, NewMessage
from tests.client.nodes import IMPATIENT, Node, running


async def test_operations_in_flight_at_once(node: Node, client: AsyncClient) -> None:
    async with client.stream() as stream:
        enqueued = await asyncio.gather(*[stream.enqueue("jobs", NewMessage(body=number)) for number in range(500)])
        assert len({message.id for message in enqueued}) == 500
        await stream.enqueue("jobs", NewMessage(body=b"\x00\xff", priority=9, attributes={"k": "v"}), request_id="r")
        leased = await stream.lease("jobs", max=501, lease_seconds=60)
        assert [message.body for message in leased] == [b"\x00\xff", *range(500)]
        receipts = [message.receipt for message in leased]
        acks = await asyncio.gather(*[stream.ack("jobs", [receipt]) for receipt in receipts[:300]])
        assert {settled.status for [settled] in acks} == {"done"}
        await stream.nack("jobs", receipts[300:301], delay_seconds=5)
        await stream.release("jobs", receipts[301:302])
        [extended] = await stream.extend("jobs", receipts[302:303], lease_seconds=90)
        assert extended.status == "done"
    stats = await client.stats("jobs")
    assert (stats["leased"], stats["ready"], stats["delayed"]) == (199, 1, 1)


async def test_a_subscription_gives_messages_and_takes_credit_back(client: AsyncClient) -> None:
    await client.define_queue("jobs")
    async with client.stream() as stream:
        subscription = await stream.subscribe("jobs", credit=2, lease_seconds=60)
        for number in range(5):
            await stream.enqueue("jobs", NewMessage(body=number))
        seen = []
        async for message in subscription:
            seen.append(message.body)
            await stream.ack("jobs", [message.receipt])
            if len(seen) == 5:
                await subscription.end()
        assert seen == list(range(5))
        other = await stream.subscribe("jobs", credit=0)
        await stream.enqueue("jobs", NewMessage(body="last"))
        await other.add_credit(1)
        assert (await anext(other)).body == "last"


async def test_what_is_refused_is_raised(client: AsyncClient) -> None:
    async with client.stream() as stream:
        with pytest.raises(NotFound):
            await stream.subscribe("none", credit=1)
        with pytest.raises(Refused) as refused:
            await stream.enqueue("jobs", NewMessage(body=1, priority=11))
        assert refused.value.status == 422
        with pytest.raises(NotFound):
            await stream.enqueue("none", NewMessage(body=1), auto_create=False)
        await client.define_queue("jobs", {"max_messages": 1})
        with pytest.raises(Busy) as busy:
            await stream.ask("enqueue", Enqueued, queue="jobs", messages=[{"body": 1}] * 2)
        assert busy.value.type.endswith("queue-full")


async def test_the_end_is_told_as_it_is(node: Node, client: AsyncClient) -> None:
    await client.define_queue("jobs")
    async with client.stream() as stream:
        subscription = await stream.subscribe("jobs", credit=1)
        node.shard.gate = asyncio.Event()
        sent = asyncio.ensure_future(stream.enqueue("jobs", NewMessage(body=1)))
        while not node.shard._tasks:
            await asyncio.sleep(0.001)
        [connection] = node.api.connections
        connection.socket._req.transport.abort()  # type: ignore[union-attr]
        with pytest.raises(OutcomeUnknown):
            await sent
        with pytest.raises(Unavailable):
            await anext(subscription)
        with pytest.raises(Unavailable):
            await stream.enqueue("jobs", NewMessage(body=1))
        node.shard.gate.set()


async def test_it_finds_a_node_that_answers(node: Node) -> None:
    async with running() as follower:
        follower.follow(node.url)
        async with AsyncClient(["http://127.0.0.1:1", follower.url], patience=IMPATIENT) as client:
            async with client.stream() as stream:
                await stream.enqueue("jobs", NewMessage(body=1))
            assert (await client.stats("jobs"))["ready"] == 1
    async with AsyncClient("http://127.0.0.1:1", patience=IMPATIENT) as client:
        with pytest.raises(Unavailable):
            await client.stream().__aenter__()
