"""What a node adds to `/metrics`: its commits, its disk, its snapshots, its leaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raftq.api.ports import Measure

if TYPE_CHECKING:
    from raftq.node.node import Node


def measures(node: Node) -> Iterator[Measure]:
    writer, environment = node.shard.writer, node.environment
    yield Measure("raftq_commits", "Transactions made durable by this node.", "counter", writer.commits)
    yield Measure("raftq_commit_seconds", "Time that they took.", "counter", writer.seconds)
    yield Measure("raftq_disk_free_bytes", "Free disk of the data folder.", "gauge", environment.free_bytes())
    yield Measure("raftq_disk_used_bytes", "Disk that the data takes.", "gauge", environment.used_bytes())
    shard = node.shard
    text = "Snapshots that took the place of this node's data."
    yield Measure("raftq_snapshots_installed", text, "counter", shard.snapshots_installed)
    text = "Bytes of snapshots sent to other nodes."
    yield Measure("raftq_snapshot_sent_bytes", text, "counter", shard.snapshot_bytes_sent)
    yield Measure(
        "raftq_leaders_met", "How often this node has come to know a new leader.", "counter", node.leaders_met
    )
