"""Every operation, against the real front end and state machine."""

from __future__ import annotations

import asyncio

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound
from raftq.client.models import NewMessage
from tests.client.nodes import Node, client_of


async def test_enqueue_lease_ack(client: AsyncClient) -> None:
    bodies = [b"\x00\xff", "text", {"a": [1, None]}, b""]
    enqueued = await client.enqueue("jobs", [NewMessage(body=body) for body in bodies])
    leased = await client.lease("jobs", max=10, lease_seconds=30)
    assert [message.body for message in leased] == bodies
    assert [message.id for message in leased] == [message.id for message in enqueued.messages]
    assert {message.deliveries for message in leased} == {1}
    results = await client.ack("jobs", [message.receipt for message in leased])
    assert {result.status for result in results} == {"done"}
    assert (await client.stats("jobs"))["ready"] == 0


async def test_attributes_priority_and_dedup(client: AsyncClient) -> None:
    first = NewMessage(body=1, attributes={"a": "x", "n": 2, "b": True}, priority=3, dedup_id="d")
    [one] = (await client.enqueue("jobs", [first])).messages
    [two] = (await client.enqueue("jobs", [first])).messages
    assert (two.id, two.duplicate) == (one.id, True)
    [leased] = await client.lease("jobs")
    assert (leased.attributes, leased.priority) == ({"a": "x", "n": 2, "b": True}, 3)


async def test_some_groups_alone(client: AsyncClient) -> None:
    await client.define_queue("jobs", {"max_leased_per_group": 1})
    await client.enqueue("jobs", [NewMessage(body=at, group=group) for at, group in enumerate(["a", "b", "a", None])])
    [one] = await client.lease("jobs", max=9, groups=["a", "c"])
    assert (one.body, one.group) == (0, "a")
    async with client.stream() as stream:
        assert await stream.lease("jobs", groups=["a"]) == []
        await stream.ack("jobs", [one.receipt])
        assert [message.body for message in await stream.lease("jobs", max=9, groups=["b", "a"])] == [1, 2]
    assert [message.group for message in await client.lease("jobs", max=9)] == [None]


async def test_nack_release_extend(client: AsyncClient) -> None:
    await client.enqueue("jobs", [NewMessage(body=1)])
    [first] = await client.lease("jobs")
    assert (await client.nack("jobs", [first.receipt]))[0].status == "done"
    [second] = await client.lease("jobs")
    assert (second.failures, second.fence > first.fence) == (1, True)
    assert (await client.extend("jobs", [second.receipt], lease_seconds=60))[0].status == "done"
    assert (await client.release("jobs", [second.receipt]))[0].status == "done"
    [third] = await client.lease("jobs")
    assert (third.failures, third.deliveries) == (1, 3)
    assert (await client.ack("jobs", [first.receipt]))[0].status == "gone"


async def test_a_nack_with_a_delay_comes_back_later(node: Node, client: AsyncClient) -> None:
    await client.enqueue("jobs", [NewMessage(body=1)])
    [leased] = await client.lease("jobs")
    await client.nack("jobs", [leased.receipt], delay_seconds=10)
    assert await client.lease("jobs") == []
    node.shard.later(11)
    assert len(await client.lease("jobs")) == 1


async def test_rejected_messages_are_found_in_the_dead_letter_queue(client: AsyncClient) -> None:
    settings = await client.define_queue("jobs", {"dead_letter_queue": "dead"})
    assert (settings["dead_letter_queue"], settings["max_failures"]) == ("dead", 20)
    await client.enqueue("jobs", [NewMessage(body=1), NewMessage(body=2)])
    first, second = await client.lease("jobs", max=2)
    assert (await client.reject("jobs", [first.receipt], reason="no user"))[0].status == "done"
    assert (await client.reject("jobs", [second.receipt]))[0].status == "done"
    letters = (await client.peek("dead")).messages
    assert [letter.dead_letter and letter.dead_letter.reason for letter in letters] == ["rejected: no user", "rejected"]
    assert [letter.dead_letter and letter.dead_letter.id for letter in letters] == [first.id, second.id]
    assert first.dead_letter is None
    changed = await client.change_queue("jobs", {"dead_letter_queue": None, "max_messages": 1})
    assert changed == settings | {"dead_letter_queue": None, "max_failures": None, "max_messages": 1}
    with pytest.raises(NotFound):
        await client.change_queue("none", {})


async def test_an_enqueue_waits_for_room_in_a_full_queue(node: Node) -> None:
    async with client_of(node) as client:
        await client.define_queue("jobs", {"max_messages": 1})
        await client.enqueue("jobs", [NewMessage(body=1)])
        [leased] = await client.lease("jobs")
        waiting = asyncio.ensure_future(client.enqueue("jobs", [NewMessage(body=2)]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await client.ack("jobs", [leased.receipt])
        await waiting


async def test_a_lease_waits_for_the_enqueue(node: Node, client: AsyncClient) -> None:
    await client.define_queue("jobs")
    async with client_of(node) as other:
        waiting = asyncio.ensure_future(client.lease("jobs", wait_seconds=30))
        await other.enqueue("jobs", [NewMessage(body=1)])
        assert len(await waiting) == 1


async def test_peek_and_message(client: AsyncClient) -> None:
    enqueued = await client.enqueue("jobs", [NewMessage(body=number) for number in range(5)])
    page = await client.peek("jobs", limit=3)
    rest = await client.peek("jobs", limit=3, cursor=page.cursor)
    assert [message.body for message in page.messages + rest.messages] == list(range(5))
    assert rest.cursor is None
    assert (await client.message("jobs", enqueued.messages[2].id)).body == 2
    with pytest.raises(NotFound):
        await client.message("jobs", "1-0-999")


async def test_queues_are_defined_and_deleted(client: AsyncClient) -> None:
    assert (await client.define_queue("jobs", {"lease_seconds": 5}))["lease_seconds"] == 5
    await client.delete_queue("jobs")
    with pytest.raises(NotFound):
        await client.stats("jobs")
    assert (await client.stats())["queues"] == 0


async def test_the_cluster_is_described(node: Node, client: AsyncClient) -> None:
    cluster = await client.cluster()
    assert (cluster.cluster_id, cluster.leader, cluster.nodes[0].api_url) == ("c1", "n1", node.url)
