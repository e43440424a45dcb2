"""One `raftq node` as a child process: its command line, its log, its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from raftq.node.cluster_file import LocalClusterState, LocalNode

_LOG_BYTES_MAX = 64 << 20
_TAIL_BYTES = 64 << 10
#: Of the commands that talk to a cluster. A node needs no token, and its environment can be read in /proc.
_KEPT_BACK = frozenset(("RAFTQ_TOKEN", "RAFTQ_CA"))


def spawn(state: LocalClusterState, node: LocalNode, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts `node`, in a process group of its own: Ctrl-C at the terminal reaches the parent alone. It stops when its
    standard input closes, as it does when the parent ends, however that ends."""
    with _log(Path(node.log)) as log:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "raftq.cli", "node", *_settings(state, node), *flags],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
            env={name: value for name, value in os.environ.items() if name not in _KEPT_BACK},
        )


def last_line(node: LocalNode) -> str:
    """What the node said last."""
    with Path(node.log).open("rb") as log:
        log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
        lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _settings(state: LocalClusterState, node: LocalNode) -> list[str]:
    """Of the members only those that the cluster began with, but to one that joins."""
    begun = [each for each in state.nodes if node.joins or not each.joins]
    members = ",".join(f"{each.id}={each.peer_address}" for each in begun)
    settings = {
        "node-id": node.id,
        "cluster-id": state.cluster_id,
        "data": node.data,
        "members": members,
        "api-listen": urlsplit(node.api_url).netloc,
        "peer-listen": node.peer_address,
        "log-format": "logfmt",
    }
    switches = ["--until-stdin-closes", *(["--join"] if node.joins and len(state.nodes) > 1 else [])]
    return [*switches, *(f"--{name}={value}" for name, value in settings.items())]


def _log(path: Path) -> IO[bytes]:
    """Open to append; a large one is put aside first, as `.1`."""
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")
