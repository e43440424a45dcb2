"""What all queues hold together, and how fast the totals grow, without looking at each queue.

Owns the sums in the record of the cluster; and, in memory alone, what the totals of the queues that changed were in the
last minute. No command reads any of it. Invariant: a count in the sums is the sum over the queues' records; so is a
total, but from version 2 on those of deleted queues stay in it, so that it never falls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from operator import add, attrgetter, sub
from struct import Struct

from raftq.storage.machine import keys, records
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import Cluster, QueueRecord

#: Fields of a queue's record: what it holds now, and what was counted since it was created. New ones go to the end.
COUNTS = ("ready", "leased", "delayed", "bytes")
TOTALS = (
    "enqueued",
    "delivered",
    "acked",
    "nacked",
    "released",
    "expired",
    "duplicates",
    "rejected",
    "dead_lettered",
    "discarded",
    "removed",
    "redriven",
)
#: Totals of deleted queues stay from this version on.
KEPT_VERSION = 2
#: What was counted is told apart by pieces of wall time as long as this, for as long as the second.
PIECE_MS = 5_000
HISTORY_MS = 60_000
#: Queues remembered over all pieces: with more, the history is shorter. About 200 bytes each.
_REMEMBERED_MAX = 100_000

#: COUNTS and TOTALS of a queue.
counted = attrgetter(*COUNTS, *TOTALS)
_packed = Struct(f"<{len(TOTALS)}Q")
_AT = len(COUNTS)
#: Stands for all queues together.
_ALL = ""


class Tallies:
    def __init__(self, txn: Txn, cluster: Cluster) -> None:
        self._cluster = cluster
        if cluster.queues and not cluster.sums:
            cluster.sums = _summed(txn)
        cluster.sums += [0] * (_AT + len(TOTALS) - len(cluster.sums))
        #: Of each queue whose record is in memory: its values in the sums.
        self._in_sums: dict[str, tuple[int, ...]] = {}
        #: (number of the piece of time, queue key -> totals before its first change in it), the oldest first.
        self._pieces: deque[tuple[int, dict[str, bytes]]] = deque()
        self._remembered = 0
        #: All changes since then are known, wall time.
        self._since_ms = cluster.wall_ms

    def known(self, queue: QueueRecord) -> None:
        """Its record was read, or made, and has not changed since."""
        self._in_sums.setdefault(queue.key, counted(queue))

    def forget(self) -> None:
        """No record is in memory any more."""
        self._in_sums.clear()

    def changed(self, queue: QueueRecord) -> None:
        """Its record is as at the end of an entry."""
        before, now = self._in_sums[queue.key], counted(queue)
        if before == now:
            return
        self._note(queue.key, before)
        self._in_sums[queue.key] = now
        self._add(map(sub, now, before))

    def deleted(self, queue: QueueRecord) -> None:
        self.changed(queue)
        gone = self._in_sums.pop(queue.key)
        stays = _AT if self._cluster.version >= KEPT_VERSION else None
        self._add([-value for value in gone[:stays]] + [0] * (0 if stays is None else len(TOTALS)))
        for _, totals in self._pieces:
            self._remembered -= totals.pop(queue.key, None) is not None

    def _add(self, more: Iterator[int] | list[int]) -> None:
        self._cluster.sums = list(map(add, self._cluster.sums, more))

    def _note(self, key: str, before: tuple[int, ...]) -> None:
        number = self._cluster.wall_ms // PIECE_MS
        if not self._pieces or self._pieces[-1][0] != number:
            self._begin(number)
        totals = self._pieces[-1][1]
        if key not in totals:
            totals[key] = _packed.pack(*before[_AT:])
            self._remembered += 1

    def _begin(self, number: int) -> None:
        pieces = self._pieces
        while pieces and (pieces[0][0] < number - HISTORY_MS // PIECE_MS or self._remembered > _REMEMBERED_MAX):
            dropped, totals = pieces.popleft()
            self._remembered -= len(totals)
            self._since_ms = max(self._since_ms, (dropped + 1) * PIECE_MS)
        pieces.append((number, {_ALL: _packed.pack(*self._cluster.sums[_AT:])}))
        self._remembered += 1

    def growth(self, queue: QueueRecord | None, window_ms: int, now_ms: int) -> tuple[list[int], int]:
        """What each of the TOTALS of a queue (None: of all) has grown by within about the last `window_ms`, and in how
        many ms exactly: up to PIECE_MS more, or less, but not under a second, when not so much is known yet. `now_ms`
        is wall time."""
        key, now = (_ALL, self._cluster.sums) if queue is None else (queue.key, counted(queue))
        begun = max(now_ms - window_ms, 0) // PIECE_MS
        before = next((t[key] for number, t in self._pieces if number >= begun and key in t), None)
        took_ms = max(now_ms - max(begun * PIECE_MS, self._since_ms), 1_000)
        if before is None:
            return [0] * len(TOTALS), took_ms
        return [max(total, 0) for total in map(sub, now[_AT:], _packed.unpack(before))], took_ms


def _summed(txn: Txn) -> list[int]:
    """Of tables from before there were sums: some 5 us a queue, once."""
    sums = [0] * (_AT + len(TOTALS))
    for _, value in txn.scan(keys.QUEUE, keys.QUEUE + b"\xff"):
        sums = list(map(add, sums, counted(records.decode_queue(value))))
    return sums
