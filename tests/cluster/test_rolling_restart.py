"""The run of `rolling`, small and seeded."""

from __future__ import annotations

import pytest

from raftq.node.local_cluster import LocalCluster
from tests.cluster import rolling
from tests.cluster.load import Known, Load, Lost

pytestmark = pytest.mark.cluster

#: What a cluster may seem to stand still for while a node of it is restarted.
GAP_SECONDS_MAX = 1.0


def test_a_rolling_restart_under_load_fails_no_request(cluster: LocalCluster) -> None:
    load = rolling.run(cluster, seed=3, between=300)
    print(rolling.figures(load))
    assert load.acked
    assert load.longest_gap() < GAP_SECONDS_MAX


def test_the_check_finds_what_is_lost_left_over_or_changed(cluster: LocalCluster) -> None:
    load = Load([node.api_url for node in cluster.nodes], seed=1, workers=0)
    load.start()
    load.wait_for(5)
    load.end()
    load.check()
    right, one = set(load.enqueued), min(load.enqueued)
    changed = Known(one.id, one.body + "changed")
    for wrong in (right | {Known("1-0-0", "lost")}, right - {one}, right - {one} | {changed}):
        load.enqueued = wrong
        with pytest.raises(Lost):
            load.check()
