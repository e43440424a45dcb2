"""What operators do to queues, through the client."""

from __future__ import annotations

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound, Refused
from raftq.client.models import NewMessage
from tests.client.nodes import Node


async def test_purge_pause_resume_delete(client: AsyncClient) -> None:
    with pytest.raises(NotFound):
        await client.purge_queue("jobs")
    enqueued = await client.enqueue("jobs", [NewMessage(body=n) for n in range(3)])
    assert (await client.pause("jobs"))["paused"] is True
    assert await client.lease("jobs") == []
    assert (await client.resume("jobs"))["paused"] is False
    await client.delete_message("jobs", enqueued.messages[1].id)
    with pytest.raises(NotFound):
        await client.delete_message("jobs", enqueued.messages[1].id)
    await client.lease("jobs")
    with pytest.raises(Refused, match="leased"):
        await client.delete_message("jobs", enqueued.messages[0].id)
    assert await client.purge_queue("jobs", request_id="once") == 2
    assert await client.purge_queue("jobs", request_id="once") == 2


async def test_a_newer_message_replaces_an_older_one(client: AsyncClient) -> None:
    for body in ("old", "new"):
        await client.enqueue("jobs", [NewMessage(body=body, replace_key="k")])
    assert [message.body for message in await client.lease("jobs", max=10)] == ["new"]


async def test_redrive(node: Node, client: AsyncClient) -> None:
    await client.define_queue("jobs", {"dead_letter_queue": "dead"})
    await client.enqueue("jobs", [NewMessage(body=n, attributes={"n": n}) for n in range(4)])
    messages = await client.lease("jobs", max=10)
    await client.reject("jobs", [message.receipt for message in messages])
    with pytest.raises(NotFound):
        await client.redrive_state("dead")
    begun = await client.redrive("dead", filter={"n": [{"numeric": [">", 0]}]}, messages_per_second=10)
    assert (begun.state, begun.left) == ("running", 4)
    node.shard.later(0)
    state = await client.redrive_state("dead")
    assert (state.moved, state.skipped, state.filter) == (1, 1, {"n": [{"numeric": [">", 0]}]})
    assert (await client.cancel_redrive("dead")).state == "cancelled"
    await client.define_queue("other")
    await client.redrive("dead", to="other", max_redrives=1, limit=1)
    node.shard.later(1)
    assert (await client.redrive_state("dead")).state == "done"
    assert [message.body for message in await client.lease("other")] == [0]
