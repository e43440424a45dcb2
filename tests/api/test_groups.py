"""Message groups, as a client meets them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from raftq.storage.machine import commands
from tests.api.conftest import Client
from tests.api.test_leases import proposed, until

JOBS = "/v1/queues/jobs"


async def limited(client: Client, limit: int | None, method: str = "PUT") -> Any:
    return await client(method, JOBS, {"max_leased_per_group": limit})


async def put(client: Client, *names: str) -> None:
    """Of the group that the first letter names, "-" for none."""
    messages = [{"body": name} | ({} if name[0] == "-" else {"group": name[0]}) for name in names]
    assert (await client("POST", f"{JOBS}/messages", {"messages": messages})).status == 201


async def settle(client: Client, verb: str, *messages: Any, **fields: Any) -> None:
    reply = await client("POST", f"{JOBS}/{verb}", {"receipts": [one["receipt"] for one in messages]} | fields)
    assert {result["status"] for result in reply.json["results"]} == {"done"}


async def test_a_key_is_worked_at_in_order(client: Client) -> None:
    reply = await limited(client, 1)
    assert (reply.status, reply.json["max_leased_per_group"]) == (201, 1)
    await put(client, "a1", "-1", "a2", "b1")
    leased = await client.lease(max=9)
    assert [(one["body"], one["group"]) for one in leased] == [("a1", "a"), ("-1", None), ("b1", "b")]
    stats = (await client("GET", f"{JOBS}/stats")).json
    assert (stats["ready"], stats["leased"]) == (1, 3)
    [peeked] = (await client("GET", f"{JOBS}/messages")).json["messages"]
    assert (peeked["body"], peeked["group"], peeked["state"]) == ("a2", "a", "ready")
    await settle(client, "nack", leased[0], delay_seconds=5)
    assert await client.lease(max=9) == []
    client.shard.later(5)
    [again] = await client.lease(max=9)
    assert (again["body"], again["failures"]) == ("a1", 1)
    await settle(client, "ack", again)
    assert [one["body"] for one in await client.lease(max=9)] == ["a2"]


async def test_a_group_in_msgpack_and_on_a_key_of_many_bytes(client: Client) -> None:
    await limited(client, 1)
    headers = {"Content-Type": "application/msgpack"}
    key = "é" * 64
    data = msgspec.msgpack.encode({"messages": [{"body": b"\0", "group": key}, {"body": 2, "group": key}]})
    assert (await client("POST", f"{JOBS}/messages", data=data, headers=headers)).status == 201
    data = msgspec.msgpack.encode({"groups": [key], "max": 2})
    [one] = (await client("POST", f"{JOBS}/lease", data=data, headers=headers)).msgpack["messages"]
    assert (one["group"], one["body"]) == (key, b"\0")


async def test_some_keys_alone(client: Client) -> None:
    await limited(client, 2)
    await put(client, "a1", "b1", "-1", "a2", "a3")
    assert [one["body"] for one in await client.lease(max=9, groups=["a"])] == ["a1", "a2"]
    assert await client.lease(max=9, groups=["c", "a"]) == []
    assert [one["body"] for one in await client.lease(max=9)] == ["b1", "-1"]


@pytest.mark.parametrize("fields", [{}, {"wait_seconds": 1}, {"request_id": "r"}])
@pytest.mark.parametrize("full", [False, True])
async def test_keys_of_a_queue_without_a_limit_cannot_be_asked_for(client: Client, full: bool, fields: Any) -> None:
    await client("PUT", JOBS)
    if full:
        await put(client, "a1")
    reply = await client("POST", f"{JOBS}/lease", {"groups": ["a"]} | fields)
    assert (reply.status, reply.json["field"]) == (422, "groups")
    assert "max_leased_per_group" in reply.json["detail"]


@pytest.mark.parametrize(
    ("path", "given", "field"),
    [
        ("/messages", {"body": 1, "group": ""}, "group"),
        ("/messages", {"messages": [{"body": 1}, {"body": 1, "group": "é" * 65}]}, "messages[1].group"),
        ("/messages", {"messages": [{"body": 1}], "group": "a"}, "group"),
        ("/lease", {"groups": []}, "groups"),
        ("/lease", {"groups": ["a"] * 101}, "groups"),
        ("/lease", {"groups": ["a", ""]}, "groups[1]"),
        ("", {"max_leased_per_group": 0}, "max_leased_per_group"),
        ("", {"max_leased_per_group": 1_001}, "max_leased_per_group"),
    ],
)
async def test_what_is_refused(client: Client, path: str, given: Any, field: str) -> None:
    await limited(client, 1)
    reply = await client("POST" if path else "PATCH", JOBS + path, given)
    assert (reply.status, reply.json["field"]) == (422, field)


async def test_the_limit_is_set_while_the_queue_is_empty_and_changed_at_any_time(client: Client) -> None:
    await put(client, "a1", "a2", "a3")
    reply = await limited(client, 1, "PATCH")
    assert (reply.status, reply.json["applied"], reply.json["reason"]) == (409, "no", "not_empty")
    await client("POST", f"{JOBS}/purge", {})
    assert (await limited(client, 1, "PATCH")).status == 200
    await put(client, "a1", "a2", "a3")
    await client.lease()
    assert (await client("PATCH", JOBS, {"lease_seconds": 5})).json["max_leased_per_group"] == 1
    assert (await limited(client, 2, "PATCH")).json["max_leased_per_group"] == 2
    assert [one["body"] for one in await client.lease(max=9)] == ["a2"]
    assert (await limited(client, None, "PATCH")).status == 409


async def test_a_waiting_lease_is_woken_when_a_key_is_free(client: Client) -> None:
    await limited(client, 1)
    await put(client, "a1", "a2")
    [first] = await client.lease()
    polling = asyncio.ensure_future(client.lease(wait_seconds=30))
    await until(client.node.api.waiters.waiting)
    before = len(proposed(client, commands.Lease))
    await asyncio.sleep(0.05)
    assert len(proposed(client, commands.Lease)) == before, "nothing is asked for while all is blocked"
    await settle(client, "ack", first)
    assert [one["body"] for one in await polling] == ["a2"]


async def test_who_waits_for_a_key_is_woken_by_it_alone_and_holds_up_nobody(client: Client) -> None:
    await limited(client, 1)
    for_a = asyncio.ensure_future(client.lease(wait_seconds=30, groups=["a", "x"]))
    await until(client.node.api.waiters.waiting)
    for_any = asyncio.ensure_future(client.lease(wait_seconds=30))
    await until(lambda: client.node.api.waiters.waiting() == 2)
    await put(client, "b1")
    assert [one["body"] for one in await for_any] == ["b1"]
    await put(client, "-1")
    await asyncio.sleep(0.05)
    assert len(proposed(client, commands.Lease)) == 1
    assert client.node.api.waiters.waiting() == 1
    await put(client, "a1", "a2")
    assert [one["body"] for one in await for_a] == ["a1"]
    assert client.node.api.waiters.waiting() == 0


async def test_who_waits_for_a_key_may_leave(client: Client) -> None:
    await limited(client, 1)
    assert await client.lease(wait_seconds=0.05, groups=["a"]) == []
    polling = asyncio.ensure_future(client.lease(wait_seconds=30, groups=["a"]))
    await until(client.node.api.waiters.waiting)
    polling.cancel()
    await until(lambda: not client.node.api.waiters.waiting())
