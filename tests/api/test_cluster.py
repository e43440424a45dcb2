from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import pytest

from raftq.replication.shard import ChangeRefused, ChangeUnderway, NotLeader, OutcomeUnknown, ShardError
from tests.api.conftest import Client, Serve
from tests.api.test_leases import until

NODES = "/v1/cluster/nodes"
N4 = {"id": "n4", "peer_address": "h:1"}


async def test_the_cluster_as_this_node_sees_it(client: Client) -> None:
    reply = await client("GET", "/v1/cluster")
    assert reply.json == {
        "cluster_id": "c1",
        "leader": "n1",
        "term": 3,
        "nodes": [msgspec.to_builtins(peer) for peer in client.shard.status().peers],
    }
    client.node.follow(None)
    assert (await client("GET", "/v1/cluster")).json["leader"] is None


async def test_transfer(client: Client) -> None:
    assert (await client("POST", "/v1/cluster/leader")).json == {"leader": "n2"}
    assert (await client("POST", "/v1/cluster/leader", {"node": "n1"})).json == {"leader": "n1"}
    reply = await client("POST", "/v1/cluster/leader", {"node": "n9"})
    assert (reply.status, reply.json["field"]) == (422, "node")


async def test_a_transfer_to_a_node_that_does_not_vote_is_refused(client: Client) -> None:
    client.shard.refuse = ChangeRefused("n4 does not vote, so it cannot lead")
    reply = await client("POST", "/v1/cluster/leader")
    assert (reply.status, reply.json["applied"]) == (409, "no")
    assert "n4 does not vote" in reply.json["detail"]


async def test_a_node_is_added_as_a_learner_and_removed(client: Client) -> None:
    reply = await client("POST", NODES, N4 | {"replaces": "n2"})
    assert (reply.status, reply.json) == (
        202,
        {"index": 1, "node": {**N4, "role": "learner", "voter": False, "replaces": "n2"}},
    )
    [_, added] = (await client("GET", "/v1/cluster")).json["nodes"]
    assert (added["id"], added["role"], added["voter"], added["peer_address"]) == ("n4", "learner", False, "h:1")
    reply = await client("DELETE", f"{NODES}/n4")
    assert (reply.status, reply.json) == (200, {"index": 2})
    assert client.shard.asked == [("add", "n4", "h:1", "n2"), ("remove", "n4")]
    reply = await client("DELETE", f"{NODES}/n4")
    assert (reply.status, reply.json["type"].rpartition("/")[2]) == (404, "unknown-node")
    assert "there are n1" in reply.json["detail"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"id": "n 4"}, "id"),
        ({"id": ".."}, "id"),
        ({"id": ""}, "id"),
        ({"replaces": "a/b"}, "replaces"),
        ({"peer_address": "h"}, "peer_address"),
        ({"peer_address": "h:99999"}, "peer_address"),
        ({"peer_address": "h:"}, "peer_address"),
        ({"peer_address": "http://h:1"}, "peer_address"),
        ({"peer_address": "0.0.0.0:8701"}, "peer_address"),
        ({"peer_address": "[::]:8701"}, "peer_address"),
        ({"port": 1}, "port"),
    ],
)
async def test_what_names_no_node_is_refused(client: Client, given: dict[str, Any], field: str) -> None:
    reply = await client("POST", NODES, N4 | given)
    assert (reply.status, reply.json["field"], reply.json["applied"]) == (422, field, "no")
    assert client.shard.asked == []


