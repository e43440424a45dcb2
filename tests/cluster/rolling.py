"""A rolling restart under load: each node of a cluster is stopped cleanly and started again, one after the other, while
clients enqueue, lease and ack.

As a script, by hand or by `make rolling`: `python -m tests.cluster.rolling --runs 3`.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
from pathlib import Path

from raftq.node.local_cluster import PEER_PORTS, LocalCluster
from raftq.node.local_ports import free_first
from raftq.node.waiting import wait_until
from tests.cluster.client import ask
from tests.cluster.load import Load


def restart_all(cluster: LocalCluster, load: Load, *, between: int) -> None:
    """Each node once, the next when the cluster is whole again and so many more requests have succeeded."""
    for node in [node.id for node in cluster.nodes]:
        load.wait_for(between)
        cluster.signal(node, signal.SIGTERM)
        (ended,) = wait_until(cluster.ended, 20, f"{node} to end")
        assert (ended.node, ended.code) == (node, 0), ended
        cluster.start(node)
        cluster.wait_ready()
    load.wait_for(between)


def run(cluster: LocalCluster, *, seed: int, between: int) -> Load:
    """The load, ended and found in order."""
    load = Load([node.api_url for node in cluster.nodes], seed=seed)
    load.start()
    try:
        restart_all(cluster, load, between=between)
    finally:
        load.end()
    assert load.failed == []
    load.check()
    digests = ask("GET", f"{cluster.url('n1')}/v1/cluster/digest").json()["nodes"]
    assert len(digests) == len(cluster.nodes)
    assert len(set(digests.values())) == 1
    return load


def figures(load: Load) -> str:
    slowest = load.slowest()
    return (
        f"{len(load.successes)} requests, {len(load.enqueued)} messages, none failed, none lost; "
        f"longest gap between two successes {load.longest_gap() * 1000:.0f} ms "
        f"(enqueues alone {load.longest_gap('enqueue') * 1000:.0f} ms); "
        f"slowest request {(slowest.ended - slowest.began) * 1000:.0f} ms ({slowest.kind})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--between", type=int, default=1000, metavar="REQUESTS")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    given = parser.parse_args()
    for number in range(given.runs):
        with tempfile.TemporaryDirectory(prefix="raftq-rolling-") as folder:
            cluster = LocalCluster(Path(folder), size=3, port=free_first(3, PEER_PORTS))
            try:
                cluster.start_all()
                cluster.wait_ready()
                print(f"run {number + 1}: {figures(run(cluster, seed=given.seed + number, between=given.between))}")
            finally:
                cluster.close()


if __name__ == "__main__":
    main()
