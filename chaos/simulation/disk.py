"""A machine's disk: real LMDB environments in a folder in memory, whose commits take simulated time and can fail.

A transaction is begun and filled at once and committed a moment later, as the writer's thread would: a crash between
the two aborts it, a crash after it leaves it durable with nobody told. A disk that fails ends its node, which never
tries again: the error comes with the batch lost, or with the batch written after all, as an EIO can.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from raftq.chaos.simulation.loop import Scheduler
from raftq.storage.environment import Environment, WriteBatch
from raftq.storage.failures import StorageError, StorageFailed

if TYPE_CHECKING:
    from raftq.storage.reader import Transaction
from raftq.storage.writer import Done, fill

MAP_BYTES: Final = 1 << 28
FREE_BYTES: Final = 1 << 40
_PREFIX: Final = "raftq-simulation-"

#: Where in the life of a process it can be made to crash: before a transaction is begun, while it is not committed,
#: right after its commit, before a message of a cycle leaves, and between the steps of installing a snapshot.
Point = Literal["begin", "filled", "durable", "send", "install"]


class Disk(msgspec.Struct):
    """How the disk of one machine is. It outlives the machine's processes."""

    #: Seconds that a commit takes at least and, rarely, at most.
    seconds_min: float
    seconds_max: float
    slow: float = 1.0
    free_bytes: int = FREE_BYTES
    #: What happens to the next commit.
    failure: Literal["lost", "written"] | None = None
    #: Seconds that the next commit hangs.
    hang: float = 0.0

    def commit_seconds(self, dice: Random) -> float:
        spread = dice.random()
        seconds = self.seconds_min + (self.seconds_max - self.seconds_min) * spread**6
        hang, self.hang = self.hang, 0.0
        return seconds * self.slow + hang


class Process:
    """What a disk or a network tells of the process that uses it: `reach` raises Crashed where it is to end."""

    def reach(self, point: Point) -> None:
        raise NotImplementedError

    def sent(self, target: str, message: dict[str, Any]) -> None:
        """A message leaves."""
        raise NotImplementedError

    def holds(self, again: Callable[[], None]) -> bool:
        """The process is stopped: `again` is called when it goes on."""
        raise NotImplementedError


class SimEnvironment(Environment):
    def __init__(self, folder: Path, disk: Disk, process: Process) -> None:
        self.disk, self.process = disk, process
        super().__init__(folder, map_bytes=MAP_BYTES)

    def free_bytes(self) -> int:
        return self.disk.free_bytes

    def _install_close(self) -> None:
        self.process.reach("install")
        super()._install_close()

    def _install_rename(self, incoming: Path) -> None:
        self.process.reach("install")
        super()._install_rename(incoming)

    def _install_sync(self, incoming: Path) -> None:
        self.process.reach("install")
        super()._install_sync(incoming)

    def _install_open(self) -> None:
        self.process.reach("install")
        super()._install_open()


class SimWriter:
    """The writer without its thread."""

    def __init__(self, environment: SimEnvironment, scheduler: Scheduler, dice: Random) -> None:
        self._environment = environment
        self._disk, self._process = environment.disk, environment.process
        self._scheduler, self._dice = scheduler, dice
        self._pending: tuple[Transaction, Done] | None = None
        self.failure: StorageError | None = None
        self.commits = 0
        self.seconds = 0.0
        self.last_seconds = 0.0

    def commit(self, batch: WriteBatch, done: Done) -> None:
        assert self._pending is None, "a commit is running"
        self._process.reach("begin")
        seconds = self._disk.commit_seconds(self._dice)
        try:
            if self.failure is not None:
                raise self.failure
            txn = fill(self._environment, batch)
        except StorageError as error:
            self._fail(error, done)
            return
        self._pending = (txn, done)
        self.last_seconds = seconds
        self.seconds += seconds
        self._process.reach("filled")
        self._scheduler.after(seconds, self._land)

    def write(self, batch: WriteBatch) -> None:
        fill(self._environment, batch).commit()
        self.commits += 1

    def close(self) -> None:
        """Finish what was given."""
        self._land()

    def abandon(self) -> None:
        """The process is gone, and what it has not committed never was."""
        if self._pending is not None:
            self._pending[0].abort()
            self._pending = None

    def _land(self) -> None:
        if self._pending is None or self._process.holds(self._land):
            return
        (txn, done), self._pending = self._pending, None
        failure, self._disk.failure = self._disk.failure, None
        if failure == "lost":
            txn.abort()
        else:
            txn.commit()
            self.commits += 1
        if failure is not None:
            self._fail(StorageFailed(f"{self._environment.folder}: commit failed: the disk is full, or broken"), done)
            return
        self._process.reach("durable")
        self._scheduler.after(self._dice.random() * 1e-4, done, None)

    def _fail(self, error: StorageError, done: Done) -> None:
        self.failure = self.failure or error
        self._scheduler.after(self._dice.random() * 1e-4, done, self.failure)


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """For the data of one run. What processes left that were killed in the midst of one is deleted."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for left in where.glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=where)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
