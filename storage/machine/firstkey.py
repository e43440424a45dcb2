"""The first key of a part of the tables, remembered.

"When is the next deadline?" and "is anything returned?" are asked all the time, and what is first is deleted all the
time: a search from the low end would pass over everything deleted since the last commit, each time. So a lower bound
is kept in memory. Invariant: no key of the part lies below `low`. It is a cache: whoever puts or deletes a key of the
part says so, and a new one begins at the low end.
"""

from __future__ import annotations

from raftq.storage.machine import keys
from raftq.storage.machine.ports import Txn

_FIRSTS_MAX = 10_000


class FirstKey:
    __slots__ = ("_exact", "_high", "_txn", "low")

    def __init__(self, txn: Txn, low: bytes, high: bytes) -> None:
        self._txn = txn
        self.low = low
        self._high = high
        #: `low` is a key of the part, or the high end of an empty one.
        self._exact = False

    def added(self, key: bytes) -> None:
        if key <= self.low:
            self.low = key
            self._exact = True

    def removed(self, key: bytes) -> None:
        if key == self.low:
            self.low = key + b"\0"
            self._exact = False

    def get(self) -> bytes | None:
        if not self._exact:
            item = next(iter(self._txn.scan(self.low, self._high)), None)
            self.low = self._high if item is None else item[0]
            self._exact = True
        return None if self.low == self._high else self.low


class FirstKeys:
    """Of a table whose keys are places: one for each queue and priority that is asked for."""

    __slots__ = ("_firsts", "_table", "_txn")

    def __init__(self, txn: Txn, table: bytes) -> None:
        self._txn = txn
        self._table = table
        self._firsts: dict[tuple[int, int], FirstKey] = {}

    def of(self, queue: int, priority: int) -> FirstKey:
        first = self._firsts.get((queue, priority))
        if first is None:
            if len(self._firsts) > _FIRSTS_MAX:
                self._firsts.clear()
            first = FirstKey(self._txn, *keys.line(self._table, queue, priority))
            self._firsts[queue, priority] = first
        return first
