"""The hostile pass in the tests: see `make hostile` for its table."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first
from tests.hostile.campaign import FAMILIES, Tally, run
from tests.hostile.target import Target

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    cluster = LocalCluster(tmp_path_factory.mktemp("hostile"), size=3, port=free_first(3, PEER_PORTS))
    try:
        cluster.start_all()
        made = Target(cluster)
        yield made
        made.close()
    finally:
        cluster.close(seconds=5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2])
def test_what_is_hostile_is_refused_and_the_cluster_serves_on(target: Target, family: ModuleType) -> None:
    tally = Tally()
    run(target, family, tally)
    assert sum(tally.attacks.values()) > 20


def test_after_it_nothing_has_leaked_and_the_nodes_are_equal(target: Target) -> None:
    """Of what ran before on this cluster."""
    target.check_at_the_end()
