"""Rounds of power cuts: the data of three nodes, which are real processes under load, lies on a file system that
forgets what was not synced. In each round it stops at a seeded moment, between any two of its changes, and the nodes
are killed; then all are started again. Each message that was acknowledged must be there, once, and the nodes be equal.

As a script, by hand or by `make power`: `python -m tests.power.rounds --rounds 20`. It ends with the proof that the
rounds bite: nodes that sync nothing, and nodes that sync all but LMDB's meta pages, are found to lose messages.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raftq.node.exits import Fatal
from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first
from raftq.storage.environment import Environment
from raftq.storage.verify import verify
from tests.cluster.client import ask
from tests.cluster.load import Load, Lost
from tests.power.mount import Mount, why_not

#: What nodes may be made to sync, which is too little.
TOO_LITTLE = ("nothing", "data")

_UNSYNCED = str(Path(__file__).parent / "unsynced")
#: How likely the power fails once more while the nodes start.
_AGAIN = 0.25


class Damaged(AssertionError):
    """A node could not go on with what the power cut left."""


def syncing(what: str) -> dict[str, str]:
    """The environment variables of nodes that sync only this."""
    return {"PYTHONPATH": _UNSYNCED, "LMDB_SYNCS": what}


class Rounds:
    def __init__(self, folder: Path, mount: Mount, *, seed: int, patience_seconds: float = 60.0) -> None:
        self.mount, self._rng = mount, random.Random(seed)
        self.cluster = LocalCluster(folder / "cluster", size=3, port=free_first(3, PEER_PORTS))
        with self.cluster.file.change() as state:
            for node in state.nodes:
                node.data = str(mount.point / node.id)
        urls = [node.api_url for node in self.cluster.nodes]
        self.load = Load(urls, seed=seed, patience_seconds=patience_seconds)

    def begin(self) -> None:
        self.mount.mount()
        self.cluster.start_all()
        self._wait_ready()

    def round(self) -> str:
        """What happened, in words. Raises Lost or Damaged."""
        before = len(self.load.enqueued)
        self.load.start()
        try:
            self.load.wait_for(self._rng.randint(20, 200))
            unsynced = [self._cut(within=100)]
            acknowledged = len(self.load.enqueued) - before
            while self._rng.random() < _AGAIN:
                unsynced.append(self._cut(within=20))
            self._wait_ready()
        finally:
            self.load.end()
        self._check()
        return f"{acknowledged} messages acknowledged, not synced at the cut: {', then '.join(unsynced)}; all there"

    def _cut(self, *, within: int) -> str:
        """All nodes at once, at one of the next changes on disk, and start them again. How much was not synced."""
        survives = self._rng.choice((0.0, self._rng.random()))
        self.mount.cut(after=self._rng.randint(1, within), survives=survives, seed=self._rng.randrange(1 << 32))
        for node in self.cluster.running:
            self.cluster.signal(node, signal.SIGKILL)
        unsynced = self.mount.settle()  # only now what waits for the file system can end
        for node in self.cluster.running:
            self.cluster.kill(node)
        self.mount.mount()
        self.cluster.start_all()
        return unsynced

    def _wait_ready(self) -> None:
        try:
            self.cluster.wait_ready()
        except Fatal as error:
            raise Damaged(str(error)) from error

    def _check(self) -> None:
        for ended in self.cluster.ended():
            raise Damaged(f"{ended.node} ended: {ended.last_line}")
        self.load.check()
        assert self.load.failed == []
        digests = ask("GET", f"{self.cluster.url('n1')}/v1/cluster/digest").json()["nodes"]
        assert len(digests) == 3, digests
        assert len(set(digests.values())) == 1, digests

    def end(self) -> None:
        """Stops the nodes; all that is on their disks is in order."""
        assert self.cluster.stop() == []
        for node in self.cluster.nodes:
            environment = Environment(Path(node.data))
            try:
                verify(environment)
            finally:
                environment.close()

    def close(self) -> None:
        self.load.end()
        self.cluster.close(seconds=5)
        self.mount.close()


@contextmanager
def rounds(folder: Path, *, seed: int, patience_seconds: float = 60.0) -> Iterator[Rounds]:
    """With the file system mounted and the nodes ready; nothing is left of either afterwards."""
    with Mount(folder / "disk") as mount:
        made = Rounds(folder, mount, seed=seed, patience_seconds=patience_seconds)
        try:
            made.begin()
            yield made
        finally:
            made.close()


def until_found(folder: Path, count: int, *, seed: int) -> str:
    """Which round found that the nodes do not sync, and by what. Raises AssertionError when none of `count` did."""
    with rounds(folder, seed=seed, patience_seconds=10.0) as made:
        for number in range(1, count + 1):
            try:
                made.round()
            except (Lost, Damaged) as found:
                return f"found in round {number}, of {len(made.load.enqueued)} acknowledged messages: {found}"
    raise AssertionError(f"{count} rounds, and nothing was lost")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    given = parser.parse_args()
    if (why := why_not()) is not None:
        print(f"the power cannot be cut here: {why}", file=sys.stderr)
        return 1
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="raftq-power-") as name:
        folder = Path(name)
        with rounds(folder / "synced", seed=given.seed) as made:
            for number in range(1, given.rounds + 1):
                print(f"round {number}: {made.round()}", flush=True)
            made.end()
            print(f"{given.rounds} rounds, {len(made.load.enqueued)} messages acknowledged, none lost")
        for what in TOO_LITTLE:
            os.environ.update(syncing(what))
            print(f"syncing {what}: {until_found(folder / what, given.rounds, seed=given.seed)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
