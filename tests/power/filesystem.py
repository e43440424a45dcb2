"""A file system whose power can be cut, as a process of its own: `python -m tests.power.filesystem MOUNT SAVED`.

It holds a `Disk` in memory, loaded from the folder SAVED, and serves it at MOUNT through FUSE until its standard input
closes. `AFTER SURVIVES SEED TO` on standard input cuts the power: before the AFTERth change from now it stops answering
for good, and says `cut`; then it writes what a disk would hold to the folder TO, and says how much was not synced.
`record TO` cuts nothing: from now on, before each change, what some cuts there would leave is written to folders in TO.

Nothing is synced but by fsync, fdatasync and writes through descriptors opened with O_SYNC or O_DSYNC. The kernel's
page cache lies in front, written through, so that memory maps and writes agree.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.power.disk import SECTOR, Disk, File, Folder, Inode

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
import mfusepy  # loads the library that is named above

NAME = "raftq-power"
#: What is said to be free.
FREE_BYTES = 64 << 30


class Cut(NamedTuple):
    """See `Mount.cut`."""

    after: int
    survives: float
    seed: int
    to: Path


#: How much survives, of each cut that is recorded.
_RECORDED = (0.0, 0.3, 0.6, 0.9)


class Handle(NamedTuple):
    inode: Inode
    #: Each write through it is synced.
    synced: bool


class Fuse(mfusepy.FUSE):
    def truncate_fuse_3(self, path: bytes | None, length: int, info: Any) -> int:
        """With the descriptor, which mfusepy leaves out: an open file may have no path."""
        return self.ftruncate(path, length, info)


class FileSystem(mfusepy.Operations):
    use_ns = True

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        #: The cut that is to come.
        self.cut: Cut | None = None
        self.record: Path | None = None
        self._recorded = 0
        self._handles: dict[int, Handle] = {}
        self._opened = 0

    def _changes(self) -> None:
        """Called before every change, by the one thread that serves; a cut ends it here."""
        if self.cut is not None:
            self.cut = self.cut._replace(after=self.cut.after - 1)
            if self.cut.after == 0:
                self._lose_power(self.cut)
        if self.record is not None:
            self._recorded += 1
            for survives in _RECORDED:
                found = self.disk.cut(survives, random.Random(self._recorded))
                found.save(self.record / f"{self._recorded:03}-{survives}")

    def _lose_power(self, cut: Cut) -> NoReturn:
        try:
            print("cut", flush=True)
            sectors, names = self.disk.unsynced
            self.disk.cut(cut.survives, random.Random(cut.seed)).save(cut.to)
            print(f"{sectors} sectors, {names} names", flush=True)
            while True:
                signal.pause()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def init_with_config(self, _connection: Any, config: Any) -> None:
        config.kernel_cache = 1  # all changes come through the kernel
        config.hard_remove = 1  # a file that is open goes on without a name, not under another
        config.nullpath_ok = 1

    # Names

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        inode = self._inode(path, fh)
        size = len(inode.data) if isinstance(inode, File) else 0
        owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        return {"st_mode": inode.mode, "st_nlink": 1, "st_size": size, "st_blocks": -(-size // SECTOR)} | owner

    def opendir(self, path: str) -> int:
        return self._open(self.disk.folder(path), 0)

    def readdir(self, _path: str | None, fh: int) -> list[str]:
        return [".", "..", *self._folder(fh).entries]

    def fsyncdir(self, _path: str | None, _datasync: int, fh: int) -> int:
        self._changes()
        self.disk.sync_folder(self._folder(fh))
        return 0

    def releasedir(self, _path: str | None, fh: int) -> int:
        return self.release(None, fh)

    def mkdir(self, path: str, mode: int) -> int:
        self._changes()
        self.disk.mkdir(path, mode)
        return 0

    def unlink(self, path: str) -> int:
        self._changes()
        self.disk.unlink(path)
        return 0

    def rmdir(self, path: str) -> int:
        self._changes()
        self.disk.rmdir(path)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._changes()
        self.disk.rename(old, new)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        inode = self.disk.find(path)
        inode.mode = type(inode)(mode).mode
        return 0

    def utimens(self, path: str, _times: tuple[int, int] | None = None) -> int:
        self.disk.find(path)
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        blocks = FREE_BYTES // 4096
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": blocks, "f_bfree": blocks, "f_bavail": blocks}

    # Files

    def create(self, path: str, mode: int, flags: int) -> int:
        self._changes()
        return self._open(self.disk.create(path, mode), flags)

    def open(self, path: str, flags: int) -> int:
        file = self._file(path, None)
        if flags & os.O_TRUNC:
            self._changes()
            file.truncate(0)
        return self._open(file, flags)

    def read(self, _path: str | None, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._file(None, fh).data[offset : offset + size])

    def write(self, _path: str | None, data: bytes, offset: int, fh: int) -> int:
        self._changes()
        file = self._file(None, fh)
        file.write(offset, data)
        if self._handles[fh].synced:
            file.sync_range(offset, offset + len(data))
        return len(data)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        self._changes()
        self._file(path, fh).truncate(length)
        return 0

    def fsync(self, _path: str | None, _datasync: int, fh: int) -> int:
        self._changes()
        if not self._handles[fh].synced:  # else it is the kernel's own, after each write, and means that write alone
            self._file(None, fh).sync()
        return 0

    def release(self, _path: str | None, fh: int) -> int:
        del self._handles[fh]
        return 0

    def _open(self, inode: Inode, flags: int) -> int:
        self._opened += 1
        self._handles[self._opened] = Handle(inode, synced=bool(flags & os.O_DSYNC))  # a bit of O_SYNC too
        return self._opened

    def _inode(self, path: str | None, fh: int | None) -> Inode:
        if fh in self._handles:
            return self._handles[fh].inode
        assert path is not None
        return self.disk.find(path)

    def _file(self, path: str | None, fh: int | None) -> File:
        inode = self._inode(path, fh)
        if isinstance(inode, Folder):
            raise IsADirectoryError(21, path)
        return inode

    def _folder(self, fh: int) -> Folder:
        inode = self._handles[fh].inode
        assert isinstance(inode, Folder)
        return inode


def _obey(system: FileSystem, mount: str) -> None:
    """What standard input says, until it closes, as it does when the parent ends, however that ends."""
    try:
        for line in sys.stdin:
            if line.startswith("record "):
                system.record = Path(line.rstrip("\n").removeprefix("record "))
                print("recording", flush=True)
                continue
            after, survives, seed, to = line.rstrip("\n").split(" ", 3)
            system.cut = Cut(int(after), float(survives), int(seed), Path(to))
    finally:
        os.spawnlp(os.P_NOWAIT, "fusermount3", "fusermount3", "-u", "-z", "-q", mount)
        os._exit(0)


def main() -> None:
    mount, saved = sys.argv[1:]
    system = FileSystem(Disk.load(Path(saved)))
    threading.Thread(target=_obey, args=(system, mount), daemon=True).start()
    Fuse(system, mount, foreground=True, nothreads=True, fsname=NAME, default_permissions=True)


if __name__ == "__main__":
    main()
