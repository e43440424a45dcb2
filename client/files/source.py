"""The file that is written into a queue: what it is, and its batches of lines.

A batch is a function of (file, offset, limits) and of nothing else. That is what lets a writer that was killed send the
batch in flight again, byte for byte, knowing only where it began. A line is what stands between two `\\n`, any bytes;
nothing is decoded, and `\\r` is a byte like others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from raftq.client.errors import FileRefused

_EDGE_BYTES = 64 * 1024
_SCAN_BYTES = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is cut. Kept with its state, so that a newer version goes on as the older one began."""

    batch_lines: int = 1000
    #: A longer line travels in parts: the body limit of the nodes. A batch is never larger either.
    line_bytes: int = 1024 * 1024
    part_bytes: int = 512 * 1024


class Identity(msgspec.Struct, frozen=True):
    """Tells whether the file is still the one that was begun. Its inode is left out: a copy restored with its times is
    the same file."""

    size: int
    mtime_ns: int
    #: Of the first and the last 64 KiB.
    digest: str


class Batch(msgspec.Struct, frozen=True):
    """Whole lines from `offset` to `end`, without their `\\n`."""

    offset: int
    end: int
    lines: list[bytes]
    #: Nothing ends the last line: the file ends there.
    open_end: bool


class LongLine(msgspec.Struct, frozen=True):
    """One line over the limit, from `offset`; its `\\n`, if any, ends at `end`. It is never in memory as a whole."""

    offset: int
    end: int
    open_end: bool

    @property
    def line_bytes(self) -> int:
        return self.end - self.offset - (not self.open_end)


class SourceFile:
    """Opened for reading. OSError stays; raises FileRefused for what is no regular file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not path.is_file():
                raise FileRefused(f"{path} is no regular file: only a file can be read again after a crash")
            self.identity = self._identify()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._fd)

    def check_unchanged(self) -> None:
        """Raises FileRefused when the file was written to since it was opened."""
        stat = os.fstat(self._fd)
        if (stat.st_size, stat.st_mtime_ns) != (self.identity.size, self.identity.mtime_ns):
            raise FileRefused(f"{self.path} changes while it is written into the queue: write a copy that stands still")

    def cut(self, offset: int, limits: Limits) -> Batch | LongLine | None:
        """What begins at `offset`; None at the end of the file."""
        block = os.pread(self._fd, limits.line_bytes + 1, offset)
        if not block:
            return None
        at_end = offset + len(block) == self.identity.size
        lines = block.split(b"\n", limits.batch_lines)
        rest = lines.pop()
        if rest and at_end and len(lines) < limits.batch_lines and len(rest) <= limits.line_bytes:
            return Batch(offset, offset + len(block), [*lines, rest], open_end=True)
        if lines:
            return Batch(offset, offset + len(block) - len(rest), lines, open_end=False)
        return self._long_line(offset, offset + len(block))

    def parts(self, line: LongLine, part_bytes: int) -> Iterator[bytes]:
        stop = line.offset + line.line_bytes
        for offset in range(line.offset, stop, part_bytes):
            yield os.pread(self._fd, min(part_bytes, stop - offset), offset)

    def _long_line(self, offset: int, scanned: int) -> LongLine:
        while block := os.pread(self._fd, _SCAN_BYTES, scanned):
            found = block.find(b"\n")
            if found >= 0:
                return LongLine(offset, scanned + found + 1, open_end=False)
            scanned += len(block)
        return LongLine(offset, scanned, open_end=True)

    def _identify(self) -> Identity:
        stat = os.fstat(self._fd)
        edges = hashlib.blake2b(digest_size=16)
        edges.update(os.pread(self._fd, _EDGE_BYTES, 0))
        edges.update(os.pread(self._fd, _EDGE_BYTES, max(0, stat.st_size - _EDGE_BYTES)))
        return Identity(stat.st_size, stat.st_mtime_ns, edges.hexdigest())
