"""What passes when: a table of moments, each naming the record that passes then.

There are four: of leases, by lease time; of what passes by wall time (a delayed piece, a dedup id, a request, a token
long after it expired, and retention in a queue); of sparse batches, by lease time; and of schedules, by wall time.
Invariant, but for sparse batches: every record that can pass has exactly one moment here, the one that stands in the
record or follows from it; a moment may only be left behind by a queue that was deleted. A sparse batch's moment only
says when to look.
"""

from __future__ import annotations

from collections.abc import Iterator

from raftq.storage.machine import keys
from raftq.storage.machine.firstkey import FirstKey
from raftq.storage.machine.ports import Txn
from raftq.storage.machine.records import NOTHING


class Timetable:
    __slots__ = ("_first", "_table", "_txn")

    def __init__(self, txn: Txn, table: bytes) -> None:
        self._txn = txn
        self._table = table
        self._first = FirstKey(txn, table, keys.moment(table, keys.MS_MAX + 1))

    def add(self, ms: int, record: bytes) -> None:
        key = keys.moment(self._table, ms, record)
        self._txn.put(key, NOTHING)
        self._first.added(key)

    def remove(self, ms: int, record: bytes) -> None:
        key = keys.moment(self._table, ms, record)
        self._txn.delete(key)
        self._first.removed(key)

    def earliest(self) -> int | None:
        key = self._first.get()
        return None if key is None else keys.moment_of(key)[0]

    def due(self, now_ms: int) -> Iterator[tuple[int, bytes]]:
        """(ms, record key) of all that has passed, the earliest first. Remove each before asking for the next."""
        end = keys.moment(self._table, min(now_ms, keys.MS_MAX) + 1)
        while (key := self._first.get()) is not None and key < end:
            yield keys.moment_of(key)
