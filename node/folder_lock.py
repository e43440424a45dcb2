"""One process to a folder: an advisory lock on the folder itself, which ends with the process, however that ends.

The environment of a node locks its data folder in the same way, so that `is_held` tells of both.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FolderInUse(Exception):
    """Another process holds the lock."""


class FolderLock:
    def __init__(self, folder: Path) -> None:
        """Holds `folder`, which is made when it is not there, until `release`. Raises FolderInUse and OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise FolderInUse(f"another process holds {folder}") from error

    def release(self) -> None:
        os.close(self._descriptor)


def is_held(folder: Path) -> bool:
    """Whether some process holds `folder` now."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
