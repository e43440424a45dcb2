"""Cluster time, as the leader writes it into entries.

Lease time is the sum of what leaders measured on their monotonic clocks while they led: a jump of any wall clock
neither ends nor lengthens a lease, and time without a leader does not count. Wall time is the median of a quorum's
clocks, and never goes back. Invariant: both only grow from entry to entry, across leaders, because a new leader begins
with the clocks of the last entry in its log.
"""

from __future__ import annotations

from collections.abc import Callable

from raftq.storage.machine.entries import Clocks

#: A node whose clock is further off the cluster's median does not lead.
OFFSET_MS_MAX = 1000

#: An answer that took longer says too little about a clock, unless nothing better came for a while.
_ROUND_TRIP_MAX = 0.1
_SAMPLE_AGE_MAX = 5.0


class ClusterClock:
    """`monotonic` and `wall` give seconds."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._base = Clocks(0, 0)
        self._since = 0.0
        self._last = Clocks(0, 0)
        self._quorum = 1
        #: Follower -> (its wall clock less our monotonic one in milliseconds, when that was measured). Not against our
        #: wall clock: a jump of that one must not move the others'.
        self._found: dict[str, tuple[float, float]] = {}
        #: Milliseconds that this node's clock is ahead of the cluster's; None before it is known.
        self.offset_ms: float | None = None

    def lead(self, last: Clocks, quorum: int) -> None:
        """Begin to lead after an entry of the clocks `last`; nothing is told before `quorum` clocks are known."""
        self._base = self._last = last
        self._since = self._monotonic()
        self._quorum = quorum
        self._found.clear()
        self.offset_ms = 0.0 if quorum == 1 else None

    def own_wall_ms(self) -> int:
        return int(self._wall() * 1000)

    def answered(self, node: str, wall_ms: int, sent: float) -> None:
        """Leader: `node` said `wall_ms` in its answer to what was sent at the monotonic time `sent`."""
        now = self._monotonic()
        trip = now - sent
        known = self._found.get(node)
        if trip > _ROUND_TRIP_MAX and known is not None and now - known[1] < _SAMPLE_AGE_MAX:
            return
        self._found[node] = (wall_ms - (sent + trip / 2) * 1000, now)

    def follow(self, wall_ms: int) -> None:
        """Follower: the leader says that cluster time is `wall_ms` (0: it does not know yet)."""
        if wall_ms:
            self.offset_ms = self._wall() * 1000 - wall_ms

    def now(self) -> Clocks | None:
        """Leader: the clocks for an entry proposed now; None before a quorum's clocks are known."""
        if len(self._found) + 1 < self._quorum:
            return None
        monotonic = self._monotonic()
        own = self._wall() * 1000 - monotonic * 1000
        median = self._median(own)
        self.offset_ms = own - median
        lease_ms = self._base.lease_ms + int((monotonic - self._since) * 1000)
        wall_ms = int(monotonic * 1000 + median)
        self._last = Clocks(max(self._last.lease_ms, lease_ms), max(self._last.wall_ms, wall_ms))
        return self._last

    def _median(self, own: float) -> float:
        """Of an even number the lower: a clock that is behind delays, one that is ahead ends things early for good."""
        found = sorted([own, *(found for found, _ in self._found.values())])
        return found[(len(found) - 1) // 2]

    @property
    def far_off(self) -> bool:
        return self.offset_ms is not None and abs(self.offset_ms) > OFFSET_MS_MAX
