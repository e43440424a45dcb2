"""Files that only their owner, or the owner's group, may read: private keys and the secret of a cluster.

A secret that everybody on the machine can read is none, so such a file is refused, by name and with the remedy.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

SECRET_BYTES_MIN = 32
SECRET_BYTES_MAX = 4096


class Unusable(Exception):
    """The file cannot be used. Says which, why, and what to do; never what is in it."""


def read(path: Path, setting: str) -> bytes:
    """What the file holds. Raises Unusable when it cannot be read, or others can read or change it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IROTH | stat.S_IWOTH):
                raise Unusable(f"{setting}: anybody on this machine can read or change {path}: chmod 600 {path}")
            return file.read()
    except OSError as error:
        raise Unusable(f"{setting}: cannot read {path}: {error.strerror}") from error


def secret(path: Path, setting: str) -> bytes:
    """The secret in the file, without blanks around it. Raises Unusable."""
    found = read(path, setting).strip()
    if not SECRET_BYTES_MIN <= len(found) <= SECRET_BYTES_MAX:
        wanted = f"{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes"
        raise Unusable(f"{setting}: {path} holds {len(found)} bytes, and a secret has {wanted}: raftq secret new FILE")
    return found


def write(path: Path, data: bytes) -> None:
    """A new file for its owner alone; whole or not there, whenever the process dies. Raises OSError, also when there
    is one already."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, so that it never had another mode
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)  # unlike a rename it takes the place of nothing
    finally:
        beside.unlink()
