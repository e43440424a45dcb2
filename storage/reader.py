"""A read transaction of the machine's tables that is kept open and renewed after each commit.

It owns one LMDB read transaction and one cursor in it. It never writes, and it never stays on an old state: whoever
commits renews it, since a stale reader keeps the pages of that state from being used again. What it gives out are
bytes of its own, checked against their checksums, so they outlive the transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import lmdb
from xxhash import xxh3_64_digest

from raftq.storage.checksums import damaged, unseal
from raftq.storage.failures import read_failure

if TYPE_CHECKING:
    from raftq.storage.environment import Environment

    Transaction = lmdb.Transaction[bytes]
    Cursor = lmdb.Cursor[bytes]


class Snapshot:
    """One state of the tables. To be used from one thread at a time."""

    __slots__ = ("_cursor", "_environment", "_get", "_txn")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._begin()

    def _begin(self) -> None:
        self._txn = self._environment.begin_read()
        self._get = self._txn.get
        self._cursor = self._txn.cursor()

    def renew(self) -> None:
        """Move to the state of the last commit."""
        self._txn.abort()
        self._begin()

    def close(self) -> None:
        self._txn.abort()

    def get(self, key: bytes) -> bytes | None:
        try:
            stored = self._get(key)
        except lmdb.Error as exc:
            raise read_failure(f"table 'tables' at key {key.hex()}", exc) from exc
        if stored is None:
            return None
        value = stored[:-8]
        if xxh3_64_digest(key + value) != stored[-8:]:
            raise damaged("tables", key)
        return value

    def first(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        """The first item with low <= key < high."""
        cursor = self._cursor
        try:
            if not cursor.set_range(low) or (key := cursor.key()) >= high:
                return None
            return key, unseal("tables", key, cursor.value())
        except lmdb.Error as exc:
            raise read_failure(f"table 'tables' from key {low.hex()}", exc) from exc

    def last(self, low: bytes, high: bytes) -> tuple[bytes, bytes] | None:
        """The last item with low <= key < high."""
        cursor = self._cursor
        try:
            found = cursor.prev() if cursor.set_range(high) else cursor.last()
            if not found or (key := cursor.key()) < low:
                return None
            return key, unseal("tables", key, cursor.value())
        except lmdb.Error as exc:
            raise read_failure(f"table 'tables' below key {high.hex()}", exc) from exc

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The items with low <= key < high in order; each step looks again from the last key given."""
        if reverse:
            while (item := self.last(low, high)) is not None:
                yield item
                high = item[0]
        else:
            while (item := self.first(low, high)) is not None:
                yield item
                low = item[0] + b"\0"
