"""Dead letters and full queues, as a client meets them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raftq.storage.machine import deadletters
from tests.api.conftest import Client

JOBS = "/v1/queues/jobs"
BINARY = {"body": "AAE=", "encoding": "base64", "attributes": {"a": 1}, "priority": 4}


async def settled(client: Client, verb: str, *messages: Any, **fields: Any) -> list[str]:
    receipts = [message["receipt"] for message in messages]
    reply = await client("POST", f"{JOBS}/{verb}", {"receipts": receipts} | fields)
    assert reply.status == 200, reply.json
    return [result["status"] for result in reply.json["results"]]


async def totals(client: Client, queue: str = "jobs") -> dict[str, int]:
    found = (await client("GET", f"/v1/queues/{queue}/stats")).json["totals"]
    return {name: count for name, count in found.items() if count}


async def test_a_rejected_message_says_in_the_dead_letter_queue_where_it_comes_from(client: Client) -> None:
    await client("PUT", JOBS, {"dead_letter_queue": "dead"})
    [first] = (await client("POST", f"{JOBS}/messages", BINARY)).json["messages"]
    [leased] = await client.lease()
    assert leased["dead_letter"] is None
    client.shard.later(1)
    assert await settled(client, "reject", leased, reason='no "user"') == ["done"]
    assert await settled(client, "reject", leased) == ["gone"]
    origin = {
        "queue": "jobs",
        "id": first["id"],
        "reason": 'rejected: no "user"',
        "failures": 0,
        "deliveries": 1,
        "enqueued_at_ms": client.shard.clock_ms - 1000,
        "dead_at_ms": client.shard.clock_ms,
        "redriven": 0,
    }
    [peeked] = (await client("GET", "/v1/queues/dead/messages")).json["messages"]
    one = (await client("GET", f"/v1/queues/dead/messages/{peeked['id']}")).json
    headers = {"Accept": "application/msgpack"}
    one_packed = (await client("GET", f"/v1/queues/dead/messages/{peeked['id']}", headers=headers)).msgpack
    [letter] = await client.lease("dead")
    for message in (peeked, one, letter):
        assert message["dead_letter"] == origin
        assert {name: message[name] for name in BINARY} == BINARY
    assert (one_packed["dead_letter"], one_packed["body"]) == (origin, b"\0\1")
    assert (letter["deliveries"], letter["enqueued_at_ms"]) == (1, client.shard.clock_ms)
    await client("POST", "/v1/queues/dead/release", {"receipts": [letter["receipt"]]})
    reply = await client("POST", "/v1/queues/dead/lease", {}, headers=headers)
    assert reply.msgpack["messages"][0]["dead_letter"] == origin
    assert await totals(client) == {"enqueued": 1, "delivered": 1, "rejected": 1, "dead_lettered": 1}


async def test_a_message_that_fails_too_often_is_dead_lettered_or_discarded(client: Client) -> None:
    await client("PUT", JOBS, {"max_failures": 2, "backoff": {"initial_seconds": 10}})
    await client.enqueue("a")
    for _ in range(2):
        assert await settled(client, "nack", *await client.lease()) == ["done"]
        client.shard.later(10)
    assert await totals(client) == {"enqueued": 1, "delivered": 2, "nacked": 2, "discarded": 1}
    await client("PATCH", JOBS, {"dead_letter_queue": "dead"})
    await client.enqueue("b")
    for _ in range(2):
        await client.lease(lease_seconds=1)
        client.shard.later(1)
    [letter] = await client.lease("dead")
    assert (letter["dead_letter"]["reason"], letter["dead_letter"]["failures"]) == ("max_failures", 2)


async def test_backoff_grows_and_a_delay_of_the_nack_goes_before_it(client: Client) -> None:
    await client("PUT", JOBS, {"backoff": {"initial_seconds": 1, "factor": 3, "max_seconds": 5}})
    await client.enqueue("a")
    for delay, fields in ((1, {}), (3, {}), (5, {}), (5, {}), (0, {"delay_seconds": 0}), (2, {"delay_seconds": 2})):
        await settled(client, "nack", *await client.lease(), **fields)
        if delay:
            [message] = (await client("GET", f"{JOBS}/messages?state=delayed")).json["messages"]
            assert message["due_ms"] == client.shard.clock_ms + delay * 1000
            client.shard.later(delay)


async def test_retention_discards_what_waits_too_long(client: Client) -> None:
    await client("PUT", JOBS, {"retention_seconds": 5})
    await client.enqueue("old")
    client.shard.later(3)
    await client.enqueue("young")
    client.shard.later(2)
    assert [message["body"] for message in await client.lease(max=10)] == ["young"]
    assert (await totals(client))["discarded"] == 1


@pytest.mark.parametrize(
    ("settings", "limit"), [({"max_messages": 3}, "max_messages is 3"), ({"max_bytes": 18}, "max_bytes is 18")]
)
async def test_a_full_queue_refuses_the_whole_request(client: Client, settings: Any, limit: str) -> None:
    await client("PUT", JOBS, settings)
    await client.enqueue(1, 2)
    reply = await client("POST", f"{JOBS}/messages", {"messages": [{"body": 3}, {"body": 4}]})
    assert (reply.status, reply.json["type"]) == (429, "https://raftq.dev/problems/queue-full")
    assert (reply.json["applied"], reply.json["queue"], reply.headers["Retry-After"]) == ("no", "jobs", "1")
    assert limit in reply.json["detail"]
    assert await client.enqueue(3)
    assert (await client("POST", "/q/jobs", data=b"4")).status == 429
    await settled(client, "ack", *await client.lease())
    assert await client.enqueue(4)


async def test_a_duplicate_needs_no_room(client: Client) -> None:
    await client("PUT", JOBS, {"max_messages": 1})
    for duplicate in (False, True):
        reply = await client("POST", f"{JOBS}/messages", {"body": 1, "dedup_id": "x"})
        assert (reply.status, reply.json["messages"][0]["duplicate"]) == (201, duplicate)
    assert (await client("POST", f"{JOBS}/messages", {"body": 1, "dedup_id": "y"})).status == 429


@pytest.mark.parametrize("reason", ["x" * 1025, "é" * 513, 5])
async def test_a_reason_that_is_not(client: Client, reason: Any) -> None:
    await client.enqueue("a")
    [leased] = await client.lease()
    reply = await client("POST", f"{JOBS}/reject", {"receipts": [leased["receipt"]], "reason": reason})
    assert (reply.status, reply.json["field"]) == (422, "reason")


async def test_more_than_a_command_may_move_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "MOVED_BYTES_MAX", 1000)
    await client("PUT", JOBS, {"dead_letter_queue": "dead"})
    await client.enqueue("x" * 600, "y" * 600)
    leased = await client.lease(max=2)
    reply = await client("POST", f"{JOBS}/reject", {"receipts": [message["receipt"] for message in leased]})
    assert (reply.status, reply.json["applied"]) == (413, "no")
    for message in leased:
        assert await settled(client, "reject", message) == ["done"]


async def test_reject_takes_a_request_id(client: Client) -> None:
    await client.enqueue("a")
    [leased] = await client.lease()
    for _ in range(2):
        assert await settled(client, "reject", leased, request_id="r") == ["done"]
    assert await totals(client) == {"enqueued": 1, "delivered": 1, "rejected": 1, "discarded": 1}


async def test_messages_of_every_kind_are_valid_json(client: Client) -> None:
    await client("PUT", JOBS, {"dead_letter_queue": "dead"})
    for message in ({"body": {"a": 1}}, {"body": None, "attributes": {"k": '"'}}, BINARY):
        await client("POST", f"{JOBS}/messages", message)
    await settled(client, "reject", *await client.lease(max=3), reason="100% \\ é")
    reply = await client("POST", "/v1/queues/dead/lease", {"max": 3})
    found = msgspec.json.decode(reply.data)["messages"]
    assert [message["body"] for message in found] == ["AAE=", {"a": 1}, None]
    assert {message["dead_letter"]["reason"] for message in found} == {"rejected: 100% \\ é"}
