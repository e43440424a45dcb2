from __future__ import annotations

from typing import Any

import pytest
from yarl import URL

from tests.api.conftest import Client

DEFAULTS = {
    "name": "jobs",
    "lease_seconds": 30.0,
    "delay_seconds": 0.0,
    "dedup_window_seconds": 300.0,
    "paused": False,
    "retention_seconds": None,
    "dead_letter_queue": None,
    "max_failures": None,
    "backoff": None,
    "max_messages": None,
    "max_bytes": None,
    "max_leased_per_group": None,
    "partitions": None,
}
ALL = {
    "lease_seconds": 5.0,
    "delay_seconds": 1.0,
    "dedup_window_seconds": 2.0,
    "paused": True,
    "retention_seconds": 3.5,
    "dead_letter_queue": "dead",
    "max_failures": 3,
    "backoff": {"initial_seconds": 0.5, "factor": 1.5, "max_seconds": 60.0},
    "max_messages": 10,
    "max_bytes": 1000,
    "max_leased_per_group": 2,
}


async def test_define_read_change_remove(client: Client) -> None:
    assert (await client("GET", "/v1/queues/jobs")).status == 404
    created = await client("PUT", "/v1/queues/jobs", {"lease_seconds": 5})
    assert (created.status, created.json) == (201, DEFAULTS | {"lease_seconds": 5.0})
    again = await client("PUT", "/v1/queues/jobs")
    assert (again.status, again.json) == (200, DEFAULTS)
    changed = await client("PATCH", "/v1/queues/jobs", {"delay_seconds": 1.5, "paused": True})
    assert changed.json == DEFAULTS | {"delay_seconds": 1.5, "paused": True}
    assert (await client("GET", "/v1/queues/jobs")).json == changed.json
    await client.enqueue(1, 2)
    removed = await client("DELETE", "/v1/queues/jobs")
    assert (removed.status, removed.json) == (200, {"messages": 2})
    for method in ("GET", "PATCH", "DELETE"):
        assert (await client(method, "/v1/queues/jobs")).status == 404


async def test_every_setting_is_set_kept_and_taken_back(client: Client) -> None:
    """PUT and PATCH: what is absent takes its default, or stays; null gives it its default."""
    put = await client("PUT", "/v1/queues/jobs", ALL)
    assert put.json == DEFAULTS | ALL
    assert (await client("GET", "/v1/queues/jobs")).json == put.json
    assert (await client("PATCH", "/v1/queues/jobs", {})).json == put.json
    for field, value in DEFAULTS.items():
        if field != "name":
            await client("PUT", "/v1/queues/jobs", ALL)
            # Without a limit of its own, a queue with a dead-letter queue has 20.
            default = 20 if field == "max_failures" else value
            changed = await client("PATCH", "/v1/queues/jobs", {field: None})
            assert changed.json == put.json | {field: default}
            assert (await client("PUT", "/v1/queues/jobs", ALL | {field: None})).json == changed.json
    assert (await client("PUT", "/v1/queues/jobs", {})).json == DEFAULTS


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"retention_seconds": 0.5}, "retention_seconds"),
        ({"dead_letter_queue": "jobs"}, "dead_letter_queue"),
        ({"dead_letter_queue": "a/b"}, "dead_letter_queue"),
        ({"max_failures": 0}, "max_failures"),
        ({"backoff": {}}, "backoff"),
        ({"backoff": {"initial_seconds": 0}}, "backoff.initial_seconds"),
        ({"backoff": {"initial_seconds": 1, "factor": 0.9}}, "backoff.factor"),
        ({"backoff": {"initial_seconds": 10, "max_seconds": 9}}, "backoff.max_seconds"),
        ({"max_messages": 0}, "max_messages"),
        ({"max_bytes": 1 << 60}, "max_bytes"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_settings_that_are_not(client: Client, method: str, given: dict[str, Any], field: str) -> None:
    await client("PUT", "/v1/queues/jobs")
    reply = await client(method, "/v1/queues/jobs", given)
    assert (reply.status, reply.json["field"], reply.json["applied"]) == (422, field, "no")


@pytest.mark.parametrize("name", ["a", "A-Z.az_09", "x" * 128, "...", "%61b%2Ec"])
async def test_names_that_are_taken(client: Client, name: str) -> None:
    assert (await client("PUT", f"/v1/queues/{name}")).status == 201


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a%20b", "a%2Fb", "%2e", "%2E%2e", "a%00", "%C3%A9", "%zz", "a:b", "%25"]
)
async def test_names_that_are_not(client: Client, name: str) -> None:
    url = URL(f"{client.node.url}/v1/queues/{name}", encoded=True)
    async with client.session.put(url, skip_auto_headers=["Content-Type"]) as reply:
        assert reply.status == 422
        assert (await reply.json(content_type=None))["field"] == "queue"


