"""The digest of the machine's tables at an index: equal on two nodes that are equal.

It reads one snapshot in a transaction of its own and may run in a thread. It never changes anything.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from raftq.storage.checksums import unseal
from raftq.storage.environment import Environment
from raftq.storage.failures import reading

if TYPE_CHECKING:
    from raftq.storage.reader import Transaction

_SIZES = struct.Struct("<II")
_CHUNK_BYTES = 64 * 1024


class State:
    """The tables as they are now, in a read transaction of their own: digest them in any one thread, soon."""

    def __init__(self, environment: Environment) -> None:
        with reading("table 'tables'"):
            self._txn = environment.begin_read()
            #: Index of the last applied entry.
            self.applied = environment.applied(self._txn)

    def digest(self) -> str:
        """The hexadecimal digest of all keys and values in their order. Ends the transaction."""
        with reading("table 'tables'"), self._txn as txn:
            return _digest(txn)


def digest(environment: Environment) -> tuple[int, str]:
    """(index of the last applied entry, digest) of the tables as they are now."""
    state = State(environment)
    return state.applied, state.digest()


def _digest(txn: Transaction) -> str:
    hashed = xxh3_128()
    parts: list[bytes] = []
    size = 0
    for key, stored in txn.cursor():
        value = unseal("tables", key, stored)
        # The sizes keep ("ab", "c") and ("a", "bc") apart.
        parts += (_SIZES.pack(len(key), len(value)), key, value)
        size += len(value)
        if size >= _CHUNK_BYTES:
            hashed.update(b"".join(parts))
            parts.clear()
            size = 0
    hashed.update(b"".join(parts))
    return hashed.hexdigest()
