from __future__ import annotations

import msgspec

from tests.api.conftest import Client


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


async def test_metrics(client: Client) -> None:
    await client.enqueue("a")
    await client("GET", "/nowhere")
    client.node.stopping = True
    reply = await client("GET", "/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    lines = set(reply.data.decode().splitlines())
    assert {
        'raftq_role{node="n1",role="leader"} 1.0',
        'raftq_requests_total{method="POST",route="/v1/queues/{queue}/messages",status="201"} 1.0',
        'raftq_requests_total{method="",route="",status="404"} 1.0',
        'raftq_messages{state="ready"} 1.0',
        "raftq_commits_total 7.0",
        "raftq_requests_in_flight 1.0",
        "raftq_applied_index 1.0",
        "raftq_log_bytes 100.0",
    } <= lines


async def test_the_root_points_at_the_documents(client: Client) -> None:
    reply = await client("GET", "/")
    assert (reply.status, b"docs/api.md" in reply.data) == (200, True)
