from __future__ import annotations

import pytest

from raftq.client.client import AsyncClient
from raftq.client.errors import NotFound, Refused
from raftq.client.models import NewMessage
from tests.client.nodes import Node


async def test_a_schedule_ticks(node: Node, client: AsyncClient) -> None:
    given = {"interval_seconds": 60, "queue": "jobs", "message": NewMessage(body=b"\0", attributes={"kind": "daily"})}
    defined = await client.define_schedule("minutely", given)
    assert await client.schedule("minutely") == defined
    node.shard.later(61)
    [leased] = await client.lease("jobs")
    assert leased.body == b"\0"
    at_ms = defined["next_at_ms"]
    assert leased.attributes == {"kind": "daily", "schedule": "minutely", "tick": 1, "tick_at_ms": at_ms}
    assert (await client.schedule("minutely"))["ticks"] == 1
    await client.delete_schedule("minutely")
    with pytest.raises(NotFound):
        await client.schedule("minutely")
    with pytest.raises(Refused, match="cron: '60 \\* \\* \\* \\*' has a bad minute"):
        await client.define_schedule("bad", given | {"interval_seconds": None, "cron": "60 * * * *"})
