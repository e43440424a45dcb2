"""Cluster time, as the leader writes it into entries.

Lease time is the sum of what leaders measured on their monotonic clocks while they led: a jump of any wall clock
neither ends nor lengthens a lease, and time without a leader does not count. Wall time is the median of a quorum's
clocks, and never goes back. Invariant: both only grow from entry to entry, across leaders, because a new leader begins
with the clocks of the last entry in its log, or with a later lease time that the last leader told it.
"""

from __future__ import annotations

from collections.abc import Callable

from raftq.storage.machine.entries import Clocks

#: A node whose clock is further off the cluster's median does not lead.
OFFSET_MS_MAX = 1000

#: An answer that took longer says too little about a clock, unless nothing better came for a while.
_ROUND_TRIP_MAX = 0.1
_SAMPLE_AGE_MAX = 5.0
#: What leaders say keeps a node from leading once it was heard for so long: what was held up arrives all at once.
_HEARD_SECONDS = 1.0


class ClusterClock:
    """`monotonic` and `wall` give seconds."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._base = Clocks(0, 0)
        self._since = 0.0
        self._last = Clocks(0, 0)
        #: None unless this node leads: what it measured before it did, or since, is nobody's time.
        self._quorum: int | None = None
        #: Lease time as the last leader told it, and when this node's clock was last compared with others'.
        self._told_lease_ms = 0
        self._compared = 0.0
        #: Leaders were heard with no long silence from then, until then.
        self._heard = (0.0, float("-inf"))
        #: The quorum's median less our monotonic clock, as leaders told it: the nearest of each half of a while, by the
        #: half's number. The last two count.
        self._told: dict[int, float] = {}
        #: Follower -> (its wall clock less our monotonic one in milliseconds, when that was measured). Not against our
        #: wall clock: a jump of that one must not move the others'.
        self._found: dict[str, tuple[float, float]] = {}
        #: Milliseconds that this node's clock is ahead of the cluster's; None before it is known.
        self.offset_ms: float | None = None

    def lead(self, last: Clocks, quorum: int) -> None:
        """Begin to lead after an entry of the clocks `last`; nothing is told before `quorum` clocks are known. Lease
        time goes on from what the last leader told, else leaders that follow each other fast would never end one."""
        self._base = self._last = Clocks(max(last.lease_ms, self._told_lease_ms), last.wall_ms)
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

    def follow(self, wall_ms: int, lease_ms: int) -> None:
        """Follower: the leader says that the quorum's median is `wall_ms` (0: it does not know yet), and lease time. It
        may have said so long ago: of the last while that counts which was the nearest to this node's clock."""
        self._quorum = None
        if wall_ms:
            now = self._monotonic()
            since, last = self._heard
            self._heard = (since if now - last <= _SAMPLE_AGE_MAX else now, now)
            self._compared = now
            own = (self._wall() - now) * 1000
            told = wall_ms - now * 1000
            half = int(now / (_SAMPLE_AGE_MAX / 2))
            fresh = {number: known for number, known in self._told.items() if number >= half - 1}
            self._told = fresh | {half: min(told, fresh.get(half, told), key=lambda known: abs(own - known))}
            self.offset_ms = min((own - known for known in self._told.values()), key=abs)
            self._told_lease_ms = max(self._told_lease_ms, lease_ms)

    def now(self) -> Clocks | None:
        """Leader: the clocks for an entry proposed now; None before a quorum's clocks are known."""
        if not self._knows_quorum():
            return None
        monotonic = self._monotonic()
        own = self._wall() * 1000 - monotonic * 1000
        median = self._median(own)
        self.offset_ms = own - median
        self._compared = monotonic
        lease_ms = self._base.lease_ms + int((monotonic - self._since) * 1000)
        wall_ms = int(monotonic * 1000 + median)
        self._last = Clocks(max(self._last.lease_ms, lease_ms), max(self._last.wall_ms, wall_ms))
        return self._last

    def _knows_quorum(self) -> bool:
        return self._quorum is not None and len(self._found) + 1 >= self._quorum

    def _median(self, own: float) -> float:
        """Of an even number the lower: a clock that is behind delays, one that is ahead ends things early for good."""
        found = sorted([own, *(found for found, _ in self._found.values())])
        return found[(len(found) - 1) // 2]

    def median_ms(self) -> int:
        """Leader: the quorum's clock, which the time of entries may be ahead of; 0 before it is known."""
        if not self._knows_quorum() or self.offset_ms is None:
            return 0
        return int(self._wall() * 1000 - self.offset_ms)

    def about_ms(self) -> int:
        """The quorum's clock as far as this node knows, leader or not; its own before they were compared."""
        return int(self._wall() * 1000 - (self.offset_ms or 0.0))

    def near(self, node: str) -> bool:
        """Leader: the clock of `node` is known, and not too far off to lead."""
        if node not in self._found:
            return False
        offset_ms = self._found[node][0] + self._monotonic() * 1000 - self.median_ms()
        return abs(offset_ms) <= OFFSET_MS_MAX

    @property
    def far_off(self) -> bool:
        """For as long as the comparison is fresh: without a leader to compare with, any node may become one. Who leads
        has measured for itself."""
        if self.offset_ms is None or self._monotonic() - self._compared > _SAMPLE_AGE_MAX:
            return False
        if self._quorum is None and self._heard[1] - self._heard[0] < _HEARD_SECONDS:
            return False
        return abs(self.offset_ms) > OFFSET_MS_MAX
