"""A disk in memory that loses power: what was written, and what of it was synced.

Readers see all that was written. `cut` answers with what is there after the power came back: everything that was
synced, and of the rest nothing, or by a seeded choice some: single sectors of a write, in any version since the last
sync, with the old size or a newer one; and the first of the unsynced changes of names, in their order, as a journal
keeps them. A name is synced with its folder and a file with itself; neither syncs the other. Real disks and file
systems lose no more than that.
"""

from __future__ import annotations

import itertools
import random
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

#: What a disk writes as one.
SECTOR = 512


class File:
    def __init__(self, mode: int, content: bytes = b"") -> None:
        self.mode = stat.S_IFREG | stat.S_IMODE(mode)
        self.data = bytearray(content)
        self.durable = bytearray(content)
        #: Of each unsynced sector, what it held since the last sync, in order.
        self._versions: dict[int, list[bytes]] = {}
        self._sizes: list[int] = []

    @property
    def unsynced(self) -> int:
        """In sectors."""
        return len(self._versions)

    def write(self, offset: int, content: bytes) -> None:
        end = offset + len(content)
        self._resize(max(len(self.data), end))
        self.data[offset:end] = content
        self._note(offset, end)

    def truncate(self, size: int) -> None:
        before = len(self.data)
        self._resize(size)
        self._note(size, before)

    def sync(self) -> None:
        for sector, versions in self._versions.items():
            _put(self.durable, sector, versions[-1])
        _fit(self.durable, len(self.data))
        self._versions.clear()
        self._sizes.clear()

    def sync_range(self, offset: int, end: int) -> None:
        """What a write through a descriptor opened with O_DSYNC syncs, and no more."""
        _fit(self.durable, max(len(self.durable), end))
        for sector in _sectors(offset, end):
            if sector in self._versions:
                _put(self.durable, sector, self._versions.pop(sector)[-1])
        _fit(self.durable, max(end, min(len(self.durable), len(self.data))))

    def cut(self, survives: float, rng: random.Random) -> bytes:
        found = bytearray(self.durable)
        for sector, versions in self._versions.items():
            if rng.random() < survives:
                _put(found, sector, rng.choice(versions))
        size = rng.choice(self._sizes) if self._sizes and rng.random() < survives else len(self.durable)
        _fit(found, size)
        return bytes(found)

    def _resize(self, size: int) -> None:
        if size != len(self.data):
            _fit(self.data, size)
            self._sizes.append(size)

    def _note(self, offset: int, end: int) -> None:
        for sector in _sectors(offset, end):
            content = bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR])
            self._versions.setdefault(sector, []).append(content)


class Folder:
    def __init__(self, mode: int) -> None:
        self.mode = stat.S_IFDIR | stat.S_IMODE(mode)
        self.entries: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}


Inode = File | Folder


class Name(NamedTuple):
    """What a name of a folder stands for from now on; None: nothing."""

    folder: Folder
    name: str
    inode: Inode | None


#: Names that change together or not at all.
Change = tuple[Name, ...]


