"""What a node warns of when it starts: cheap looks at the machine, none of which stops it."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from raftq.api.connections import SPARE, SPARE_LOCAL
from raftq.node.config import Config
from raftq.node.settings import misspelt_variables
from raftq.storage.environment import Environment

FILES_WANTED = 65_536
#: Of the files that may be open: for the data, logs, snapshots and other nodes.
FILES_KEPT = 256
#: Of the rest, what is passed on to the leader may take one in so many.
_FORWARDS_SHARE = 5
#: No clock of today shows an earlier time (2025-01-01).
_CLOCK_MIN = 1_735_689_600
#: File systems on which locks or memory maps are not to be relied on.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"})


def raise_file_limit() -> int:
    """Take as many open files as the system allows, up to FILES_WANTED; the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return FILES_WANTED if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


class Room(NamedTuple):
    connections: int
    forwards: int


def room(config: Config, files_max: int) -> Room:
    """What the API may have, a file each: as the settings say, or less when files are few."""
    files = max(files_max - FILES_KEPT - SPARE - SPARE_LOCAL, 2 * _FORWARDS_SHARE)
    forwards = min(config.forwards_max, max(files - config.connections_max, files // _FORWARDS_SHARE))
    return Room(min(config.connections_max, files - forwards), forwards)


def warnings(config: Config, environment: Environment, environ: Mapping[str, str], files_max: int) -> list[str]:
    """One line each: what is wrong, and what to do."""
    found = [f"{name} names no setting: look at its spelling" for name in misspelt_variables(environ)]
    if (most := room(config, files_max)) != (config.connections_max, config.forwards_max):
        found.append(
            f"only {files_max} files may be open, so connections_max is {most.connections} and forwards_max "
            f"{most.forwards}: raise `ulimit -n`"
        )
    if (free := environment.free_bytes()) < 2 * config.disk_reserve_bytes:
        found.append(
            f"{free >> 20} MiB of disk are free, near the reserve of {config.disk_reserve_bytes >> 20}: make room"
        )
    if time.time() < _CLOCK_MIN:
        found.append("the clock of this machine is years behind: set it")
    if (kind := _file_system(environment.folder)) in _REMOTE:
        found.append(f"{environment.folder} is on a remote file system ({kind}): data may be lost; use a local disk")
    return found


def _file_system(folder: Path) -> str | None:
    """The kind of file system, None where /proc does not tell."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return None
    path = folder.resolve()
    fields = [line.split(" ") for line in mounts.read_text().splitlines()]
    under = [(point, kind) for _, point, kind, *_ in fields if path.is_relative_to(point.replace("\\040", " "))]
    return max(under, key=lambda mount: len(mount[0]), default=("", None))[1]
