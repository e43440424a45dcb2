"""The leader of a cluster of real processes, killed with SIGKILL again and again, and restarted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raftq.node import probe
from raftq.node.local_cluster import LocalCluster

#: Until a killed leader is started again.
DOWN_SECONDS = 0.5


class LeaderKills:
    """While its context lasts: at once, and then every `seconds`, whoever leads is killed."""

    def __init__(self, cluster: LocalCluster, seconds: float) -> None:
        self._cluster, self._seconds = cluster, seconds
        #: Kills so far.
        self.count = 0

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """All nodes run when it ends."""
        over = threading.Event()
        killer = threading.Thread(target=self._kill, args=(over,))
        killer.start()
        try:
            yield
        finally:
            over.set()
            killer.join()

    def _kill(self, over: threading.Event) -> None:
        while True:
            leader = self._leader()
            if leader is not None:
                self._cluster.kill(leader)
                self.count += 1
                over.wait(DOWN_SECONDS)
                self._cluster.start(leader)
            if over.wait(self._seconds):
                return

    def _leader(self) -> str | None:
        for node_id in self._cluster.running:
            answer = probe.cluster(self._cluster.url(node_id))
            if answer and answer["leader"] == node_id:
                return node_id
        return None