class Disk:
    """Raises OSError as a file system does."""

    def __init__(self, root: Folder | None = None) -> None:
        self.root = root or Folder(0o755)
        self._journal: list[Change] = []

    def find(self, path: str) -> Inode:
        inode: Inode = self.root
        for name in _names(path):
            if not isinstance(inode, Folder):
                raise NotADirectoryError(20, path)
            if name not in inode.entries:
                raise FileNotFoundError(2, path)
            inode = inode.entries[name]
        return inode

    def folder(self, path: str) -> Folder:
        if isinstance(found := self.find(path), Folder):
            return found
        raise NotADirectoryError(20, path)

    def create(self, path: str, mode: int) -> File:
        return self._add(path, File(mode))

    def mkdir(self, path: str, mode: int) -> None:
        self._add(path, Folder(mode))

    def unlink(self, path: str) -> None:
        if not isinstance(self.find(path), File):
            raise IsADirectoryError(21, path)
        self._change(Name(*self._place(path), None))

    def rmdir(self, path: str) -> None:
        if self.folder(path).entries:
            raise OSError(39, path)
        self._change(Name(*self._place(path), None))

    def rename(self, old: str, new: str) -> None:
        inode = self.find(old)
        (source, was), (target, name) = self._place(old), self._place(new)
        replaced = target.entries.get(name)
        if isinstance(replaced, Folder) and (replaced.entries or not isinstance(inode, Folder)):
            raise OSError(39, new)
        if replaced is not inode:
            self._change(Name(source, was, None), Name(target, name, inode))

    def sync_folder(self, folder: Folder) -> None:
        """Its names, and what they rest on: a change that touches two folders is one, and comes after earlier ones."""
        folders, synced, left = [folder], list[Change](), list[Change]()
        for change in reversed(self._journal):
            touched = [name.folder for name in change]
            if any(each in folders for each in touched):
                folders += touched
                synced.insert(0, change)
            else:
                left.insert(0, change)
        for name in itertools.chain(*synced):
            _set(name.folder.durable, name)
        self._journal = left

    @property
    def unsynced(self) -> tuple[int, int]:
        """(sectors, changes of names)."""
        return sum(file.unsynced for file in _files(self.root)), len(self._journal)

    def cut(self, survives: float, rng: random.Random) -> Disk:
        """The disk as it would be found afterwards."""
        kept = rng.randint(1, len(self._journal)) if self._journal and rng.random() < survives else 0
        return Disk(_cut(self.root, self._journal[:kept], survives, rng))

    def save(self, to: Path) -> None:
        """As plain files, in the new folder `to`."""
        _save(self.root, to)

    @classmethod
    def load(cls, saved: Path) -> Disk:
        return cls(_load(saved))

    def _place(self, path: str) -> tuple[Folder, str]:
        *above, name = _names(path)
        return self.folder("/".join(above)), name

    Made = TypeVar("Made", File, Folder)

    def _add(self, path: str, inode: Made) -> Made:
        folder, name = self._place(path)
        if name in folder.entries:
            raise FileExistsError(17, path)
        self._change(Name(folder, name, inode))
        return inode

    def _change(self, *change: Name) -> None:
        for name in change:
            _set(name.folder.entries, name)
        self._journal.append(change)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _sectors(offset: int, end: int) -> range:
    return range(offset // SECTOR, -(-end // SECTOR))


def _put(data: bytearray, sector: int, content: bytes) -> None:
    _fit(data, max(len(data), (sector + 1) * SECTOR))
    data[sector * SECTOR : (sector + 1) * SECTOR] = content.ljust(SECTOR, b"\0")


def _fit(data: bytearray, size: int) -> None:
    if len(data) > size:
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _set(entries: dict[str, Inode], name: Name) -> None:
    if name.inode is None:
        entries.pop(name.name, None)
    else:
        entries[name.name] = name.inode


def _files(folder: Folder) -> Iterable[File]:
    for inode in folder.entries.values():
        if isinstance(inode, File):
            yield inode
        else:
            yield from _files(inode)


def _cut(folder: Folder, kept: Sequence[Change], survives: float, rng: random.Random) -> Folder:
    """With what is durable, and the changes of names that were kept."""
    entries = dict(folder.durable)
    for change in itertools.chain(*kept):
        if change.folder is folder:
            _set(entries, change)
    found = Folder(folder.mode)
    for name, inode in entries.items():
        if isinstance(inode, File):
            found.entries[name] = File(inode.mode, inode.cut(survives, rng))
        else:
            found.entries[name] = _cut(inode, kept, survives, rng)
    found.durable.update(found.entries)
    return found


def _save(folder: Folder, to: Path) -> None:
    to.mkdir()
    for name, inode in folder.entries.items():
        if isinstance(inode, File):
            (to / name).write_bytes(inode.data)
            (to / name).chmod(stat.S_IMODE(inode.mode))
        else:
            _save(inode, to / name)


def _load(saved: Path) -> Folder:
    folder = Folder(0o755)
    for path in sorted(saved.iterdir()):
        mode = path.stat().st_mode
        folder.entries[path.name] = _load(path) if path.is_dir() else File(mode, path.read_bytes())
    folder.durable.update(folder.entries)
    return folder
