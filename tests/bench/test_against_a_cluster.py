"""The loads speak the API that the nodes serve, and what they count is in the cluster: on three real processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from raftq.bench import cluster, failover, load, measure, streaming

pytestmark = pytest.mark.cluster

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    """One for all tests: each uses a queue of its own."""
    with cluster.running(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@needs_wrk
def test_enqueues_are_in_the_queue(nodes: cluster.Cluster) -> None:
    seen = load.enqueue(nodes.queue_url("enqueued") + "/messages", messages=7, connections=3, seconds=1)
    assert nodes.stats("enqueued")["ready"] >= 7 * seen.requests > 0


def test_streamed_enqueues_are_in_the_queue(nodes: cluster.Cluster) -> None:
    url = nodes.leader().api_url
    seen = streaming.enqueue(url, "streamed", depth=20, seconds=1, body_characters=10)
    assert nodes.stats("streamed")["ready"] == seen.requests > 0
    with pytest.raises(load.LoadFailed, match="a name is 1 to 128"):
        streaming.enqueue(url, "no/name", depth=1, seconds=1, body_characters=10)


@needs_wrk
def test_cycles_ack_what_they_enqueue(nodes: cluster.Cluster) -> None:
    seen = load.cycle(nodes.queue_url("cycled"), messages=7, connections=3, seconds=1)
    stats = nodes.stats("cycled")
    assert stats["totals"]["acked"] >= seen.acked > 0
    # Each connection leaves at most the one batch that it had just enqueued.
    assert stats["ready"] + stats["leased"] <= 3 * 7


@needs_wrk
def test_a_load_on_a_follower_is_no_figure(nodes: cluster.Cluster) -> None:
    leader = nodes.leader()
    other = next(node for node in nodes.nodes() if node != leader)
    with pytest.raises(load.LoadFailed, match="enqueue answered 307"):
        load.cycle(other.api_url + "/v1/queues/jobs", messages=7, connections=3, seconds=1)


def test_usage_grows_with_work(nodes: cluster.Cluster) -> None:
    before = nodes.usage()
    client = failover.Client()
    client.enqueue(nodes.nodes()[0].api_url)
    used = nodes.usage() - before
    assert used.commits >= 2
    assert used.commit_seconds > 0
    assert nodes.memory().pss > measure.MIB
    assert nodes.allocated_bytes() > 0


def test_a_failover_loses_nothing_acknowledged(nodes: cluster.Cluster) -> None:
    client = failover.Client()
    client.enqueue(nodes.leader().api_url)
    before = nodes.stats("failover")["ready"]
    assert failover.one(nodes, client) > 0
    assert nodes.stats("failover")["ready"] >= before + 2