@pytest.mark.parametrize(
    ("error", "status", "applied"),
    [
        (ChangeRefused("bring back n2 first"), 409, "no"),
        (ChangeUnderway("bring back n2 first"), 503, "no"),
        (OutcomeUnknown("bring back n2 first"), 503, "unknown"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_change_that_is_not_made_says_why(
    client: Client, method: str, error: ShardError, status: int, applied: str
) -> None:
    client.shard.refuse = error
    reply = await (client("POST", NODES, N4) if method == "POST" else client("DELETE", f"{NODES}/n1"))
    assert (reply.status, reply.json["applied"], "Retry-After" in reply.headers) == (status, applied, status == 503)
    assert "bring back n2 first" in reply.json["detail"]


async def test_changes_are_sent_on_to_the_leader(serve: Serve) -> None:
    follower, leader = await serve(), await serve()
    follower.node.follow(leader.node.url)
    for method, path in (("POST", NODES), ("DELETE", f"{NODES}/n1")):
        reply = await follower(method, path, N4)
        assert (reply.status, reply.headers["Location"]) == (307, leader.node.url + path)
    reply = await follower("POST", NODES, N4, headers={"Raftq-Forward": "proxy"})
    assert (reply.status, leader.shard.asked) == (202, [("add", "n4", "h:1", None)])


async def test_a_leader_that_is_removed_sends_the_client_to_the_one_that_took_over(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await serve(), await serve()

    async def remove(_node: str) -> int:
        old.node.follow(new.node.url)
        raise NotLeader("n2")

    monkeypatch.setattr(old.shard, "remove", remove)
    reply = await old("DELETE", f"{NODES}/n1")
    assert (reply.status, reply.headers["Location"]) == (307, f"{new.node.url}{NODES}/n1")


async def asking_for_a_backup(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which one was asked for, and nothing is read yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.node.port)
    writer.write(b"GET /v1/cluster/snapshot HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    return reader, writer


async def test_a_backup_is_streamed_by_any_node(client: Client) -> None:
    client.node.backup_body = os.urandom(1_234_567)
    await client.enqueue("a")
    client.node.follow(None)
    for _ in range(2):  # the connection is of use afterwards
        reply = await client("GET", "/v1/cluster/snapshot")
        assert (reply.status, reply.headers["Raftq-Index"], reply.headers["Content-Length"]) == (200, "1", "1234567")
        assert reply.headers["Content-Type"] == "application/octet-stream"
        assert reply.headers["Content-Disposition"] == 'attachment; filename="c1-1.snapshot"'
        assert reply.data == client.node.backup_body
        assert client.node.backups == 0


async def test_one_backup_at_a_time_and_none_outlives_its_client(client: Client) -> None:
    client.node.backup_body = bytes(50_000_000)  # more than sockets take in
    _, writer = await asking_for_a_backup(client)
    await until(lambda: client.node.backups == 1)
    reply = await client("GET", "/v1/cluster/snapshot")
    assert (reply.status, reply.json["applied"]) == (409, "no")
    assert reply.json["detail"] == "there is one already: wait."
    assert (await client("GET", "/v1/cluster")).status == 200  # nothing waits for it
    writer.close()
    await until(lambda: client.node.backups == 0)


async def test_a_backup_that_breaks_off_is_never_taken_for_a_whole_one(client: Client) -> None:
    client.node.backup_body, client.node.backup_fault = bytes(300_000), OSError("the disk is gone")
    reader, writer = await asking_for_a_backup(client)
    async with asyncio.timeout(10):
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    assert b"Content-Length: 300000" in head
    assert body == bytes(100_000)  # and the connection is closed
    assert client.node.backups == 0


async def test_digest(client: Client) -> None:
    reply = await client("GET", "/v1/cluster/digest")
    assert reply.json == {"index": 0, "nodes": {"n1": "abc", "n2": None}}


async def test_health_and_readiness(client: Client) -> None:
    assert (await client("GET", "/readyz")).status == 200
    client.node.follow(None)
    reply = await client("GET", "/readyz")
    assert (reply.status, "no leader" in reply.json["detail"]) == (503, True)
    client.node.stopping = True
    assert (await client("GET", "/readyz")).status == 503
    assert (await client("GET", "/healthz")).status == 200
    head = await client("HEAD", "/healthz")
    assert (head.status, head.data) == (200, b"")


async def test_the_root_points_at_the_documents(client: Client) -> None:
    reply = await client("GET", "/")
    assert (reply.status, b"http://HOST/docs" in reply.data) == (200, True)
