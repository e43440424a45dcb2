"""The sidecar of a file on its way: what a process that moves it must know again after it was killed.

One small JSON document beside the file, owned by one process at a time and replaced as a whole: written beside, synced,
renamed, the folder synced. So whoever opens it finds the state before a save or the state after it, never a mixture,
be it after SIGKILL or after a power cut; and when `save` returns, no later crash brings the older state back.

The lock is on the document itself and moves with it: each new one is locked before it takes the name. A process that
locked a document which was just replaced sees that it has another inode than the name, and looks again.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from raftq.client.errors import FileInUse, FileRefused

State = TypeVar("State")

#: How long the nodes keep the first answer to a request that a sidecar may have to repeat.
KEEP_SECONDS = 7 * 86_400
#: How long a sidecar's open request is trusted to be known: less, by more than clocks differ and a request takes.
TRUST_SECONDS = KEEP_SECONDS - 86_400

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Sidecar(Generic[State]):
    """Opened at once. Raises FileInUse, and FileRefused when the document is something else. OSError stays."""

    def __init__(self, path: Path, kind: type[State]) -> None:
        self.path = path
        self._fd = _locked(path)
        try:
            #: What was saved last, None at the first start.
            self.state = _load(path, kind)
        except BaseException:
            self.close()
            raise

    def save(self, state: State) -> None:
        """`state` is durable when this returns."""
        beside = self.path.with_name(self.path.name + ".new")
        # Only the owner of the lock comes here: what has this name was left by an owner that was killed.
        fd = os.open(beside, _FLAGS | os.O_TRUNC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_whole(fd, msgspec.json.encode(state))
            os.fsync(fd)
            beside.rename(self.path)
            sync_folder(self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self.state = fd, state

    def close(self) -> None:
        os.close(self._fd)


def write_whole(fd: int, data: bytes | bytearray) -> None:
    """All of `data` at the position of `fd`: os.write may take less."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_folder(path: Path) -> None:
    """The name `path` is durable when this returns."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, _FLAGS, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError as error:
            os.close(fd)
            raise FileInUse(f"another process has {path} open: wait for it, or stop it") from error
        except FileNotFoundError:
            pass
        os.close(fd)


def _load(path: Path, kind: type[State]) -> State | None:
    data = path.read_bytes()
    if not data:  # made by an owner that was killed before its first save
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        detail = f"{path} is not what this version of raftq wrote ({error})"
        raise FileRefused(f"{detail}: use the version that began, or remove it to begin anew") from error
