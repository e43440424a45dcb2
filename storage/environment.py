"""The LMDB environment of one shard's data: the only thing on disk.

It owns the folder, its lock, the three tables (`log`: entries by index, `meta`: small named values, `tables`: the
machine's records) and all reading of them; `writer` alone writes. Durable with LMDB's default sync. The map is huge and
sparse from the start, and never grows. Invariant: every value read was checked against its checksum; damage raises
EnvironmentDamaged, and is never answered by truncating, skipping or starting anew.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec

from raftq.storage.checksums import seal, unseal
from raftq.storage.failures import (
    EnvironmentBusy,
    EnvironmentDamaged,
    EnvironmentUnusable,
    StorageError,
    StorageFailed,
    commit_failure,
    open_failure,
    reading,
)
from raftq.storage.reader import Snapshot

if TYPE_CHECKING:
    from raftq.storage.reader import Transaction

__all__ = [
    "Environment",
    "EnvironmentBusy",
    "EnvironmentDamaged",
    "EnvironmentUnusable",
    "Snapshot",
    "StorageError",
    "StorageFailed",
    "WriteBatch",
]

#: Version of the layout on disk. A folder of a newer one is refused.
FORMAT_VERSION = 1

MAP_BYTES = 1 << 40

#: Integers on disk are u64, big-endian, so that keys sort as numbers.
_U64 = struct.Struct(">Q")
u64 = _U64.pack


def from_u64(data: bytes) -> int:
    """Raises struct.error for anything but 8 bytes."""
    return int(_U64.unpack(data)[0])


#: What "applied" in meta is before the first commit.
APPLIED_FIRST = 1

#: What stands in a log for the entries that a snapshot replaced: pysyncobj's NO_OP.
BOUNDARY = b"\x01"

_DATA, _LOCK = "data.mdb", "lock.mdb"
_TABLES = (b"log", b"meta", b"tables")


class WriteBatch(msgspec.Struct):
    """What one write transaction does, in the order of the fields. All of it becomes durable, or none."""

    #: Delete the log entries with this index and above.
    truncate_from: int | None = None
    #: (index, term, command), each index one above the last in the log.
    entries: list[tuple[int, int, bytes]] = []
    #: Delete the log entries below this index.
    compact_below: int | None = None
    meta: dict[str, bytes] = {}
    #: (key, value or None to delete), sorted, no key twice.
    tables: list[tuple[bytes, bytes | None]] = []


class Environment:
    """Raises StorageError (EnvironmentBusy, -Damaged, -Unusable, StorageFailed) when the folder cannot be opened."""

    def __init__(self, folder: Path, *, map_bytes: int = MAP_BYTES) -> None:
        self.folder = folder
        #: Where an environment is made that is to take the place of this one. What an interruption left is deleted.
        self.incoming = folder / "incoming"
        self._map_bytes = map_bytes
        try:
            _create_folder(folder)
            self._lock = _lock(folder)
        except OSError as exc:
            raise open_failure(folder, exc) from exc
        try:
            self._open()
        except (OSError, lmdb.Error) as exc:
            os.close(self._lock)
            raise open_failure(folder, exc) from exc
        except StorageError:
            self.close()
            raise

    def _open(self) -> None:
        self._lmdb = lmdb.open(
            str(self.folder), map_size=self._map_bytes, max_dbs=len(_TABLES), max_spare_txns=1, mode=0o600
        )
        self._lmdb.reader_check()
        self._page_bytes = self._lmdb.stat()["psize"]
        self._check_size()
        with reading(str(self.folder)):
            self._open_tables()
        discard(self.incoming)
        sync_folder(self.folder)

    def _check_size(self) -> None:
        """A file that was cut would end the process with SIGBUS at the first read beyond its end."""
        stated = (self._lmdb.info()["last_pgno"] + 1) * self._page_bytes
        if (found := self._file().st_size) < stated:
            raise EnvironmentDamaged(f"{self.folder}: data.mdb has {found} bytes of {stated}")

    def _open_tables(self) -> None:
        """Open the three tables, or make them and the format version in one transaction."""
        with self._lmdb.begin() as txn:
            found = set(self._lmdb.dbs(txn))
        if (found and found != set(_TABLES)) or self._lmdb.stat()["entries"] != len(found):
            raise EnvironmentDamaged(f"{self.folder}: holds other data than the tables of raftq")
        with self._lmdb.begin(write=True) as txn:  # a read transaction would forget the handles
            self.log, self.named, self.tables = (self._lmdb.open_db(name, txn, create=not found) for name in _TABLES)
            if not found:
                txn.put(b"format", seal(b"format", u64(FORMAT_VERSION)), db=self.named)
        self._check_format()

    def _check_format(self) -> None:
        stored = self.meta("format")
        if stored is None:
            raise EnvironmentDamaged(f"{self.folder}: states no format version")
        if (version := from_u64(stored)) != FORMAT_VERSION:
            raise EnvironmentDamaged(
                f"{self.folder}: has format {version}, this raftq knows {FORMAT_VERSION}: start it with the newer one"
            )

    def close(self) -> None:
        """Close readers and the writer first."""
        self._lmdb.close()
        os.close(self._lock)

    def install(
        self,
        incoming: Path,
        meta: dict[str, bytes],
        boundary: tuple[int, int],
        entries: Sequence[tuple[int, int, bytes]] = (),
    ) -> None:
        """Put the environment in the folder `incoming`, which a snapshot was loaded into, in the place of this one.

        It gets the named values `meta`, and a log of the `boundary` (index, term) and of `entries` after it. Close
        readers and the writer first. A crash at any point leaves this environment or the new one, whole. Raises
        StorageError; then the process must end."""
        assert from_u64(meta["applied"]) == boundary[0], "the tables are of another index than the boundary"
        assert not self._read(), "somebody still reads the environment"
        try:
            self._install_complete(incoming, meta, [(*boundary, BOUNDARY), *entries])
            self._install_close()
            self._install_rename(incoming)
            self._install_sync(incoming)
            self._install_open()
        except (OSError, lmdb.Error) as exc:
            raise commit_failure(self.folder, exc, "installing a snapshot") from exc

    # The steps of `install`, for a simulator to crash between them

    def _install_complete(self, incoming: Path, meta: dict[str, bytes], entries: list[tuple[int, int, bytes]]) -> None:
        """One transaction, durable before anything is renamed."""
        environment = Environment(incoming)
        try:
            assert environment.log_bounds() is None
            with environment.begin_write() as txn:
                for name, value in meta.items():
                    txn.put(name.encode(), seal(name.encode(), value), db=environment.named)
                for index, term, command in entries:
                    txn.put(u64(index), seal(u64(index), u64(term) + command), db=environment.log, append=True)
        finally:
            environment.close()

    def _install_close(self) -> None:
        """The folder stays locked."""
        self._lmdb.close()

    def _install_rename(self, incoming: Path) -> None:
        """From here on this is the new environment. LMDB's lock file counts the transactions of the old one."""
        (self.folder / _LOCK).unlink(missing_ok=True)
        (incoming / _DATA).rename(self.folder / _DATA)

    def _install_sync(self, incoming: Path) -> None:
        sync_folder(self.folder)
        sync_folder(incoming)

    def _install_open(self) -> None:
        self._open()

    def _read(self) -> bool:
        """A read transaction of this process is open, in any thread."""
        readers = [line.split() for line in self._lmdb.readers().splitlines()[1:]]
        return any(pid == str(os.getpid()) and txn != "-" for pid, _thread, txn in readers)

    def begin_read(self) -> Transaction:
        """A read transaction of `tables`. Short, or renewed: it keeps old pages from being used again."""
        with reading(str(self.folder)):
            return self._lmdb.begin(self.tables)

    def begin_write(self) -> Transaction:
        """For the writer: commit it in the thread that began it."""
        return self._lmdb.begin(write=True)

    def snapshot(self) -> Snapshot:
        return Snapshot(self)

    def meta(self, name: str) -> bytes | None:
        with self.begin_read() as txn:
            return self.meta_in(txn, name)

    def metas(self) -> dict[str, bytes]:
        """All named values, but the format."""
        with reading("table 'meta'"), self.begin_read() as txn:
            found = {bytes(key).decode(): unseal("meta", key, stored) for key, stored in txn.cursor(self.named)}
        del found["format"]
        return found

    def meta_in(self, txn: Transaction, name: str) -> bytes | None:
        """The named value as `txn` sees it."""
        with reading(f"table 'meta' at {name!r}"):
            stored = txn.get(name.encode(), db=self.named)
        return None if stored is None else unseal("meta", name.encode(), stored)

    def applied(self, txn: Transaction | None = None) -> int:
        """The index of the last entry whose changes `tables` holds, as `txn` sees it."""
        stored = self.meta("applied") if txn is None else self.meta_in(txn, "applied")
        return APPLIED_FIRST if stored is None else from_u64(stored)

    def log_bounds(self) -> tuple[int, int] | None:
        """The first and the last index of the log, None when it is empty."""
        with reading("table 'log'"), self._lmdb.begin(self.log) as txn:
            cursor = txn.cursor()
            if not cursor.first():
                return None
            first = _index(cursor.key())
            cursor.last()
            last = _index(cursor.key())
            found = txn.stat(self.log)["entries"]
        if found != last - first + 1:
            raise EnvironmentDamaged(f"table 'log' is damaged: {found} entries from index {first} to {last}")
        return first, last

    def log_entries(self, first: int, bytes_max: int, count_max: int) -> list[tuple[bytes, int, int]]:
        """(command, index, term) from index `first`, which must be in the log, on: at least one, then as many as both
        limits allow."""
        entries: list[tuple[bytes, int, int]] = []
        with reading("table 'log'"), self._lmdb.begin(self.log) as txn:
            cursor = txn.cursor()
            found = cursor.set_range(u64(first))
            while found and len(entries) < count_max:
                entry = _entry(first + len(entries), *cursor.item())
                bytes_max -= len(entry[0])
                if bytes_max < 0 and entries:
                    break
                entries.append(entry)
                found = cursor.next()
        if count_max > 0 and not entries:
            raise EnvironmentDamaged(f"table 'log' is damaged: no entry at index {first}")
        return entries

    def log_term(self, txn: Transaction, index: int) -> int | None:
        """The term of the entry at `index` as `txn` sees it, None when the log does not hold it."""
        with reading("table 'log'"):
            stored = txn.get(u64(index), db=self.log)
        return None if stored is None else from_u64(unseal("log", u64(index), stored)[:8])

    def log_bytes(self) -> int:
        """The bytes of the pages that the log takes."""
        return self._table_bytes("log", self.log)

    def tables_bytes(self) -> int:
        """The bytes of the pages that the machine's records take."""
        return self._table_bytes("tables", self.tables)

    def _table_bytes(self, name: str, table: Any) -> int:
        with reading(f"table {name!r}"), self._lmdb.begin(table) as txn:
            stat = txn.stat(table)
        return self._page_bytes * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

    def free_bytes(self) -> int:
        """Of the file system, for this user."""
        stat = os.statvfs(self.folder)
        return stat.f_bavail * stat.f_frsize

    def used_bytes(self) -> int:
        """On disk, free pages in the file included: it never shrinks, but they are used again."""
        return self._file().st_blocks * 512

    def _file(self) -> os.stat_result:
        return (self.folder / _DATA).stat()


def discard(folder: Path) -> None:
    """Delete an environment that was made to be installed: its two files and their folder, and nothing else."""
    if folder.is_dir():
        (folder / _DATA).unlink(missing_ok=True)
        (folder / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def _index(key: bytes) -> int:
    if len(key) != 8:
        raise EnvironmentDamaged(f"table 'log' is damaged: it has the key {key.hex()}")
    return int.from_bytes(key, "big")


def _entry(index: int, key: bytes, stored: bytes) -> tuple[bytes, int, int]:
    if _index(key) != index:
        raise EnvironmentDamaged(f"table 'log' is damaged: index {_index(key)} where {index} should be")
    value = unseal("log", key, stored)
    return value[8:], index, _U64.unpack_from(value)[0]


def _create_folder(folder: Path, mode: int = 0o700) -> None:
    """With the folders above it that are missing, each of them synced."""
    if folder.is_dir():
        return
    _create_folder(folder.parent, mode=0o777)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    """The descriptor of the folder, locked until it is closed: LMDB itself would let a second process write."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise EnvironmentBusy(f"{folder} is open in another process: stop that one first") from exc
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
