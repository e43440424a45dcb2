from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raftq.replication.shard import NotLeader
from raftq.storage.machine import commands
from tests.api.conftest import Client

LEASE = "/v1/queues/jobs/lease"


def proposed(client: Client, kind: type[Any]) -> list[Any]:
    return [command for command in client.shard.applied if isinstance(command, kind)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_an_empty_lease_is_read_and_not_logged(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    assert await client.lease(max=10) == []
    assert proposed(client, commands.Lease) == []


async def test_lease_of_an_unknown_queue_is_404(client: Client) -> None:
    for given in ({}, {"wait_seconds": 5}, {"request_id": "r"}):
        assert (await client("POST", LEASE, given)).status == 404


async def test_a_lease_repeated_by_its_request_id_is_the_same(client: Client) -> None:
    await client.enqueue("a", "b", "c")
    first = await client.lease(max=2, request_id="r")
    assert await client.lease(max=2, request_id="r") == first
    await client("POST", "/v1/queues/jobs/ack", {"receipts": [first[0]["receipt"]]})
    assert await client.lease(max=2, request_id="r") == first[1:], "what was acked meanwhile is left out"


async def test_ack_nack_release_extend_answer_for_each_receipt(client: Client) -> None:
    await client.enqueue(*"abcd")
    one, two = await client.lease(max=2), await client.lease(max=2)
    receipts = [one[1]["receipt"], two[0]["receipt"], one[0]["receipt"], one[1]["receipt"], "1.999.0", "9.1.0"]
    for verb in ("extend", "ack", "nack", "release", "extend"):
        reply = await client("POST", f"/v1/queues/jobs/{verb}", {"receipts": receipts})
        # A repeated ack is done still; what was acked cannot be nacked, released or extended.
        expected = ["gone"] * 4 if proposed(client, commands.Nack) else ["done"] * 4
        assert [result["receipt"] for result in reply.json["results"]] == receipts
        assert [result["status"] for result in reply.json["results"]] == [*expected, "gone", "gone"], verb


async def test_nack_counts_a_failure_and_delays(client: Client) -> None:
    await client.enqueue("a")
    [message] = await client.lease()
    given = {"receipts": [message["receipt"]], "delay_seconds": 1.5}
    assert (await client("POST", "/v1/queues/jobs/nack", given)).json["results"][0]["status"] == "done"
    assert await client.lease() == []
    client.shard.later(2)
    [again] = await client.lease()
    assert (again["id"], again["deliveries"], again["failures"]) == (message["id"], 2, 1)


async def test_extend_states_the_new_deadline_in_both_encodings(client: Client) -> None:
    await client.enqueue("a")
    [message] = await client.lease(lease_seconds=1)
    given = {"receipts": [message["receipt"]], "lease_seconds": 100}
    deadline_ms = client.shard.clock_ms + 100_000
    assert (await client("POST", "/v1/queues/jobs/extend", given)).json["deadline_ms"] == deadline_ms
    reply = await client("POST", "/v1/queues/jobs/extend", given, headers={"Accept": "application/msgpack"})
    assert reply.msgpack == {
        "results": [{"receipt": message["receipt"], "status": "done"}],
        "deadline_ms": deadline_ms,
    }


async def test_a_request_id_of_other_receipts_is_a_conflict(client: Client) -> None:
    await client.enqueue(*"abc")
    [a, b, c] = [message["receipt"] for message in await client.lease(max=3)]
    first = await client("POST", "/v1/queues/jobs/nack", {"receipts": [a], "request_id": "r"})
    again = await client("POST", "/v1/queues/jobs/nack", {"receipts": [a], "request_id": "r"})
    assert first.json == again.json
    assert first.json["results"][0]["status"] == "done"
    other = await client("POST", "/v1/queues/jobs/nack", {"receipts": [b, c], "request_id": "r"})
    assert other.status == 409


@pytest.mark.parametrize(
    ("verb", "given", "field"),
    [
        ("ack", {}, "request"),
        ("ack", {"receipts": []}, "receipts"),
        ("ack", {"receipts": ["1.1.0"], "delay_seconds": 1}, "delay_seconds"),
        ("ack", {"receipts": ["1.1.0", 5]}, "receipts[1]"),
        ("ack", {"receipts": ["1.1.0", "2.1.0"], "request_id": "r"}, "receipts"),
        ("nack", {"receipts": ["1.1.0"], "delay_seconds": -1}, "delay_seconds"),
        ("extend", {"receipts": ["1.1.0"], "lease_seconds": 0}, "lease_seconds"),
        ("lease", {"max": 0}, "max"),
        ("lease", {"max": 1001}, "max"),
        ("lease", {"wait_seconds": 61}, "wait_seconds"),
        ("lease", {"wait_seconds": -1}, "wait_seconds"),
        ("lease", {"lease_seconds": 43201}, "lease_seconds"),
        ("lease", {"groups": []}, "groups"),
        ("lease", {"request_id": ""}, "request_id"),
    ],
)
async def test_what_is_refused_says_which_field(client: Client, verb: str, given: Any, field: str) -> None:
    reply = await client("POST", f"/v1/queues/jobs/{verb}", given)
    assert (reply.status, reply.json["field"]) == (422, field)


@pytest.mark.parametrize(
    "receipt",
    [
        *("", "1", "1.1", "1.1.1.1", "1.1.", ".1.1", "01.1.1", "1.1.01", "1.1.-1", "1. 1.1", "1.1_1.1", "1.1.1000"),
        *("1.1.٣", "é", f"1.{2**63}.0", "9" * 5000 + ".1.1", "1.1.1\n", '1.1.1"'),
    ],
)
async def test_a_malformed_receipt_is_named(client: Client, receipt: str) -> None:
    reply = await client("POST", "/v1/queues/jobs/ack", {"receipts": ["1.1.0", receipt]})
    assert (reply.status, reply.json["field"]) == (422, "receipts[1]")


async def test_too_many_receipts_are_refused(client: Client) -> None:
    reply = await client("POST", "/v1/queues/jobs/ack", {"receipts": ["1.1.0"] * 1001})
    assert reply.status == 413


async def test_a_waiting_lease_is_woken_by_the_enqueue(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    polling = asyncio.ensure_future(client.lease(wait_seconds=30))
    await until(client.node.api.waiters.waiting)
    await client.enqueue("a")
    assert [m["body"] for m in await polling] == ["a"]


async def test_waiters_are_served_in_the_order_they_came(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    waiters, polls = client.node.api.waiters, []
    for count in range(5):
        polls.append(asyncio.ensure_future(client.lease(wait_seconds=30)))
        await until(lambda count=count: waiters.waiting() == count + 1)
    await client.enqueue("a", "b")
    assert [(await poll)[0]["body"] for poll in polls[:2]] == ["a", "b"]
    assert waiters.waiting() == 3
    assert len(proposed(client, commands.Lease)) == 2, "none was woken in vain"
    for body in "cde":
        await client.enqueue(body)
    assert [(await poll)[0]["body"] for poll in polls[2:]] == ["c", "d", "e"]


async def test_what_a_waiter_leaves_goes_to_the_next(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    polls = []
    for count in range(2):
        polls.append(asyncio.ensure_future(client.lease(wait_seconds=30, max=2)))
        await until(lambda count=count: client.node.api.waiters.waiting() == count + 1)
    await client.enqueue("a", "b", "c")
    assert [[m["body"] for m in await poll] for poll in polls] == [["a", "b"], ["c"]]


async def test_a_waiter_that_found_nothing_waits_on(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    polling = asyncio.ensure_future(client.lease(wait_seconds=30))
    await until(client.node.api.waiters.waiting)
    client.node.api.waiters.wake_all()
    await until(client.node.api.waiters.waiting)
    assert not polling.done()
    await client.enqueue("a")
    assert len(await polling) == 1


async def test_a_wait_that_ends_is_an_empty_answer(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    assert await client.lease(wait_seconds=0.05) == []
    assert proposed(client, commands.Lease) == []


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(client: Client) -> None:
    await client.enqueue("a")
    await client("PATCH", "/v1/queues/jobs", {"paused": True})
    polling = asyncio.ensure_future(client.lease(wait_seconds=30))
    await until(client.node.api.waiters.waiting)
    await client("PATCH", "/v1/queues/jobs", {"paused": False})
    assert len(await polling) == 1


async def test_a_new_leader_is_where_waiters_are_sent(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    polling = asyncio.ensure_future(client("POST", LEASE, {"wait_seconds": 30}))
    await until(client.node.api.waiters.waiting)
    client.node.follow(None)
    await until(client.node.api.waiters.waiting)
    client.node.follow("http://127.0.0.1:1")
    reply = await polling
    assert (reply.status, reply.headers["Location"]) == (307, f"http://127.0.0.1:1{LEASE}")


async def test_waiters_of_a_stopping_node_are_told(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    polling = asyncio.ensure_future(client("POST", LEASE, {"wait_seconds": 30}))
    await until(client.node.api.waiters.waiting)
    client.node.stopping = True
    assert await client.node.api.drain(5)
    reply = await polling
    assert (reply.status, reply.json["applied"], reply.headers["Connection"]) == (503, "no", "close")


async def test_a_wait_that_ends_without_a_leader_is_503(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    polling = asyncio.ensure_future(client("POST", LEASE, {"wait_seconds": 0.1}))
    await until(client.node.api.waiters.waiting)
    client.node.follow(None)
    assert (await polling).status == 503


class Raw:
    """A connection whose end is under control."""

    def __init__(self, client: Client) -> None:
        self.port, self.api = client.node.port, client.node.api

    async def send(self, path: str, given: Any) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = msgspec.json.encode(given)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.writer.write(head.encode() + data)
        await self.writer.drain()

    async def vanish(self) -> None:
        """Close the connection, and return when the node has noticed."""
        lost, noticed = self.api.connection_lost, asyncio.Event()

        def connection_lost(connection: Any) -> None:
            lost(connection)
            noticed.set()

        self.api.connection_lost = connection_lost  # type: ignore[method-assign]
        self.writer.close()
        await noticed.wait()


async def test_a_client_that_left_its_wait_leases_nothing(client: Client) -> None:
    await client("PUT", "/v1/queues/jobs", {})
    raw = Raw(client)
    await raw.send(LEASE, {"wait_seconds": 30})
    await until(client.node.api.waiters.waiting)
    await raw.vanish()
    await until(lambda: not client.node.api.waiters.waiting())
    await client.enqueue("a")
    assert proposed(client, commands.Lease) == []


async def test_a_lease_granted_to_a_client_that_has_gone_is_released(client: Client) -> None:
    await client.enqueue("a", "b")
    client.shard.gate = asyncio.Event()
    raw = Raw(client)
    await raw.send(LEASE, {"max": 2})
    await until(lambda: client.node.api.in_flight)
    await raw.vanish()
    client.shard.gate.set()
    await until(lambda: proposed(client, commands.Release))
    assert [(m["body"], m["failures"]) for m in await client.lease(max=2)] == [("a", 0), ("b", 0)]


async def test_a_lease_with_a_request_id_waits_for_its_client_to_come_back(client: Client) -> None:
    await client.enqueue("a")
    client.shard.gate = asyncio.Event()
    raw = Raw(client)
    await raw.send(LEASE, {"request_id": "r"})
    await until(lambda: client.node.api.in_flight)
    await raw.vanish()
    client.shard.gate.set()
    await until(lambda: not client.node.api.in_flight)
    assert proposed(client, commands.Release) == []
    assert [m["body"] for m in await client.lease(request_id="r")] == ["a"]


async def test_a_leader_deposed_under_a_lease_sends_it_on(client: Client) -> None:
    await client.enqueue("a")
    client.shard.refuse = NotLeader("n2")
    client.node.url_of_leader = "http://127.0.0.1:1"
    assert (await client("POST", LEASE, {})).status == 307
