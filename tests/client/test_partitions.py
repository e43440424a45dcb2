from __future__ import annotations

from raftq.client.client import AsyncClient
from raftq.client.models import NewMessage


async def test_a_name_with_partitions_is_worked_as_any_queue(client: AsyncClient) -> None:
    assert (await client.define_queue("jobs", {"partitions": 4}))["partitions"] == 4
    enqueued = await client.enqueue("jobs", [NewMessage(body=at, group=f"g{at}") for at in range(20)])
    assert len({message.id for message in enqueued.messages}) == 20
    leased = await client.lease("jobs", max=20)
    assert sorted(message.body for message in leased) == list(range(20))
    settled = await client.ack("jobs", [message.receipt for message in leased])
    assert {one.status for one in settled} == {"done"}
    assert (await client.stats("jobs"))["totals"]["acked"] == 20
