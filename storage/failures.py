"""What can go wrong with a node's data on disk, and where LMDB's errors become one of these.

Nothing of LMDB's own errors is seen beyond `storage/`. Each of these ends the process: none is retried, and none is
answered by deleting, truncating or skipping anything.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb


class StorageError(Exception):
    """Base of what ends a node because of its data folder. The text is one line that says which folder and why."""


class EnvironmentDamaged(StorageError):
    """The data was read and is not what was written, or is not ours. Restore the node, or rejoin it as a new one."""


class EnvironmentBusy(StorageError):
    """Another live process, or another object of this one, has the folder open."""


class EnvironmentUnusable(StorageError):
    """The folder cannot be used here: permissions, the file system, or the limit of address space."""


class StorageFailed(StorageError):
    """A commit failed: the disk is full, or it does not work. Memory is ahead of the disk, so the process must end."""


#: LMDB's errors that say that the bytes on disk make no sense.
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PanicError,
    lmdb.IncompatibleError,
    lmdb.BadDbiError,
)

#: LMDB reports a short write as EIO.
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit of this process is reached",
    errno.EIO: "the disk reports an input/output error, or it or the file size limit is full",
    errno.EROFS: "the file system is read-only",
}


@contextmanager
def reading(what: str) -> Iterator[None]:
    """LMDB's errors in the block become EnvironmentDamaged, or StorageFailed when the disk cannot be read."""
    try:
        yield
    except lmdb.Error as exc:
        raise read_failure(what, exc) from exc


def read_failure(what: str, exc: lmdb.Error) -> StorageError:
    if isinstance(exc, _DAMAGE):
        return EnvironmentDamaged(f"{what} is damaged: {exc}")
    return StorageFailed(f"{what} cannot be read: {exc}")


def open_failure(folder: Path, exc: OSError | lmdb.Error) -> StorageError:
    """Why the data in `folder` cannot be opened."""
    code = exc.errno if isinstance(exc, OSError) else exc.code
    if isinstance(exc, lmdb.Error) and isinstance(exc, _DAMAGE):
        return EnvironmentDamaged(f"{folder}: the data is damaged, or not of raftq: {exc}")
    if code in (errno.EACCES, errno.EPERM):
        return EnvironmentUnusable(f"{folder}: no permission to read and write the data here (user id {os.geteuid()})")
    if code == errno.ENOMEM:
        return EnvironmentUnusable(f"{folder}: the system refuses the address space for the map; raise `ulimit -v`")
    if code in _FULL:
        return StorageFailed(f"{folder}: cannot be opened: {_FULL[code]}")
    return EnvironmentUnusable(f"{folder}: cannot be used for data, try a local file system: {exc}")


def commit_failure(folder: Path, exc: BaseException, what: str = "commit") -> StorageError:
    """Why a write to the environment in `folder` did not reach the disk."""
    if isinstance(exc, StorageError):
        return exc
    if isinstance(exc, _DAMAGE):
        return EnvironmentDamaged(f"{folder}: the data is damaged, found by a commit: {exc}")
    if isinstance(exc, lmdb.MapFullError):
        return StorageFailed(f"{folder}: {what} failed: the map is full")
    code = exc.code if isinstance(exc, lmdb.Error) else exc.errno if isinstance(exc, OSError) else None
    return StorageFailed(f"{folder}: {what} failed: {_FULL.get(code or 0) or repr(exc)}")
