"""A leader that stood still while the cluster went on serves nothing on its old authority."""

from __future__ import annotations

import signal
import socket
from urllib.parse import urlsplit

import msgspec
import pytest

from raftq.node.local_cluster import LocalCluster
from raftq.node.waiting import wait_until
from tests.cluster.client import ask, drain, enqueue

pytestmark = pytest.mark.cluster


def sent_to(url: str, method: str, path: str, given: object = None) -> socket.socket:
    """A request that waits in the socket of a process that does not run."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    body = b"" if given is None else msgspec.json.encode(given)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(head.encode() + body)
    return connection


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of what came back."""
    connection.settimeout(20)
    data = b""
    with connection:
        while part := connection.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def test_a_paused_leader_serves_no_stale_read_and_grants_no_lease(cluster: LocalCluster) -> None:
    """Requests reach it while it stands still: it must not answer them from what it knew."""
    old = cluster.wait_ready()
    assert enqueue(cluster, old, "one").status == 201
    cluster.signal(old, signal.SIGSTOP)
    others = [node for node in cluster.running if node != old]
    # Twelve rounds of reads and leases wait in its sockets while the others elect a leader and take the message.
    waiting = [
        sent_to(cluster.url(old), method, f"/v1/queues/jobs/{what}", given)
        for _ in range(12)
        for method, what, given in (("GET", "stats", None), ("POST", "lease", {"max": 1}))
    ]
    new = wait_until(lambda: leads(cluster, others), 20, "another leader")
    assert drain(cluster, new) == ["one"]
    assert enqueue(cluster, new, "two").status == 201
    cluster.signal(old, signal.SIGCONT)
    for status, body in map(answered, waiting):
        if status == 200:  # answered after it had caught up, and led again
            assert b'"one"' not in body
            assert b'"acked":0' not in body
        else:
            assert status in (307, 503), body
    assert drain(cluster, new) in (["two"], [])


def leads(cluster: LocalCluster, nodes: list[str]) -> str | None:
    leader = ask("GET", f"{cluster.url(nodes[0])}/v1/cluster").json()["leader"]
    return leader if leader in nodes else None
