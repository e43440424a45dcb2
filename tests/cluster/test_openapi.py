"""schemathesis, led by the OpenAPI document alone, at a follower of a live cluster: every answer is one that the
document has, what the schemas allow is taken and what they forbid refused, and links lead on to the ack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raftq.node.local_cluster import LocalCluster
from tests.cluster.client import ask, enqueue

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
#: It would change the members of the cluster that it looks at; and a WebSocket is none of its business.
EXCLUDED = "^/v1/(stream|events|cluster/(nodes.*|leader))$"
#: Ways that lead far from where they begin, each gone by itself first: all together would seldom reach their ends.
WAYS = (
    "messages_enqueue|leases_lease|settlements_.*",
    "messages_enqueue|leases_lease|transactions_transact",
    "topics_(define|subscribe|publish)",
)


def schemathesis(url: str, folder: Path, *options: str) -> None:
    """Run it with a fixed seed. Fails with its report."""
    config = ROOT / "tests/cluster/schemathesis.toml"
    ran = subprocess.run(
        [*(sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", url), "--seed=4", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_schemathesis_finds_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    leader = cluster.leader()
    follower = next(node.id for node in cluster.nodes if node.id != leader)
    url = f"{cluster.url(follower)}/openapi.json"
    for way in WAYS:
        schemathesis(url, tmp_path, "--mode=positive", "--phases=stateful", "--include-operation-id-regex", way)
    totals = ask("GET", f"{cluster.url(follower)}/v1/stats").json()["totals"]
    assert totals["acked"] + totals["nacked"] + totals["released"] > 0, "the links lead from an enqueue to there"
    topics = ask("GET", f"{cluster.url(follower)}/v1/topics?limit=500").json()["topics"]
    assert any(one["published"] for one in topics), "and from a topic to what is published"
    schemathesis(url, tmp_path, "--exclude-path-regex", EXCLUDED)
    assert enqueue(cluster, follower, "after").status == 201
    nodes = ask("GET", f"{cluster.url(follower)}/v1/cluster/digest").json()["nodes"]
    assert len(set(nodes.values())) == 1
    assert None not in nodes.values()
