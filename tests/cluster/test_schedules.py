"""A schedule ticks on while leaders are killed, and while nobody leads: each tick is done once, none is left out."""

from __future__ import annotations

import time
from typing import Any

import pytest

from raftq.node.local_cluster import LocalCluster
from tests.cluster.client import ask

pytestmark = pytest.mark.cluster

INTERVAL_MS = 200


def attributes(cluster: LocalCluster, node: str) -> list[dict[str, Any]]:
    """Of all messages, in the order of the queue."""
    found: list[dict[str, Any]] = []
    url = f"{cluster.url(node)}/v1/queues/jobs/messages?limit=500"
    cursor: str | None = ""
    while cursor is not None:
        page = ask("GET", url + (f"&cursor={cursor}" if cursor else "")).json()
        found += [message["attributes"] for message in page["messages"]]
        cursor = page["cursor"]
    return found


def test_each_tick_is_done_once_while_leaders_are_killed(cluster: LocalCluster) -> None:
    """One leader after the other, and then all nodes at once. No tick is a minute late, so none is missed."""
    leader = cluster.wait_ready()
    schedule = "/v1/schedules/often"
    given: dict[str, Any] = {"interval_seconds": INTERVAL_MS / 1000, "queue": "jobs", "message": {"body": "tick"}}
    first_ms = ask("PUT", cluster.url(leader) + schedule, given).json()["next_at_ms"]
    for count in (1, 1, 3):
        time.sleep(1.0)
        leader = cluster.wait_ready()
        killed = [leader] if count == 1 else list(cluster.running)
        for node in killed:
            cluster.kill(node)
        time.sleep(1.0)
        for node in killed:
            cluster.start(node)
    time.sleep(1.0)
    leader = cluster.wait_ready()
    state = ask("PUT", cluster.url(leader) + schedule, given | {"paused": True}).json()
    found = attributes(cluster, leader)
    count = len(found)
    assert count > 15
    assert [one["tick"] for one in found] == list(range(1, count + 1))
    assert [one["tick_at_ms"] for one in found] == [first_ms + INTERVAL_MS * at for at in range(count)]
    assert (state["ticks"], state["skipped"], state["failed"]) == (count, 0, 0)
    assert state["last_at_ms"] == found[-1]["tick_at_ms"]
