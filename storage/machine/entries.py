"""One log entry of the state machine: the clocks it was proposed at, and the commands in it.

`u64 lease_ms, u64 wall_ms, u32 count, count times u32 bytes, the commands`. Little-endian. A new leader continues the
clocks of the last entry in its log, so they never go back.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_HEAD = struct.Struct("<QQI")


class Clocks(NamedTuple):
    lease_ms: int
    wall_ms: int


def encode(clocks: Clocks, commands: Sequence[bytes], prefix: bytes = b"") -> bytes:
    """An entry; `prefix` goes before it, for a log that marks its entries."""
    count = len(commands)
    sizes = struct.pack(f"<{count}I", *map(len, commands))
    return b"".join((prefix, _HEAD.pack(clocks.lease_ms, clocks.wall_ms, count), sizes, *commands))


def clocks(entry: bytes, offset: int = 0) -> Clocks:
    lease_ms, wall_ms, _ = _HEAD.unpack_from(entry, offset)
    return Clocks(lease_ms, wall_ms)


def decode(entry: bytes, offset: int = 0) -> tuple[Clocks, list[memoryview]]:
    """The clocks and the encoded commands of the entry that starts at `offset`."""
    lease_ms, wall_ms, count = _HEAD.unpack_from(entry, offset)
    sizes = struct.unpack_from(f"<{count}I", entry, offset + _HEAD.size)
    view = memoryview(entry)
    start = offset + _HEAD.size + 4 * count
    commands = []
    for size in sizes:
        commands.append(view[start : start + size])
        start += size
    if start != len(entry):
        raise ValueError(f"entry of {len(entry)} bytes states {start}")
    return Clocks(lease_ms, wall_ms), commands
