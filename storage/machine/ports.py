"""What the state machine needs of the world: an ordered table of bytes, and the place of a command in the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec


class Meta(msgspec.Struct, gc=False):
    """Where a command stands. Equal on every node."""

    #: Log index of the entry, and the command's position in it from 0.
    index: int
    position: int
    term: int
    #: Lease time in milliseconds: elapsed time of leaders, never wall time. Never goes back.
    lease_ms: int
    #: Wall time in milliseconds since 1970: the median of a quorum's clocks. Never goes back.
    wall_ms: int


class Txn(Protocol):
    """An ordered map of bytes to bytes. Everything apply reads and writes goes through it."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens when it is not there."""

    def scan(self, low: bytes, high: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The items with low <= key < high, in order of their keys. The map may change while it is scanned: each step
        looks again from the last key given."""
