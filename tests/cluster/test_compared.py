"""What docs/compared.md says of us holds, and `make compared` finds what does not."""

from __future__ import annotations

import pytest

from raftq.node.local_cluster import LocalCluster
from tests.cluster.compared import NOT_YET, PAGE, Row, judge, rows

ROWS = list(rows(PAGE.read_text(encoding="utf-8")))
#: There is nothing to run against a feature that is not there.
OVER_MANY_NODES = "One queue over many nodes"
#: `make compared` runs them all.
SOME = ("Consume by topic and group", "Retries with a limit", "Filters of a subscription", "Redrive", "Put a line")


def test_what_is_not_yet() -> None:
    assert len({row.system for row in ROWS}) == 5
    assert all(row.us.startswith("yes") or row.us == NOT_YET for row in ROWS)
    assert [row.feature for row in ROWS if row.us == NOT_YET] == ["Dashboard", OVER_MANY_NODES]
    assert [row.feature for row in ROWS if not row.command] == [OVER_MANY_NODES]


@pytest.mark.cluster
def test_some_rows_hold(cluster: LocalCluster) -> None:
    for name in SOME:
        row = next(row for row in ROWS if row.feature.startswith(name))
        verdict = judge(row, cluster.url("n2"))
        assert verdict.holds, verdict.printed


@pytest.mark.cluster
def test_what_is_not_so_is_found(cluster: LocalCluster) -> None:
    missing = Row("", "", "yes", "yes", "curl -fsS $RAFTQ_URL/v1/no-such-route | grep -c .")
    verdict = judge(missing, cluster.url("n1"))
    assert not verdict.holds
    assert "404" in verdict.printed
    assert judge(missing._replace(us=NOT_YET), cluster.url("n1")).holds
    there = missing._replace(command="raftq cluster | grep leads | cat")
    assert judge(there, cluster.url("n1")).holds
    assert not judge(there._replace(us=NOT_YET), cluster.url("n1")).holds, "the page is behind"
