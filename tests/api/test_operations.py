from __future__ import annotations

import pytest

from raftq.storage.machine import commands
from tests.api.conftest import Client

JOBS = "/v1/queues/jobs"


async def test_a_purge_leaves_nothing_but_the_queue(client: Client) -> None:
    assert (await client("POST", f"{JOBS}/purge")).status == 404
    await client("PUT", JOBS, {"lease_seconds": 5})
    [first, _, _] = await client.enqueue("a", "b", "c")
    await client("POST", f"{JOBS}/messages", {"body": 1, "delay_seconds": 60})
    [leased] = await client.lease()
    purged = await client("POST", f"{JOBS}/purge")
    assert (purged.status, purged.json) == (200, {"messages": 4})
    assert (await client("GET", JOBS)).json["lease_seconds"] == 5
    stats = (await client("GET", f"{JOBS}/stats")).json
    assert (stats["ready"], stats["leased"], stats["delayed"], stats["totals"]["removed"]) == (0, 0, 0, 4)
    assert (await client("GET", f"{JOBS}/messages/{first}")).json["type"].endswith("/unknown-message")
    acked = await client("POST", f"{JOBS}/ack", {"receipts": [leased["receipt"]]})
    assert acked.json["results"][0]["status"] == "gone"
    client.shard.later(1)
    assert await client.enqueue("d")
    assert [message["body"] for message in await client.lease(max=10)] == ["d"]


async def test_a_purge_that_is_retried_spares_what_came_since(client: Client) -> None:
    await client.enqueue("a")
    for _ in range(2):
        assert (await client("POST", f"{JOBS}/purge", {"request_id": "p"})).json == {"messages": 1}
        await client.enqueue("b")
    assert (await client("GET", f"{JOBS}/stats")).json["ready"] == 2


async def test_pause_and_resume_touch_nothing_else(client: Client) -> None:
    assert (await client("POST", f"{JOBS}/pause")).status == 404
    await client("PUT", JOBS, {"lease_seconds": 5})
    await client.enqueue("a")
    paused = await client("POST", f"{JOBS}/pause")
    assert (paused.status, paused.json["paused"], paused.json["lease_seconds"]) == (200, True, 5)
    assert await client.lease() == []
    resumed = await client("POST", f"{JOBS}/resume")
    assert (resumed.json["paused"], resumed.json["lease_seconds"]) == (False, 5)
    assert len(await client.lease()) == 1
    assert (await client("POST", f"{JOBS}/pause", {"seconds": 1})).json["field"] == "seconds"


async def test_a_message_is_deleted_by_its_id(client: Client) -> None:
    ids = await client.enqueue("a", "b", "c")
    reply = await client("POST", f"{JOBS}/messages", {"body": "late", "delay_seconds": 60})
    late = reply.json["messages"][0]["id"]
    await client.lease()
    assert (await client("DELETE", f"{JOBS}/messages/{ids[1]}")).status == 204
    assert (await client("DELETE", f"{JOBS}/messages/{late}")).status == 204
    again = await client("DELETE", f"{JOBS}/messages/{ids[1]}")
    assert (again.status, again.json["applied"]) == (404, "no")
    leased = await client("DELETE", f"{JOBS}/messages/{ids[0]}")
    assert (leased.status, leased.json["reason"]) == (409, "leased")
    assert [message["body"] for message in await client.lease(max=10)] == ["c"]


@pytest.mark.parametrize("id_", ["x", "1-0", "9-0-1", "1-0-99", "1-10-1", "1-0-0", "1-0--1", "1-0-9223372036854775807"])
async def test_ids_that_name_nothing(client: Client, id_: str) -> None:
    await client.enqueue("a")
    assert (await client("DELETE", f"{JOBS}/messages/{id_}")).json["type"].endswith("/unknown-message")
    assert (await client("DELETE", f"/v1/queues/none/messages/{id_}")).status == 404


async def test_a_newer_message_replaces_the_one_with_its_key(client: Client) -> None:
    given = [{"body": body, "replace_key": key} for body, key in (("a1", "a"), ("b1", "b"), ("a2", "a"))]
    await client("POST", f"{JOBS}/messages", {"messages": [*given, {"body": "plain"}]})
    [b1] = await client.lease()
    assert b1["body"] == "b1"
    await client("POST", f"{JOBS}/messages", {"body": "b2", "replace_key": "b"})
    await client("POST", f"{JOBS}/nack", {"receipts": [b1["receipt"]]})
    assert [message["body"] for message in await client.lease(max=10)] == ["a2", "plain", "b2"]
    reply = await client("POST", f"{JOBS}/messages", {"messages": [{"body": 1}, {"body": 1, "replace_key": ""}]})
    assert (reply.status, reply.json["field"]) == (422, "messages[1].replace_key")


