"""What a node adds to `/metrics`: its disk, its snapshots, its leaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from raftq.api.ports import Measure

if TYPE_CHECKING:
    from raftq.node.node import Node


class Measured(NamedTuple):
    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: Callable[[Node], float]


def _measured() -> Iterator[Measured]:
    text = "Free disk of the data folder."
    yield Measured("raftq_disk_free_bytes", "gauge", text, lambda node: node.environment.free_bytes())
    text = "Disk that the data takes."
    yield Measured("raftq_disk_used_bytes", "gauge", text, lambda node: node.environment.used_bytes())
    text = "With less free disk on any node, enqueues are refused."
    yield Measured("raftq_disk_reserve_bytes", "gauge", text, lambda node: node.config.disk_reserve_bytes)
    text = "Snapshots that took the place of this node's data."
    yield Measured("raftq_snapshots_installed_total", "counter", text, lambda node: node.shard.snapshots_installed)
    text = "Bytes of snapshots sent to other nodes."
    yield Measured("raftq_snapshot_sent_bytes_total", "counter", text, lambda node: node.shard.snapshot_bytes_sent)
    text = "How often this node has come to know a new leader."
    yield Measured("raftq_leaders_met_total", "counter", text, lambda node: node.leaders_met)


MEASURES = tuple(_measured())


def measures(node: Node) -> Iterator[Measure]:
    for name, kind, text, value in MEASURES:
        yield Measure(name, text, kind, value(node))
