"""Topics and transactions, against the real front end and state machine."""

from __future__ import annotations

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound, Refused
from raftq.client.models import NewMessage
from tests.client.nodes import Node


async def test_what_is_published_goes_to_who_wants_it(client: AsyncClient) -> None:
    await client.define_topic("news")
    await client.subscribe("news", "all")
    await client.subscribe("news", "red", {"color": ["red"]})
    messages = [NewMessage(body=1, attributes={"color": "red"}), NewMessage(body=b"\xff")]
    published = await client.publish("news", messages)
    assert [one.queues for one in published.messages] == [2, 1]
    assert [one.body for one in await client.lease("red", max=9)] == [1]
    assert [one.body for one in await client.lease("all", max=9)] == [1, b"\xff"]
    await client.unsubscribe("news", "red")
    assert [one.queues for one in (await client.publish("news", messages)).messages] == [1, 1]
    await client.delete_topic("news")
    with pytest.raises(NotFound):
        await client.publish("news", messages)


async def test_a_transaction_does_all(client: AsyncClient) -> None:
    await client.enqueue("orders", [NewMessage(body=1)])
    [order] = await client.lease("orders")
    operations = [
        {"ack": {"queue": "orders", "receipts": [order.receipt]}},
        {"enqueue": {"queue": "invoices", "messages": [NewMessage(body=b"\xff", priority=3)]}},
    ]
    done = (await client.transact(operations)).operations
    assert (done[0].results[0].status, len(done[1].messages)) == ("done", 1)
    [invoice] = await client.lease("invoices")
    assert (invoice.body, invoice.priority) == (b"\xff", 3)


async def test_a_transaction_does_nothing_when_a_lease_has_passed(client: AsyncClient) -> None:
    await client.enqueue("orders", [NewMessage(body=1)])
    [order] = await client.lease("orders")
    await client.ack("orders", [order.receipt])
    operations = [
        {"enqueue": {"queue": "invoices", "messages": [NewMessage(body=1)]}},
        {"ack": {"queue": "orders", "receipts": [order.receipt]}},
    ]
    with pytest.raises(Refused) as refused:
        await client.transact(operations)
    [told] = refused.value.fields["operations"]
    assert (told["operation"], told["type"], told["receipts"]) == (1, "gone", [order.receipt])
    with pytest.raises(NotFound):
        await client.stats("invoices")


async def test_a_client_is_of_one_namespace(node: Node, client: AsyncClient) -> None:
    await client.enqueue("jobs", [NewMessage(body="mine")])
    async with AsyncClient(node.url, namespace="other") as other:
        with pytest.raises(NotFound):
            await other.stats("jobs")
        await other.enqueue("jobs", [NewMessage(body="theirs")])
        assert [one.body for one in await other.lease("jobs", max=9)] == ["theirs"]
    assert [one.body for one in await client.lease("jobs", max=9)] == ["mine"]
