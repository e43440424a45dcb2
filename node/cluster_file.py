"""`cluster.json`: what runs where in a cluster of local processes, for scripts and the commands that change it.

A reader always finds a whole file: it is written beside and renamed. Writers (the supervisor, `raftq kill`, `raftq
cluster add`) change it under a lock, from what it holds at that moment, so that neither undoes the other's change. The
supervisor sees to it that what runs is what the file says.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from raftq.node.exits import Exit, Fatal


class LocalNode(msgspec.Struct):
    id: str
    api_url: str
    peer_address: str
    #: The process, None while there is none.
    pid: int | None
    #: Its data folder.
    data: str
    #: Its log, appended to at each start.
    log: str
    #: Set by `raftq kill`: the supervisor leaves it alone until `raftq start`.
    kept_down: bool = False
    #: It did not begin with the cluster: an empty folder waits to be added (`--join`).
    joins: bool = False
    #: Once the cluster has no such member any more, the supervisor stops it and drops it from the file.
    leaves: bool = False


class LocalClusterState(msgspec.Struct):
    cluster_id: str
    nodes: list[LocalNode]
    #: It has certificates, a secret and tokens, in the folder `secure` beside this file.
    secure: bool = False

    def node(self, node_id: str) -> LocalNode:
        """Raises Fatal when there is none of that name."""
        if (found := self.find(node_id)) is None:
            names = ", ".join(node.id for node in self.nodes)
            raise Fatal(Exit.USAGE, f"there is no node {node_id}: the cluster has {names}")
        return found

    def find(self, node_id: str) -> LocalNode | None:
        return next((node for node in self.nodes if node.id == node_id), None)


class ClusterFile:
    """The `cluster.json` of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cluster.json"
        self._lock = folder / "cluster.json.lock"

    def read(self) -> LocalClusterState | None:
        """None when there is no cluster. Raises Fatal when the file is something else."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=LocalClusterState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise Fatal(Exit.CONFIG, f"{self.path} cannot be used: {error}") from error

    def create(self, state: LocalClusterState) -> None:
        with self._locked():
            self._replace(state)

    @contextmanager
    def change(self) -> Iterator[LocalClusterState]:
        """The state, to be changed in place; written when the block ends without an exception."""
        with self._locked():
            state = self.read()
            assert state is not None, f"{self.path} is gone"
            before = msgspec.json.encode(state)
            yield state
            if msgspec.json.encode(state) != before:
                self._replace(state)

    def _replace(self, state: LocalClusterState) -> None:
        beside = self.path.with_suffix(".json.new")
        with beside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.rename(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
