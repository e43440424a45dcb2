"""Requests to a cluster of processes, redirects followed."""

from __future__ import annotations

import msgspec

from raftq.node import probe
from raftq.node.local_cluster import LocalCluster
from raftq.node.probe import Answer

SECONDS = 10.0


def ask(method: str, url: str, given: object = None) -> Answer:
    """Raises OSError when no answer comes."""
    body = None if given is None else msgspec.json.encode(given).decode()
    answer = probe.ask(method, url, body, seconds=SECONDS)
    return answer if answer.location is None else ask(method, answer.location, given)


def enqueue(cluster: LocalCluster, node: str, body: object) -> Answer:
    return ask("POST", f"{cluster.url(node)}/v1/queues/jobs/messages", {"body": body})


def drain(cluster: LocalCluster, node: str) -> list[object]:
    """The bodies of all messages that are ready, leased and acked."""
    url = f"{cluster.url(node)}/v1/queues/jobs"
    found: list[object] = []
    while messages := ask("POST", f"{url}/lease", {"max": 1000}).json()["messages"]:
        found += [message["body"] for message in messages]
        receipts = {"receipts": [message["receipt"] for message in messages]}
        results = ask("POST", f"{url}/ack", receipts).json()["results"]
        assert all(result["status"] == "done" for result in results)
    return found
