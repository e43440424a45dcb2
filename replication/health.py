"""The clocks and disks of the nodes, as they tell each other in appends and answers, and what to complain of.

Invariant: while any voter that is connected says that its disk is low, or this node's is, nothing is enqueued.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from raftq.replication.clock import ClusterClock
from raftq.replication.engine import Message, SyncObj
from raftq.replication.shard import DiskReserve
from raftq.replication.shard_config import ShardConfig
from raftq.storage.environment import Environment

_LOOK_SECONDS = 1.0
_COMPLAIN_SECONDS = 60.0

_log = structlog.get_logger("raftq.shard")


class Health:
    def __init__(
        self, config: ShardConfig, environment: Environment, clock: ClusterClock, monotonic: Callable[[], float]
    ) -> None:
        self._config, self._environment, self._clock, self._monotonic = config, environment, clock, monotonic
        self._low_disk: dict[str, bool] = {}
        self._looked = float("-inf")
        self._complained = float("-inf")

    def check_disks(self) -> None:
        """Raises DiskReserve."""
        if low := self.low_disk():
            raise DiskReserve(f"the free disk of {', '.join(low)} is below its reserve")

    def low_disk(self) -> list[str]:
        """The nodes whose free disk is below its reserve."""
        return sorted(node for node, is_low in self._low_disk.items() if is_low)

    def of_append(self, leads: bool) -> Message:
        clocks = self._clock.now() if leads else None
        return {"wall": self._clock.median_ms(), "lease": clocks.lease_ms if clocks else 0}

    def of_answer(self) -> Message:
        return {"wall": self._clock.own_wall_ms(), "low": self._low_disk.get(self._config.node_id, False)}

    def answered(self, node: str, message: Message, sent: float | None) -> None:
        if sent is not None:
            self._clock.answered(node, message["wall"], sent)
        self._low_disk[node] = message["low"]

    def gone(self, node: str) -> None:
        self._low_disk.pop(node, None)

    def due(self) -> bool:
        return self._monotonic() - self._looked >= _LOOK_SECONDS

    def look(self, log_bytes: int, engine: SyncObj) -> None:
        """At the own disk and clock, and the log, which is long when a member lags; complain now and then."""
        self._looked = self._monotonic()
        own_low = self._environment.free_bytes() < self._config.disk_reserve_bytes
        self._low_disk[self._config.node_id] = own_low
        complaints = []
        if self._clock.far_off:
            offset = self._clock.offset_ms
            complaints.append(f"the clock of this node is {offset:.0f} ms off the cluster's: it does not lead. Set it")
        if own_low:
            complaints.append("free disk is below the reserve: the cluster refuses enqueues. Make room")
        if log_bytes > self._config.long_log_bytes:
            behind = min(engine.configuration.members, key=lambda node: engine.match_index(node) or 0)
            complaints.append(f"the log holds {log_bytes} bytes, since {behind} lags: bring it back")
        if complaints and self._looked - self._complained >= _COMPLAIN_SECONDS:
            self._complained = self._looked
            for complaint in complaints:
                _log.error(complaint)
