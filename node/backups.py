"""Backups of a running node, for `GET /v1/cluster/snapshot`.

Owns the file that a backup is written to and sent from. Invariant: one at a time, and none is left on the disk: while
it is sent the file has no name any more, and what a crash left is deleted at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from raftq.api.ports import BackupRefused
from raftq.storage.failures import StorageError
from raftq.storage.snapshot import PART, SnapshotError, SnapshotHead

_PIECE_BYTES = 256 * 1024


class FileBackup:
    """Implements `api.ports.Backup`."""

    def __init__(self, file: BinaryIO, head: SnapshotHead) -> None:
        self._file = file
        self.index, self.cluster_id = head.index, head.cluster_id
        self.size_bytes = file.seek(0, 2)
        file.seek(0)

    async def read(self) -> bytes:
        return await asyncio.to_thread(self._file.read, _PIECE_BYTES)


class Backups:
    """`write` makes a snapshot at a path (`RaftShard.backup`). `room_bytes`: of free disk, beyond what the tables take
    and the reserve."""

    def __init__(
        self, folder: Path, write: Callable[[Path], Awaitable[SnapshotHead]], room_bytes: Callable[[], int]
    ) -> None:
        self._path = folder / "snapshots" / "backup.snapshot"
        self._write, self._room_bytes = write, room_bytes
        self._busy = False
        for left in (self._path, self._path.with_name(self._path.name + PART)):
            left.unlink(missing_ok=True)

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[FileBackup]:
        """Raises BackupRefused."""
        if self._busy:
            raise BackupRefused("this node is making a backup already: wait for it, or ask another node")
        self._busy = True
        try:
            head, file = await self._made()
            with file:
                yield FileBackup(file, head)
        finally:
            self._busy = False

    async def _made(self) -> tuple[SnapshotHead, BinaryIO]:
        try:
            if self._room_bytes() < 0:
                raise BackupRefused("the disk of this node has no room for a backup: make room, or ask another node")
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            head = await self._write(self._path)
            file = self._path.open("rb")
            self._path.unlink()
        except (OSError, StorageError, SnapshotError) as error:
            raise BackupRefused(f"this node cannot make a backup ({error}): ask another node") from error
        return head, file
