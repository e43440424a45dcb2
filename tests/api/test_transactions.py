from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raftq.api.ports import Limits
from tests.api.conftest import Client, Reply, Serve

PATH = "/v1/transactions"


async def transact(client: Client, *operations: Any, **fields: Any) -> Reply:
    return await client("POST", PATH, {"operations": list(operations)} | fields)


def put(queue: str, *bodies: Any, **fields: Any) -> dict[str, Any]:
    return {"enqueue": {"queue": queue, "messages": [{"body": body} for body in bodies]} | fields}


def settle(kind: str, *receipts: str, queue: str = "jobs", **fields: Any) -> dict[str, Any]:
    return {kind: {"queue": queue, "receipts": list(receipts)} | fields}


@pytest.fixture
async def receipts(client: Client) -> list[str]:
    await client.enqueue("a", "b", "c", "d")
    return [message["receipt"] for message in await client.lease(max=4)]


async def test_all_of_it_is_done(client: Client, receipts: list[str]) -> None:
    reply = await transact(
        client,
        settle("ack", receipts[0]),
        put("next", {"x": 1}, "y"),
        settle("nack", receipts[1], delay_seconds=5),
        settle("release", receipts[2]),
        settle("reject", receipts[3], reason="bad"),
    )
    assert (reply.status, reply.json["index"]) == (200, client.shard.index)
    done = reply.json["operations"]
    assert done[0] == {"results": [{"receipt": receipts[0], "status": "done"}]}
    assert [one["duplicate"] for one in done[1]["messages"]] == [False, False]
    assert (await client("GET", f"/v1/queues/next/messages/{done[1]['messages'][0]['id']}")).json["body"] == {"x": 1}
    stats = (await client("GET", "/v1/queues/jobs/stats")).json
    assert (stats["ready"], stats["delayed"], stats["leased"]) == (1, 1, 0)


async def test_nothing_is_done_and_what_stood_in_the_way_is_named(client: Client, receipts: list[str]) -> None:
    await client("POST", "/v1/queues/jobs/ack", {"receipts": [receipts[1]]})
    reply = await transact(
        client,
        put("next", 1),
        settle("ack", receipts[0], receipts[1], "99.1.0"),
        put("none", 1, auto_create=False),
        settle("ack", receipts[2]),
    )
    assert (reply.status, reply.json["type"], reply.json["applied"]) == (
        409,
        "https://raftq.dev/problems/transaction-refused",
        "no",
    )
    told = reply.json["operations"]
    assert [(one["operation"], one["type"], one.get("receipts")) for one in told] == [
        (1, "gone", [receipts[1], "99.1.0"]),
        (2, "unknown-queue", None),
    ]
    assert told[1]["detail"] == "There is no queue none: create it with PUT /v1/queues/none."
    assert "operations 1, 2 (from 0)" in reply.json["detail"]
    assert (await client("GET", "/v1/queues/next")).status == 404
    assert (await client("GET", "/v1/queues/jobs/stats")).json["leased"] == 3


async def test_a_receipt_given_twice_in_an_operation_counts_once(client: Client, receipts: list[str]) -> None:
    reply = await transact(client, settle("ack", receipts[0], receipts[0]))
    assert reply.json["operations"][0]["results"] == [{"receipt": receipts[0], "status": "done"}] * 2


async def test_a_retried_transaction_is_answered_alike(client: Client, receipts: list[str]) -> None:
    operations = [settle("ack", receipts[0]), put("next", 1)]
    first, again = [await transact(client, *operations, request_id="r") for _ in range(2)]
    assert first.json["operations"] == again.json["operations"]
    assert len(await client.lease("next", max=9)) == 1
    reply = await transact(client, put("next", 1, 2), request_id="r")
    assert (reply.status, reply.json["type"].rpartition("/")[2]) == (409, "conflict")


async def test_a_full_queue_is_named(client: Client) -> None:
    await client("PUT", "/v1/queues/next", {"max_messages": 1})
    reply = await transact(client, put("jobs", 1), put("next", 1, 2))
    assert [(one["operation"], one["type"]) for one in reply.json["operations"]] == [(1, "queue-full")]
    assert (await client("GET", "/v1/queues/jobs")).status == 404


async def test_a_transaction_in_msgpack(client: Client) -> None:
    operations = [{"enqueue": {"queue": "jobs", "messages": [{"body": b"\0\xff", "attributes": {"a": 1}}]}}]
    data = msgspec.msgpack.encode({"operations": operations})
    reply = await client("POST", PATH, data=data, headers={"Content-Type": "application/msgpack"})
    assert len(reply.msgpack["operations"][0]["messages"]) == 1
    [message] = await client.lease()
    assert (message["body"], message["encoding"], message["attributes"]) == ("AP8=", "base64", {"a": 1})


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        ({}, "operations[1]"),
        ({"ack": {"queue": "q", "receipts": ["1.1.1"]}, "enqueue": {"queue": "q", "messages": []}}, "operations[1]"),
        (put("q"), "operations[1].enqueue.messages"),
        (put("a/b", 1), "operations[1].enqueue.queue"),
        (settle("ack"), "operations[1].ack.receipts"),
        (settle("ack", "1.1.1", "x"), "operations[1].ack.receipts[1]"),
        (settle("reject", "1.1.1", reason="x" * 1025), "operations[1].reject.reason"),
        ({"enqueue": {"queue": "q", "messages": [{"priority": 1}]}}, "operations[1].enqueue.messages[0].body"),
        ({"enqueue": {"queue": "q", "messages": [{"body": 1}, {"body": 1, "dedup_id": ""}]}},
         "operations[1].enqueue.messages[1].dedup_id"),
        ({"drop": {"queue": "q"}}, "operations[1].drop"),
    ],
)  # fmt: skip
async def test_a_bad_operation_is_422_and_says_where(client: Client, operation: Any, field: str) -> None:
    reply = await transact(client, put("jobs", 1), operation)
    assert (reply.status, reply.json["field"]) == (422, field)
    assert reply.json["detail"].startswith(f"{field}: ")
    assert client.shard.applied == []


async def test_a_transaction_is_bounded(serve: Serve) -> None:
    client = await serve(Limits(batch_messages=3, lease_messages=2))
    assert (await transact(client)).json["field"] == "operations"
    reply = await transact(client, put("a", 1, 2), put("b", 1, 2))
    assert (reply.status, reply.json["detail"]) == (
        413,
        "A transaction takes at most 3 messages over all operations, this has 4.",
    )
    reply = await transact(client, settle("ack", "1.1.0", "1.1.1"), settle("nack", "1.1.2"))
    assert reply.status == 413
    assert client.shard.applied == []
