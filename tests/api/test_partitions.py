from __future__ import annotations

import asyncio
from typing import Any
from zlib import crc32

import pytest

from tests.api.conftest import Client

QUEUE = "/v1/queues/jobs"
COUNT = 4
SETTINGS = {"partitions": COUNT, "lease_seconds": 5}


@pytest.fixture
async def four(client: Client) -> Client:
    reply = await client("PUT", QUEUE, SETTINGS)
    assert (reply.status, reply.json["partitions"], reply.json["name"]) == (201, COUNT, "jobs")
    return client


def of_group(group: str) -> int:
    return crc32(group.encode()) % COUNT


async def ready(client: Client) -> list[int]:
    found = [(await client("GET", f"{QUEUE}.{at}/stats")).json["ready"] for at in range(COUNT)]
    assert (await client("GET", f"{QUEUE}/stats")).json["ready"] == sum(found)
    return found


async def enqueue(client: Client, *groups: str | None) -> list[str]:
    messages = [{"body": at, "group": group} for at, group in enumerate(groups)]
    reply = await client("POST", f"{QUEUE}/messages", {"messages": messages})
    assert reply.status == 201, reply.json
    return [one["id"] for one in reply.json["messages"]]


async def test_settings_are_read_and_changed_of_all(four: Client) -> None:
    assert (await four("PUT", QUEUE, SETTINGS)).status == 200
    assert (await four("PUT", QUEUE, {"lease_seconds": 6})).json["partitions"] == COUNT
    changed = (await four("PATCH", QUEUE, {"max_messages": 9})).json
    assert (changed["lease_seconds"], changed["max_messages"], changed["partitions"]) == (6, 9, COUNT)
    assert (await four("GET", QUEUE)).json == changed
    for at in range(COUNT):
        found = (await four("GET", f"{QUEUE}.{at}")).json
        assert found == changed | {"name": f"jobs.{at}", "partitions": None}
    listed = (await four("GET", "/v1/queues")).json["queues"]
    assert [one["name"] for one in listed] == [f"jobs.{at}" for at in range(COUNT)]


async def test_their_number_is_fixed(four: Client) -> None:
    await four("PUT", "/v1/queues/plain")
    for method, path, given, reason in (
        ("PUT", QUEUE, {"partitions": 5}, "partitions_fixed"),
        ("PATCH", QUEUE, {"partitions": 1}, "partitions_fixed"),
        ("PUT", "/v1/queues/plain", {"partitions": 1}, "partitions_fixed"),
        ("PUT", f"{QUEUE}.1", {}, "partition"),
        ("DELETE", f"{QUEUE}.1", None, "partition"),
        ("POST", f"{QUEUE}/redrive", {}, "partitioned"),
        ("GET", f"{QUEUE}/redrive", None, "partitioned"),
        ("GET", f"{QUEUE}/messages", None, "partitioned"),
    ):
        reply = await four(method, path, given)
        assert (reply.status, reply.json["reason"]) == (409, reason), (method, path)
    assert (await four("PATCH", "/v1/queues/none", {"partitions": 2})).status == 404
    assert (await four("PUT", "/v1/queues/plain", {"partitions": None})).json["partitions"] is None


@pytest.mark.parametrize("count", [0, 65, 1.5, "2"])
async def test_a_number_that_is_none(client: Client, count: Any) -> None:
    reply = await client("PUT", QUEUE, {"partitions": count})
    assert (reply.status, reply.json["field"]) == (422, "partitions")
    reply = await client("PUT", f"/v1/queues/{'x' * 126}", {"partitions": 2})
    assert (reply.status, reply.json["field"]) == (422, "queue")


async def test_messages_go_by_group_or_by_turn(four: Client) -> None:
    ids = await enqueue(four, "a", "b", "c", "a")
    assert len(set(ids)) == 4
    expected = [[of_group(group) for group in "abca"].count(at) for at in range(COUNT)]
    assert await ready(four) == expected
    for _ in range(COUNT):
        await enqueue(four, None, None)
    assert await ready(four) == [count + 2 for count in expected]
    for at, one in enumerate(ids):
        assert (await four("GET", f"{QUEUE}/messages/{one}")).json["body"] == at
        assert (await four("DELETE", f"{QUEUE}/messages/{one}")).status == 204
        assert (await four("GET", f"{QUEUE}/messages/{one}")).status == 404
    assert await ready(four) == [2] * COUNT


