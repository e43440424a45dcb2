"""What the engine is told of time and flow, and what a leader knows of one follower."""

from __future__ import annotations

from collections import deque

import msgspec


class Timing(msgspec.Struct, frozen=True):
    """Seconds."""

    election_min: float = 0.3
    election_max: float = 0.6
    heartbeat: float = 0.04
    #: A closed connection of the leader is campaigned against after at most this long (jitter against split votes).
    lost_leader_jitter: float = 0.03

    @property
    def check_quorum(self) -> float:
        return 2 * self.election_min


class Flow(msgspec.Struct, frozen=True):
    """How much may be on its way to one follower, unanswered."""

    entries: int = 256
    bytes: int = 8 * 1024 * 1024
    #: One AppendEntries carries at most this many bytes, or one larger entry.
    append_bytes: int = 1024 * 1024
    #: A log that takes more is cut also below what a member that lags has: that one gets a snapshot.
    lag_bytes: int = 128 * 1024 * 1024


class Progress:
    """What the leader knows of one follower, beside pysyncobj's next and match index."""

    __slots__ = ("applied", "confirmed", "in_flight", "in_flight_bytes", "lacks", "probe_prev", "probing", "round")

    def __init__(self, now: float) -> None:
        #: True: one append at a time, until the follower's log is known to match.
        self.probing = True
        #: The index that the last append of a probe built on.
        self.probe_prev = 0
        #: (last index, bytes) of each append that is not answered yet.
        self.in_flight: deque[tuple[int, int]] = deque()
        self.in_flight_bytes = 0
        #: The highest round that it echoed, and when that round was sent.
        self.round = 0
        self.confirmed = now
        self.applied = 0
        #: It needs entries that the log holds no more.
        self.lacks = False

    def reset(self) -> None:
        self.probing = True
        self.in_flight.clear()
        self.in_flight_bytes = 0

    def landed(self, match: int) -> None:
        while self.in_flight and self.in_flight[0][0] <= match:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
