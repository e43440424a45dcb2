"""The file that a queue is read into.

Up to the sidecar's offset it holds lines that are this reader's for good; after it at most what a reader left that was
killed while it appended. Nothing else writes to it: what was changed by others is refused, not overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from raftq.client.errors import FileRefused
from raftq.client.files.sidecar import sync_folder, write_whole
from raftq.client.files.spool import Run

_BLOCK_BYTES = 1024 * 1024


def check_nothing_there(path: Path) -> None:
    """Raises FileRefused when a file with something in it is there before the first reader began it."""
    if path.exists() and path.stat().st_size:
        raise FileRefused(f"{path} is there already and no raftq read began it: name another file")


class Output:
    """The file that lines are read into. Made when it is not there; OSError stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        sync_folder(path)

    def close(self) -> None:
        os.close(self._fd)

    def check(self, offset: int, held_bytes: int) -> None:
        """Raises FileRefused unless the file ends at `offset`, or after it by no more than `held_bytes`."""
        size = os.fstat(self._fd).st_size
        if not offset <= size <= offset + held_bytes:
            changed = f"{self.path} has {size:,} bytes where {offset:,} were read"
            raise FileRefused(f"{changed}: put it back as it was, or name another file")

    def land(self, offset: int, open_line: bool, spool: Path, wanted: Iterator[Run]) -> tuple[int, bool]:
        """Put `wanted` of the spool at `offset`, in place of whatever is there; the new end, and whether its last line
        is open. What follows an open line begins a line of its own. Durable when this returns."""
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)
        with spool.open("rb") as lines:
            for run in wanted:
                if open_line:
                    write_whole(self._fd, b"\n")
                for block in _blocks(lines, run.start, run.end):
                    write_whole(self._fd, block)
                open_line = run.open_end
        os.fsync(self._fd)
        return os.lseek(self._fd, 0, os.SEEK_CUR), open_line


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end:
        block = file.read(min(_BLOCK_BYTES, end - start))
        assert block, "the spool is shorter than it was when it was checked"
        start += len(block)
        yield block