async def test_the_name_gives_from_all_and_a_partition_its_own(four: Client) -> None:
    for _ in range(COUNT):
        await enqueue(four, None)
    [own] = await four.lease("jobs.2", max=9)
    others = await four.lease("jobs", max=2) + await four.lease("jobs", max=9)
    assert await four.lease("jobs", max=9) == []
    receipts = [one["receipt"] for one in (own, *others)]
    assert len({receipt.partition(".")[0] for receipt in receipts}) == COUNT
    for _ in range(2):
        reply = await four("POST", f"{QUEUE}/ack", {"receipts": receipts, "request_id": "r"})
        assert [one["status"] for one in reply.json["results"]] == ["done"] * COUNT
    reply = await four("POST", f"{QUEUE}/ack", {"receipts": [*receipts[1:], "99.1.0"], "request_id": "s"})
    assert [one["status"] for one in reply.json["results"]] == ["done"] * 3 + ["gone"]
    more = [f"{receipt[:-1]}1" for receipt in receipts]
    reply = await four("POST", f"{QUEUE}/ack", {"receipts": receipts + more, "request_id": "r"})
    assert reply.status == 409
    assert (await four("GET", f"{QUEUE}/stats")).json["totals"]["acked"] == COUNT


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
async def test_one_lease_takes_from_several_and_is_repeated_whole(four: Client, accept: str) -> None:
    for _ in range(2 * COUNT):
        await enqueue(four, None)
    found = []
    for _ in range(2):
        given = {"max": 5, "request_id": "r"}
        reply = await four("POST", f"{QUEUE}/lease", given, headers={"Accept": accept})
        found.append((reply.json if accept.endswith("json") else reply.msgpack)["messages"])
    assert found[0] == found[1]
    receipts = [one["receipt"] for one in found[0]]
    assert len(set(receipts)) == 5
    assert await ready(four) == [0, 0, 1, 2]
    assert len(await four.lease("jobs", max=9)) == 3
    reply = await four("POST", f"{QUEUE}/ack", {"receipts": receipts})
    assert [one["status"] for one in reply.json["results"]] == ["done"] * 5


async def test_a_lease_that_is_repeated_gives_nothing_that_came_since(four: Client) -> None:
    given = {"max": 5, "request_id": "r"}
    await enqueue(four, None)
    [first] = (await four("POST", f"{QUEUE}/lease", given)).json["messages"]
    for _ in range(COUNT):
        await enqueue(four, None)
    assert (await four("POST", f"{QUEUE}/lease", given)).json["messages"] == [first]
    await four("POST", f"{QUEUE}/ack", {"receipts": [first["receipt"]]})
    assert (await four("POST", f"{QUEUE}/lease", given)).json["messages"] == []
    assert await ready(four) == [1] * COUNT


async def test_who_waits_for_the_name_is_woken_by_each_partition(four: Client) -> None:
    waiting = [asyncio.ensure_future(four.lease("jobs", max=1, wait_seconds=30)) for _ in range(COUNT)]
    await asyncio.sleep(0.05)
    for _ in range(COUNT):
        await enqueue(four, None)
    async with asyncio.timeout(5):
        found = await asyncio.gather(*waiting)
    assert [len(one) for one in found] == [1] * COUNT


async def test_an_enqueue_is_in_all_partitions_or_in_none(four: Client) -> None:
    await four("PATCH", QUEUE, {"max_messages": 1})
    groups = ["a", "b", "c", "d", "e"]
    reply = await four("POST", f"{QUEUE}/messages", {"messages": [{"body": 1, "group": group} for group in groups]})
    assert (reply.status, reply.json["type"].rpartition("/")[2]) == (429, "queue-full")
    assert await ready(four) == [0] * COUNT


async def test_purge_pause_delete(four: Client) -> None:
    await enqueue(four, "a", "b", "c", "d")
    assert (await four("POST", f"{QUEUE}/pause")).json["paused"]
    assert await four.lease("jobs") == await four.lease(f"jobs.{of_group('a')}") == []
    assert (await four("POST", f"{QUEUE}/resume")).json["partitions"] == COUNT
    assert (await four("POST", f"{QUEUE}/purge")).json == {"messages": 4}
    await enqueue(four, "a", "b")
    assert (await four("DELETE", QUEUE)).json == {"messages": 2}
    assert (await four("GET", QUEUE)).status == (await four("GET", f"{QUEUE}.0")).status == 404


async def test_a_transaction_and_curl(four: Client) -> None:
    await enqueue(four, "a")
    [leased] = await four.lease("jobs")
    operations = [
        {"ack": {"queue": "jobs", "receipts": [leased["receipt"]]}},
        {"enqueue": {"queue": "jobs", "messages": [{"body": 1, "group": "a"}, {"body": 2, "group": "b"}]}},
    ]
    reply = await four("POST", "/v1/transactions", {"operations": operations})
    for at, one in enumerate(reply.json["operations"][1]["messages"]):
        assert (await four("GET", f"{QUEUE}/messages/{one['id']}")).json["body"] == at + 1
    await four("POST", f"{QUEUE}/purge")
    put = await four("POST", "/q/jobs", data=b"raw", headers={"Content-Type": "application/octet-stream"})
    assert (await four("GET", f"{QUEUE}/messages/{put.data.decode().strip()}")).status == 200
    taken = await four("GET", "/q/jobs?lease=5")
    assert taken.data == b"raw"
    assert (await four("POST", f"/q/jobs/ack/{taken.headers['Raftq-Receipt']}")).status == 200
