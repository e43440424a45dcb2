"""Backups of a node: one at a time, and nothing left on the disk."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from raftq.api.ports import BackupRefused
from raftq.node.backups import Backups
from raftq.storage.snapshot import SnapshotError, SnapshotHead

HEAD = SnapshotHead(index=7, term=2, cluster_id="c1", clocks=b"", membership=b"")
BODY = bytes(range(256)) * 4000


async def write(path: Path) -> SnapshotHead:
    await asyncio.to_thread(path.write_bytes, BODY)
    return HEAD


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def test_it_is_read_in_pieces_and_leaves_nothing(tmp_path: Path) -> None:
    backups = Backups(tmp_path, write, lambda: 0)
    for _ in range(2):
        async with backups.backup() as backup:
            assert (backup.index, backup.cluster_id, backup.size_bytes) == (7, "c1", len(BODY))
            pieces = []
            while piece := await backup.read():
                pieces.append(piece)
                assert files(tmp_path) == []
        assert (len(pieces) > 1, b"".join(pieces)) == (True, BODY)


async def test_one_at_a_time(tmp_path: Path) -> None:
    backups = Backups(tmp_path, write, lambda: 0)
    with suppress(ZeroDivisionError):
        async with backups.backup():
            with pytest.raises(BackupRefused, match="already"):
                await backups.backup().__aenter__()
            raise ZeroDivisionError
    async with backups.backup():
        pass


async def test_without_room_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(BackupRefused, match="no room"):
        await Backups(tmp_path, write, lambda: -1).backup().__aenter__()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SnapshotError("the node stops")])
async def test_what_cannot_be_made_is_refused_and_tried_again(tmp_path: Path, error: Exception) -> None:
    failing = True

    async def fail(path: Path) -> SnapshotHead:
        if failing:
            raise error
        return await write(path)

    backups = Backups(tmp_path, fail, lambda: 0)
    with pytest.raises(BackupRefused, match="ask another node"):
        await backups.backup().__aenter__()
    failing = False
    async with backups.backup() as backup:
        assert backup.index == 7


def test_what_a_crash_left_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    for name in ("backup.snapshot", "backup.snapshot.part", "outgoing.snapshot"):
        (folder / name).write_bytes(b"x")
    Backups(tmp_path, write, lambda: 0)
    assert files(tmp_path) == ["outgoing.snapshot"]
