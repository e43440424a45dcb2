"""How long each stage of the way through the log takes, counted as Prometheus reads it.

An observation is a bisection and two additions (some 0.3 us), made once an entry or once a commit, never for a message.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

#: Upper bounds of the buckets, in seconds; beyond the last there is one more.
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """Counts of observed seconds, by bucket: each value is in the first whose bound it does not exceed."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Stages:
    """Of one shard on this node."""

    __slots__ = ("applied", "committed", "lag", "latency", "peer_lags", "replicated", "waited")

    def __init__(self) -> None:
        #: Leader, once an entry: how long its first command waited to be put into it.
        self.waited = Histogram()
        #: Leader, once an entry: from being made until a majority has it durably.
        self.replicated = Histogram()
        #: The same from when its first command came.
        self.latency = Histogram()
        #: Once a transaction: from its begin until it is on this node's disk.
        self.committed = Histogram()
        #: Once a cycle that applied anything: all that it applied.
        self.applied = Histogram()
        #: Once a tick: how late it came, since the loop was busy.
        self.lag = Histogram()
        #: Leader, once an append that a peer answers: from sending it until the answer, which leaves the peer when all
        #: that was sent is on its disk. By node id.
        self.peer_lags: defaultdict[str, Histogram] = defaultdict(Histogram)
