"""The first key of a part of the tables, remembered.

"When is the next deadline?" and "is anything returned?" are asked all the time, and what is first is deleted all the
time: a search from the low end would pass over everything deleted since the last commit, each time. So a lower bound
is kept in memory. Invariant: no key of the part lies below `low`. It is a cache: whoever puts or deletes a key of the
part says so, and a new one begins at the low end.
"""

from __future__ import annotations

from raftq.storage.machine.ports import Txn


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