async def test_two_changes_at_once_of_different_fields_both_hold(client: Client) -> None:
    await client("PUT", JOBS)
    settings = commands.QueueSettings(lease_ms=7_000)
    client.shard.apply(commands.DefineQueue("default/jobs", settings, create=False, only=["lease_ms"]))
    changed = await client("PATCH", JOBS, {"delay_seconds": 3})
    assert (changed.json["lease_seconds"], changed.json["delay_seconds"]) == (7, 3)


async def dead(client: Client, *bodies: str, **fields: object) -> None:
    """Dead letters in the queue `dead`."""
    await client("PUT", JOBS, {"dead_letter_queue": "dead", "max_failures": 1})
    await client("POST", f"{JOBS}/messages", {"messages": [{"body": body} | fields for body in bodies]})
    receipts = [message["receipt"] for message in await client.lease(max=1000)]
    await client("POST", f"{JOBS}/nack", {"receipts": receipts})


async def test_a_redrive_from_its_beginning_to_its_end(client: Client) -> None:
    redrive = "/v1/queues/dead/redrive"
    assert (await client("GET", redrive)).json["type"].endswith("/unknown-queue")
    await dead(client, "a", "b", attributes={"n": 1})
    await dead(client, "c", attributes={"n": 2})
    assert (await client("GET", redrive)).json["type"].endswith("/unknown-redrive")
    assert (await client("DELETE", redrive)).json["type"].endswith("/unknown-redrive")
    begun = await client("POST", redrive, {"filter": {"n": [1]}, "messages_per_second": 10})
    assert (begun.status, begun.json["state"], begun.json["left"]) == (202, "running", 3)
    assert (await client("POST", redrive)).json["reason"] == "redrive_runs"
    client.shard.later(0)
    stands = (await client("GET", redrive)).json
    assert (stands["state"], stands["to"], stands["filter"]) == ("running", None, {"n": [1]})
    assert (stands["moved"], stands["skipped"], stands["left"]) == (1, 0, 2)
    cancelled = (await client("DELETE", redrive)).json
    assert (cancelled["state"], cancelled["moved"]) == ("cancelled", 1)
    assert cancelled["ended_at_ms"] >= cancelled["begun_at_ms"]
    await client("POST", redrive, {"max_redrives": 3, "limit": 10})
    client.shard.later(1)
    assert (await client("GET", redrive)).json["moved"] == 2
    messages = await client.lease(max=10)
    assert [(message["body"], message["failures"], message["deliveries"]) for message in messages] == [
        ("a", 0, 1),
        ("b", 0, 1),
        ("c", 0, 1),
    ]


async def test_a_purge_makes_a_redrive_be_forgotten(client: Client) -> None:
    await dead(client, "a", "b")
    assert (await client("POST", "/v1/queues/dead/redrive", {"messages_per_second": 1})).json["state"] == "running"
    assert (await client("POST", "/v1/queues/dead/purge")).json == {"messages": 2}
    client.shard.later(2)
    for method in ("GET", "DELETE"):
        reply = await client(method, "/v1/queues/dead/redrive")
        assert (reply.status, reply.json["type"].rpartition("/")[2]) == (404, "unknown-redrive")
    assert await client.lease(max=10) == []


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"to": "dead"}, "to"),
        ({"to": "none"}, "to"),
        ({"to": "a/b"}, "to"),
        ({"filter": {"a": [{"suffix": "x"}]}}, "filter[...][0].suffix"),
        ({"filter": {"a": []}}, "filter"),
        ({"messages_per_second": 0}, "messages_per_second"),
        ({"limit": 0}, "limit"),
        ({"max_redrives": 0}, "max_redrives"),
        ({"colour": 1}, "colour"),
    ],
)
async def test_redrives_that_are_refused(client: Client, given: dict[str, object], field: str) -> None:
    await dead(client, "a")
    reply = await client("POST", "/v1/queues/dead/redrive", given)
    assert (reply.status, reply.json["field"]) == (422, field)


async def test_an_empty_body_may_be_of_any_type(client: Client) -> None:
    await client("PUT", JOBS)
    for path in ("pause", "resume", "purge", "redrive"):
        reply = await client("POST", f"{JOBS}/{path}", headers={"Content-Type": "application/octet-stream"})
        assert reply.status in (200, 202)
        reply = await client("POST", f"{JOBS}/{path}", data=b"x", headers={"Content-Type": "application/octet-stream"})
        assert reply.status == 415
