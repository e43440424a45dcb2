"""Clusters of both kinds. While a stock one exists, pysyncobj's clock and dice are the cluster's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pysyncobj.syncobj
import pytest

from tests.faults.harness import Cluster, Ours, Stock

Maker = Callable[..., Cluster]


@pytest.fixture
def stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """Makes a cluster of `size` stock nodes; options go to SyncObjConf, and `durable` gives each a journal file."""
    made: list[Cluster] = []
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pysyncobj.syncobj, "monotonicTime", lambda: made[-1].now if made else clock.now)
    monkeypatch.setattr(pysyncobj.syncobj, "random", SimpleNamespace(random=lambda: 0.5))

    def make(size: int = 3, **options: object) -> Cluster:
        made.append(Cluster(Stock, size, tmp_path, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Maker]:
    """Makes a cluster of `size` nodes of our engine."""
    made: list[Cluster] = []

    def make(size: int = 3, **options: object) -> Cluster:
        made.append(Cluster(Ours, size, tmp_path, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()
