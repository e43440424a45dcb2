"""The run of `filecopy`, small and seeded."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftq.node.local_cluster import LocalCluster
from tests.cluster.filecopy import FileCopy, Plan, check

pytestmark = pytest.mark.cluster


def test_a_file_through_a_cluster_under_fire(cluster: LocalCluster, tmp_path: Path) -> None:
    plan = Plan(lines=5000, batch=10, kill_leader_seconds=1.5, kill_command_seconds=1.5, kills_on_headway=2, seed=20)
    copy = FileCopy(plan, cluster, tmp_path)
    copy.run()
    assert copy.count.leader_kills >= 1
    assert all(kills >= 2 for kills in copy.count.command_kills.values())


@pytest.mark.parametrize(
    ("one", "two"),
    [(b"a\n", b"\n"), (b"a\nb\n", b"b"), (b"b\na\n", b""), (b"a\n", b"c")],
    ids=["lost", "doubled", "out of order", "changed"],
)
def test_the_check_finds_what_is_wrong(one: bytes, two: bytes) -> None:
    check(b"a\nb", [b"a\n", b"b"])
    with pytest.raises(AssertionError):
        check(b"a\nb", [one, two])
