"""The lines of one lease on their way into the output: on disk before their ack is asked for.

A spool is written from the start for each lease and synced before the sidecar speaks of it (`Held`); then it is not
touched until the sidecar has forgotten it. It is checked before a later process believes it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from raftq.client.errors import FileRefused
from raftq.client.files.sidecar import write_whole

_BLOCK_BYTES = 1024 * 1024


class Held(msgspec.Struct, kw_only=True):
    """What lies in the spool: one piece a receipt, with its `\\n` unless its file ended without."""

    receipts: list[str]
    lengths: list[int]
    #: Positions of the pieces without `\\n`.
    open_ends: list[int]
    #: Receipt of a pointer -> the side queue to delete once it is acked.
    side_queues: dict[str, str]
    crc: int


class Run(NamedTuple):
    """Pieces that go into the output as they lie together in the spool, `start` to `end`."""

    start: int
    end: int
    open_end: bool


def runs(held: Held, done: Sequence[bool]) -> Iterator[Run]:
    """The pieces that are `done`. A run ends at a gap, and after a piece without `\\n`."""
    open_ends = set(held.open_ends)
    start = position = 0
    for number, length in enumerate(held.lengths):
        end = position + length
        if not done[number]:
            if position > start:
                yield Run(start, position, False)
            start = end
        elif number in open_ends:
            yield Run(start, end, True)
            start = end
        position = end
    if position > start:
        yield Run(start, position, False)


class SpoolWriter:
    """Takes pieces one after the other. Nothing of it is durable before `finish` returns."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._waiting = bytearray()
        self._held = Held(receipts=[], lengths=[], open_ends=[], side_queues={}, crc=0)
        self._length = 0

    def add(self, data: bytes) -> None:
        """More of the piece that is being taken."""
        self._waiting += data
        self._length += len(data)
        if len(self._waiting) >= _BLOCK_BYTES:
            self._flush()

    def end(self, receipt: str, *, open_end: bool, side_queue: str | None = None) -> None:
        """The piece is whole."""
        if open_end:
            self._held.open_ends.append(len(self._held.lengths))
        else:
            self.add(b"\n")
        if side_queue is not None:
            self._held.side_queues[receipt] = side_queue
        self._held.receipts.append(receipt)
        self._held.lengths.append(self._length)
        self._length = 0

    def finish(self) -> Held:
        self._flush()
        os.fsync(self._fd)
        return self._held

    def close(self) -> None:
        os.close(self._fd)

    def _flush(self) -> None:
        write_whole(self._fd, self._waiting)
        self._held.crc = zlib.crc32(self._waiting, self._held.crc)
        self._waiting.clear()


def check(held: Held, spool: Path) -> None:
    """Raises FileRefused unless the spool holds what the sidecar says."""
    crc = length = 0
    if spool.is_file():
        with spool.open("rb") as lines:
            while block := lines.read(_BLOCK_BYTES):
                crc, length = zlib.crc32(block, crc), length + len(block)
    if (crc, length) != (held.crc, sum(held.lengths)):
        raise FileRefused(f"{spool} was changed or removed: put it back, it holds {len(held.lengths):,} leased lines")
