"""What the disk forgets, and what it may not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.power.disk import SECTOR, Disk, File, Folder


def cut(disk: Disk, survives: float = 0.0, seed: int = 1) -> Disk:
    return disk.cut(survives, random.Random(seed))


def with_file(content: bytes = b"") -> tuple[Disk, File]:
    """A disk with the file `a`, its name and content synced."""
    disk = Disk()
    file = disk.create("/a", 0o600)
    file.write(0, content)
    file.sync()
    disk.sync_folder(disk.root)
    return disk, file


def content(disk: Disk, path: str = "/a") -> bytes:
    found = disk.find(path)
    assert isinstance(found, File)
    return bytes(found.data)


def test_what_was_written_is_read_and_lost_and_what_was_synced_is_kept() -> None:
    disk, file = with_file(b"old")
    file.write(0, b"newer")
    assert content(disk) == b"newer"
    assert content(cut(disk)) == b"old"
    disk, file = with_file(b"old")
    file.write(0, b"newer")
    file.sync()
    assert content(cut(disk)) == b"newer"


def test_a_synced_write_syncs_itself_alone() -> None:
    disk, file = with_file(bytes(3 * SECTOR))
    file.write(0, b"data")
    file.write(2 * SECTOR, b"meta")
    file.sync_range(2 * SECTOR, 2 * SECTOR + 4)
    found = content(cut(disk))
    assert (found[:4], found[2 * SECTOR : 2 * SECTOR + 4], len(found)) == (bytes(4), b"meta", 3 * SECTOR)


def test_a_name_is_lost_without_its_folder_and_a_content_without_its_file() -> None:
    disk = Disk()
    disk.create("/a", 0o600).sync()
    with pytest.raises(FileNotFoundError):
        cut(disk).find("/a")
    disk = Disk()
    disk.create("/a", 0o600).write(0, b"x")
    disk.sync_folder(disk.root)
    assert content(cut(disk)) == b""


def test_a_rename_happens_whole_or_not_at_all() -> None:
    found = set()
    for seed in range(20):
        disk, _ = with_file(b"old")
        new = disk.create("/b", 0o600)
        new.write(0, b"new")
        new.sync()
        disk.sync_folder(disk.root)
        disk.rename("/b", "/a")
        after = cut(disk, 0.5, seed)
        found.add((content(after), *sorted(after.root.entries)))
    assert found == {(b"old", "a", "b"), (b"new", "a")}


def test_a_rename_to_another_folder_is_synced_by_either_with_what_it_rests_on() -> None:
    for synced in ("/from", "/to"):
        disk = Disk()
        disk.mkdir("/from", 0o700)
        disk.mkdir("/to", 0o700)
        disk.sync_folder(disk.root)
        file = disk.create("/from/a", 0o600)
        file.write(0, b"x")
        file.sync()
        disk.rename("/from/a", "/to/a")
        disk.sync_folder(disk.folder(synced))
        after = cut(disk)
        assert content(after, "/to/a") == b"x"
        assert after.folder("/from").entries == {}


def test_a_synced_name_in_a_folder_whose_own_name_is_not_is_lost() -> None:
    disk = Disk()
    disk.mkdir("/folder", 0o700)
    disk.create("/folder/a", 0o600).sync()
    disk.sync_folder(disk.folder("/folder"))
    assert cut(disk).root.entries == {}


def test_what_was_cut_off_does_not_come_back() -> None:
    disk, file = with_file(b"x" * 2 * SECTOR)
    file.truncate(1)
    file.write(2 * SECTOR - 1, b"y")
    file.sync()
    assert content(cut(disk)) == b"x" + bytes(2 * SECTOR - 2) + b"y"


def test_it_is_saved_and_loaded_as_it_is(tmp_path: Path) -> None:
    disk, _ = with_file(b"x" * 1000)
    disk.mkdir("/folder", 0o700)
    disk.create("/folder/b", 0o600)
    disk.save(tmp_path / "saved")
    loaded = Disk.load(tmp_path / "saved")
    assert content(loaded) == b"x" * 1000
    assert isinstance(loaded.find("/folder"), Folder)
    assert loaded.find("/folder/b").mode == disk.find("/folder/b").mode
    assert loaded.unsynced == (0, 0)


writes = st.tuples(st.integers(0, 3 * SECTOR), st.binary(min_size=1, max_size=2 * SECTOR))
truncations = st.tuples(st.integers(0, 4 * SECTOR), st.none())


@given(before=st.lists(writes | truncations), after=st.lists(writes | truncations), seed=st.integers(0, 100))
def test_each_sector_survives_as_it_was_when_synced_or_at_some_moment_since(
    before: list[tuple[int, bytes | None]], after: list[tuple[int, bytes | None]], seed: int
) -> None:
    disk, file = with_file()

    def change(offset: int, data: bytes | None) -> bytes:
        file.truncate(offset) if data is None else file.write(offset, data)
        return bytes(file.data)

    for one in before:
        change(*one)
    file.sync()
    states = [bytes(file.data), *(change(*one) for one in after)]
    found = content(cut(disk, 0.5, seed))
    assert len(found) in {len(state) for state in states}
    for offset in range(0, len(found), SECTOR):
        part = found[offset : offset + SECTOR]
        assert any(state[offset : offset + SECTOR].ljust(SECTOR, b"\0")[: len(part)] == part for state in states)
