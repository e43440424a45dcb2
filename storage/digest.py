"""The digest of the machine's tables at an index: equal on two nodes that are equal.

It owns the one form in which tables are hashed, and in which snapshots carry them (`packed`). It reads one state in a
transaction of its own and may run in a thread. It never changes anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from xxhash import xxh3_64_digest, xxh3_128

from raftq.storage.checksums import damaged
from raftq.storage.environment import Environment
from raftq.storage.failures import reading

if TYPE_CHECKING:
    from raftq.storage.reader import Transaction

#: Bytes of a key and of its value. They go before the two, and keep ("ab", "c") and ("a", "bc") apart.
SIZES = struct.Struct("<II")

CHUNK_BYTES = 256 * 1024


class State:
    """The tables as they are now, in a read transaction of their own: digest them in any one thread, soon."""

    def __init__(self, environment: Environment) -> None:
        with reading("table 'tables'"):
            self._txn = environment.begin_read()
            #: Index of the last applied entry.
            self.applied = environment.applied(self._txn)

    def digest(self) -> str:
        """The hexadecimal digest of all keys and values in their order. Ends the transaction."""
        hashed = xxh3_128()
        with self._txn as txn:
            for _count, chunk in packed(txn):
                hashed.update(chunk)
        return hashed.hexdigest()


def digest(environment: Environment) -> tuple[int, str]:
    """(index of the last applied entry, digest) of the tables as they are now."""
    state = State(environment)
    return state.applied, state.digest()


def packed(txn: Transaction, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
    """All items of the tables in order, as (their number, sizes and key and value of each): chunks of about
    `chunk_bytes`, or of one larger item. Raises EnvironmentDamaged."""
    parts: list[bytes] = []
    size = 0
    pack, checksum = SIZES.pack, xxh3_64_digest
    with reading("table 'tables'"):
        for key, stored in txn.cursor():
            item = key + stored[:-8]
            if checksum(item) != stored[-8:]:
                raise damaged("tables", key)
            parts += (pack(len(key), len(stored) - 8), item)
            size += len(item)
            if size >= chunk_bytes:
                yield len(parts) // 2, b"".join(parts)
                parts.clear()
                size = 0
    if parts:
        yield len(parts) // 2, b"".join(parts)
