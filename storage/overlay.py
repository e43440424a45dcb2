"""The Txn of the state machine: what was changed and is not on disk yet, over a snapshot of what is.

It owns two generations of changes: the current one, which grows, and the one in flight, which the writer is committing;
and the snapshot below them. It never writes to disk. Invariant: get and scan see the newest of current, in flight and
snapshot for every key, at every moment, so a reader sees all that was applied although LMDB does not have it yet.

Only keys that hold a value are kept in order; a deleted key only hides what lies below it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final

from raftq.storage.environment import Environment

KEY_BYTES_MAX: Final = 511

#: A key that a generation does not know; None is one that it deletes.
_UNKNOWN: Final[Any] = object()


class Generation:
    """Changes to a table: key -> value, or None for deleted; and in order the keys that have a value."""

    __slots__ = ("_fresh", "_order", "changes")

    def __init__(self) -> None:
        self.changes: dict[bytes, bytes | None] = {}
        self._order: list[bytes] = []
        self._fresh: list[bytes] = []

    def put(self, key: bytes, value: bytes) -> None:
        if self.changes.get(key) is None:
            self._fresh.append(key)
        self.changes[key] = value

    def delete(self, key: bytes) -> None:
        if self.changes.get(key) is not None:
            order = self.order()
            del order[bisect_left(order, key)]
        self.changes[key] = None

    def restore(self, undo: list[tuple[bytes, bytes | None]]) -> None:
        """Put back, newest first, what each key was."""
        for key, value in reversed(undo):
            if value is _UNKNOWN:
                del self.changes[key]
            else:
                self.changes[key] = value
        self._order = []
        self._fresh = [key for key, value in self.changes.items() if value is not None]

    def order(self) -> list[bytes]:
        """The keys that have a value, sorted. New ones wait unsorted until somebody looks."""
        order, fresh = self._order, self._fresh
        if fresh:
            if len(fresh) > 8:
                order += fresh
                order.sort()
            else:
                for key in fresh:
                    order.insert(bisect_left(order, key), key)
            self._fresh = []
        return order

    def take(self) -> list[tuple[bytes, bytes | None]]:
        changes = self.changes
        return [(key, changes[key]) for key in sorted(changes)]


class Overlay:
    """`ports.Txn`. To be used from one thread; between `take` and `landed` it goes on as before."""

    def __init__(self, environment: Environment) -> None:
        self._snapshot = environment.snapshot()
        self._current = Generation()
        self._changes = self._current.changes
        self._flight: Generation | None = None
        self._flying: dict[bytes, bytes | None] = {}
        self._undo: list[tuple[bytes, bytes | None]] | None = None
        self._savepoints = 0
        #: From where a search below the generations began to where it ended; see `_below`.
        self._skips: dict[bytes, bytes] = {}
        #: Bytes of keys and values put or deleted since the last `take`, those written twice counted twice.
        self.pending_bytes = 0

    def close(self) -> None:
        self._snapshot.close()

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._changes.get(key, _UNKNOWN)
        if value is not _UNKNOWN:
            return value
        value = self._flying.get(key, _UNKNOWN)
        if value is not _UNKNOWN:
            return value
        return self._snapshot.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= KEY_BYTES_MAX
        if self._undo is not None:
            self._undo.append((key, self._changes.get(key, _UNKNOWN)))
        self._current.put(key, value)
        self.pending_bytes += len(key) + len(value)

    def delete(self, key: bytes) -> None:
        if self._undo is not None:
            self._undo.append((key, self._changes.get(key, _UNKNOWN)))
        self._current.delete(key)
        self.pending_bytes += len(key)

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The items with low <= key < high in order. Each step looks again from the last key given."""
        if reverse:
            while (item := self.last(low, high)) is not None:
                yield item
                high = item[0]
        else:
            while (item := self.first(low, high)) is not None:
                yield item
                low = item[0] + b"\0"

    def first(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        """The first item with low <= key < high."""
        order = self._current.order()
        at = bisect_left(order, low)
        above: tuple[bytes, bytes | None] | None = None
        if at < len(order) and order[at] < high:
            high = order[at]
            above = (high, self._changes[high])
        if self._flight is not None:
            order = self._flight.order()
            for at in range(bisect_left(order, low), len(order)):
                if order[at] >= high:
                    break
                if order[at] not in self._changes:
                    high = order[at]
                    above = (high, self._flying[high])
                    break
        return self._below(low, high) or above  # type: ignore[return-value]

    def _below(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        """The first item of the snapshot in the range that no generation changes.

        Where many were deleted, as at the head of a queue, the next search from the same `low` starts where this one
        ended: until the snapshot is renewed or a savepoint rolled back, changed keys only become more."""
        start = self._skips.get(low, low)
        skipped = False
        while (item := self._snapshot.first(start, high)) is not None:
            if item[0] not in self._changes and item[0] not in self._flying:
                break
            start = item[0] + b"\0"
            skipped = True
        if skipped:
            self._skips[low] = start
        return item

    def last(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        """The last item with low <= key < high."""
        order = self._current.order()
        at = bisect_left(order, high) - 1
        above: tuple[bytes, bytes | None] | None = None
        start = low
        if at >= 0 and order[at] >= low:
            start = order[at]
            above = (start, self._changes[start])
        if self._flight is not None:
            order = self._flight.order()
            for at in range(bisect_left(order, high) - 1, -1, -1):
                if order[at] < start:
                    break
                if order[at] not in self._changes:
                    start = order[at]
                    above = (start, self._flying[start])
                    break
        while (item := self._snapshot.last(start, high)) is not None:
            if item[0] not in self._changes and item[0] not in self._flying:
                return item
            high = item[0]
        return above  # type: ignore[return-value]

    def savepoint(self) -> int:
        """A mark to roll back to. End each with `rollback` or `release`, the newest first."""
        if self._undo is None:
            self._undo = []
        self._savepoints += 1
        return len(self._undo)

    def rollback(self, savepoint: int) -> None:
        """Undo what was changed since the savepoint, and end it."""
        assert self._undo is not None
        self._current.restore(self._undo[savepoint:])
        del self._undo[savepoint:]
        self._skips.clear()
        self.release(savepoint)

    def release(self, savepoint: int) -> None:
        """End the savepoint, keeping what was changed since."""
        assert self._undo is not None
        assert savepoint <= len(self._undo)
        self._savepoints -= 1
        if self._savepoints == 0:
            self._undo = None

    def take(self) -> list[tuple[bytes, bytes | None]]:
        """What changed, sorted, for the writer; it is in flight until `landed`."""
        assert self._flight is None, "the last generation is still being committed"
        assert self._undo is None, "a savepoint is open"
        self._flight, self._flying = self._current, self._changes
        self._current = Generation()
        self._changes = self._current.changes
        self.pending_bytes = 0
        return self._flight.take()

    def landed(self) -> None:
        """The generation in flight is on disk: forget it, and read what is there."""
        assert self._flight is not None
        self._flight = None
        self._flying = {}
        self._skips.clear()
        self._snapshot.renew()
