"""Data folders that no node runs on, and how what goes wrong with one ends a process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raftq.node.exits import Exit, Fatal
from raftq.storage.environment import Environment, EnvironmentUnusable
from raftq.storage.failures import EnvironmentBusy, EnvironmentDamaged, StorageError
from raftq.storage.snapshot import SnapshotError

#: With less than this free a disk counts as full: a commit may need as much.
FREE_BYTES_MIN = 1 << 20


@contextmanager
def opened(folder: Path) -> Iterator[Environment]:
    """The environment of a node that does not run. Raises Fatal, also for what goes wrong with it in the block."""
    if not (folder / "data.mdb").exists():
        raise Fatal(Exit.USAGE, f"{folder} is not the data folder of a node: it holds no data.mdb")
    with fatal(folder):
        environment = Environment(folder)
        try:
            yield environment
        finally:
            environment.close()


@contextmanager
def fatal(folder: Path) -> Iterator[None]:
    """Raises Fatal for what goes wrong with `folder`, or with a snapshot."""
    try:
        yield
    except StorageError as error:
        line = str(error)
        raise Fatal(exit_of(error, folder), line if str(folder) in line else f"{folder}: {line}") from error
    except SnapshotError as error:
        raise Fatal(Exit.FILE_REFUSED, str(error)) from error


def exit_of(error: StorageError, folder: Path) -> Exit:
    match error:
        case EnvironmentBusy():
            return Exit.FOLDER_IN_USE
        case EnvironmentDamaged():
            return Exit.DAMAGED
        case EnvironmentUnusable():
            return Exit.CONFIG
        case _:  # LMDB tells of a full disk as an input/output error when a write was cut short
            return Exit.DISK_FULL if shutil.disk_usage(folder).free < FREE_BYTES_MIN else Exit.COMMIT_FAILED
