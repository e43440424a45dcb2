"""What is counted, how fast it grows, and what a health check says of each queue."""

from __future__ import annotations

from typing import Any

import pytest

from raftq.storage.machine.commands import SetVersion
from tests.api.conftest import Client

STATS = "/v1/queues/jobs/stats"


async def rates(client: Client, path: str = STATS) -> tuple[dict[str, Any], dict[str, Any]]:
    """Over 10 and over 60 seconds: those that are not 0."""
    found = (await client("GET", path)).json["rates"]
    shown = [{name: rate for name, rate in found[f"last_{n}_seconds"].items() if rate} for n in (10, 60)]
    return shown[0], shown[1]


async def test_rates_of_a_queue(client: Client) -> None:
    client.shard.clock_ms = 1_700_000_000_000
    await client.enqueue(*range(60))
    client.shard.clock_ms += 20_000
    await client.enqueue(*range(20))
    await client.lease(max=10)
    client.shard.clock_ms += 10_000
    near, far = await rates(client)
    assert near == {"seconds": 10, "enqueued": 2, "delivered": 1}
    # Over 60 seconds: the machine was new, so that all is known of the time before.
    assert far == {"seconds": 60, "enqueued": 1.333, "delivered": 0.167}
    assert await rates(client, "/v1/stats") == (near, far)
    client.shard.clock_ms += 100_000
    assert await rates(client) == ({"seconds": 10}, {"seconds": 60})


async def test_rates_are_those_that_any_node_has_seen(client: Client) -> None:
    await client.enqueue(1, 2)
    client.node.follow("http://x")
    near, _ = await rates(client, f"{STATS}?consistency=stale")
    assert near["enqueued"] == round(2 / near["seconds"], 3)


async def test_stats_of_all_count_what_deleted_queues_did(client: Client) -> None:
    client.shard.apply(SetVersion(2))
    await client.enqueue(1, 2)
    await client.enqueue(3, queue="other")
    await client("DELETE", "/v1/queues/jobs")
    found = (await client("GET", "/v1/stats")).json
    assert (found["queues"], found["ready"], found["totals"]["enqueued"]) == (1, 1, 3)


async def test_the_age_grows_though_nothing_is_done(client: Client) -> None:
    await client.enqueue(1)
    client.shard.clock_ms += 2_500
    for path in (STATS, "/v1/stats"):
        assert (await client("GET", path)).json["oldest_ready_seconds"] == 2.5
    listed = (await client("GET", "/v1/queues?stats=true")).json["queues"]
    assert listed[0]["stats"]["oldest_ready_seconds"] == 2.5
    assert listed[0]["stats"]["rates"]["last_10_seconds"]["enqueued"] > 0


# Health with the messages of each queue


async def test_health_tells_the_messages_of_each_queue(client: Client) -> None:
    await client.enqueue(1, 2, 3)
    await client("POST", "/v1/queues/later/messages", {"body": 1, "delay_seconds": 60})
    await client.lease(max=1)
    client.node.follow(None)
    client.node.stopping = True
    reply = await client("GET", "/healthz?queues=true")
    assert (reply.status, reply.json) == (
        200,
        {
            "status": "ok",
            "queues": {
                "jobs": {"messages": 3, "ready": 2, "leased": 1, "delayed": 0},
                "later": {"messages": 1, "ready": 0, "leased": 0, "delayed": 1},
            },
            "cursor": None,
        },
    )


async def test_health_of_queues_in_pages(client: Client) -> None:
    for queue in ("a1", "a2", "a3", "b"):
        await client.enqueue(1, queue=queue)
    page = (await client("GET", "/healthz?queues=true&prefix=a&limit=2")).json
    assert (list(page["queues"]), page["cursor"]) == (["a1", "a2"], "a2")
    page = (await client("GET", f"/healthz?prefix=a&limit=2&cursor={page['cursor']}")).json
    assert (list(page["queues"]), page["cursor"]) == (["a3"], None)


async def test_health_without_queues_is_a_line(client: Client) -> None:
    for query in ("", "?queues=false"):
        reply = await client("GET", f"/healthz{query}")
        assert (reply.status, reply.data) == (200, b"ok\n")
    head = await client("HEAD", "/healthz?queues=true")
    assert (head.status, head.data) == (200, b"")


@pytest.mark.parametrize("query", ["queues=yes", "limit=0", "limit=501", "prefix=a/b", "colour=1"])
async def test_bad_queries_for_health(client: Client, query: str) -> None:
    reply = await client("GET", f"/healthz?{query}")
    assert (reply.status, reply.json["field"]) == (422, f"query.{query.partition('=')[0]}")
