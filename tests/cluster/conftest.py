"""Clusters of real processes on free ports, each in a folder of its own that pytest keeps for a while.

A test that ends with a cluster whose log tells of a failure fails, whatever it asserted itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first
from tests.cluster.up import Up

NewCluster = Callable[..., LocalCluster]


@pytest.fixture
def new_cluster(tmp_path: Path) -> Iterator[NewCluster]:
    """Makes a cluster, started and ready: `new_cluster(size=3, flags=["--log-level=debug"])`."""
    made: list[LocalCluster] = []

    def make(size: int = 3, flags: list[str] | None = None) -> LocalCluster:
        folder = tmp_path / f"cluster{len(made) + 1}"
        made.append(LocalCluster(folder, size=size, port=free_first(size, PEER_PORTS), flags=flags or []))
        made[-1].start_all()
        made[-1].wait_ready()
        return made[-1]

    yield make
    for cluster in made:
        cluster.close(seconds=5)
    assert [line for cluster in made for line in failures(cluster)] == []


@pytest.fixture
def cluster(new_cluster: NewCluster) -> LocalCluster:
    """Three nodes, with a leader that all of them know."""
    return new_cluster()


def failures(cluster: LocalCluster) -> list[str]:
    """What the nodes logged that should never be."""
    lines = [line for node in cluster.nodes for line in Path(node.log).read_text().splitlines()]
    return [line for line in lines if "level=critical" in line or "exception=" in line or "Traceback" in line]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(
        *flags: str, data: Path = tmp_path / "data", new: bool = True, environ: Mapping[str, str] | None = None
    ) -> Up:
        port = (f"--port={free_first(3, PEER_PORTS)}",) if new else ()
        started.append(Up(data, *port, *flags, environ=environ))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.end()
        assert each.process.stdout is not None
        each.process.stdout.close()