async def test_list_pages_and_filters(client: Client) -> None:
    for name in ("a1", "a2", "a3", "b1"):
        await client.enqueue(1, queue=name)
    page = (await client("GET", "/v1/queues?prefix=a&limit=2")).json
    assert [queue["name"] for queue in page["queues"]] == ["a1", "a2"]
    assert "stats" not in page["queues"][0]
    rest = (await client("GET", f"/v1/queues?prefix=a&limit=2&cursor={page['cursor']}&stats=true")).json
    assert [(queue["name"], queue["stats"]["ready"]) for queue in rest["queues"]] == [("a3", 1)]
    assert rest["cursor"] is None


@pytest.mark.parametrize("query", ["prefix=a/b", "cursor=%20", "limit=x", "stats=yes", "colour=1", "limit=1&limit=2"])
async def test_bad_queries_of_a_list(client: Client, query: str) -> None:
    reply = await client("GET", f"/v1/queues?{query}")
    assert (reply.status, reply.json["field"]) == (422, f"query.{query.split('=')[0]}")


async def test_stats_of_a_queue_and_of_all(client: Client) -> None:
    await client.enqueue("a", "b", "c")
    await client.enqueue("d", queue="other")
    await client("POST", "/v1/queues/jobs/messages", {"body": 1, "delay_seconds": 60})
    [message] = await client.lease()
    await client("POST", "/v1/queues/jobs/ack", {"receipts": [message["receipt"]]})
    await client.lease()
    client.shard.later(2)
    stats = (await client("GET", "/v1/queues/jobs/stats")).json
    assert (stats["name"], stats["ready"], stats["leased"], stats["delayed"]) == ("jobs", 1, 1, 1)
    assert stats["oldest_ready_seconds"] == 2.0
    assert {name: n for name, n in stats["totals"].items() if n} == {"enqueued": 4, "delivered": 2, "acked": 1}
    total = (await client("GET", "/v1/stats?consistency=stale")).json
    assert (total["queues"], total["ready"], total["totals"]["enqueued"]) == (2, 2, 5)
    assert (await client("GET", "/v1/queues/none/stats")).status == 404


async def test_the_sum_goes_over_many_queues(client: Client) -> None:
    for number in range(250):
        await client.enqueue(1, queue=f"q{number}")
    total = (await client("GET", "/v1/stats")).json
    assert (total["queues"], total["ready"]) == (250, 250)


async def test_names_that_begin_with_dots_are_listed_by_them(client: Client) -> None:
    """Found by schemathesis: the prefixes . and .. were refused, as the names are."""
    for name in (".a", "..b", "c"):
        await client("PUT", f"/v1/queues/{name}")
    for prefix, expected in ((".", ["..b", ".a"]), ("..", ["..b"]), ("", ["..b", ".a", "c"])):
        listed = await client("GET", f"/v1/queues?prefix={prefix}")
        assert [queue["name"] for queue in listed.json["queues"]] == expected
