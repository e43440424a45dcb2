"""The requests of tests/api/test_fuzz.py, at three nodes of a real cluster: it serves on, and they stay equal."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from raftq.node.local_cluster import LocalCluster
from raftq.node.waiting import wait_until
from tests.api.test_fuzz import requests
from tests.cluster.client import ask, enqueue
from tests.cluster.test_paused_leader import answered

pytestmark = pytest.mark.cluster


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=requests(), node=st.sampled_from(["n1", "n2", "n3"]))
def shoot(cluster: LocalCluster, data: bytes, node: str) -> None:
    head, _, body = data.partition(b"\r\n\r\n")
    # One that says more is to come than does is answered when the node's patience ends: tested there, too slow here.
    assume(b"Content-Length: %d\r\n" % (len(body) + 5) not in head + b"\r\n")
    address = urlsplit(cluster.url(node))
    assert address.hostname
    assert address.port
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(data)
    status, answer = answered(connection)
    assert 100 <= status < 600
    assert status != 500, answer


def test_a_cluster_serves_on_whatever_it_is_sent(cluster: LocalCluster) -> None:
    shoot(cluster)
    wait_until(lambda: enqueue(cluster, "n1", "after").status == 201, 20, "an acknowledgement")
    nodes = ask("GET", f"{cluster.url('n2')}/v1/cluster/digest").json()["nodes"]
    assert len(set(nodes.values())) == 1
    assert None not in nodes.values()
