"""A cluster of real processes loses nothing that it acknowledged, whichever of them end, and however."""

from __future__ import annotations

import signal
import threading

import pytest

from raftq.node import probe
from raftq.node.local_cluster import LocalCluster
from raftq.node.waiting import wait_until
from tests.cluster.client import ask, drain, enqueue

pytestmark = pytest.mark.cluster


class Load:
    """Enqueues numbers through one node, one after the other, until told to end."""

    def __init__(self, cluster: LocalCluster, node: str) -> None:
        self._cluster, self._node = cluster, node
        self._ending = threading.Event()
        self.acknowledged: list[int] = []
        #: (status, applied) of answers that were no acknowledgement, and "none" for no answer.
        self.others: set[tuple[object, ...]] = set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._ending.is_set():
            number += 1
            try:
                answer = enqueue(self._cluster, self._node, number)
            except OSError:
                self.others.add(("none",))
                continue
            if answer.status == 201:
                self.acknowledged.append(number)
            else:
                self.others.add((answer.status, answer.json()["applied"]))

    def wait_for(self, more: int) -> None:
        """Until so many more are acknowledged."""
        wanted = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= wanted, 20, f"{more} more acknowledgements")

    def end(self) -> None:
        self._ending.set()
        self._thread.join()


def followers(cluster: LocalCluster) -> list[str]:
    return [node for node in cluster.running if node != cluster.leader()]


def test_a_message_passes_through_any_two_nodes(cluster: LocalCluster) -> None:
    for number, node in enumerate(cluster.running):
        assert enqueue(cluster, node, number).status == 201
    assert drain(cluster, cluster.running[-1]) == [0, 1, 2]


def test_all_nodes_killed_at_once_under_load(cluster: LocalCluster) -> None:
    running = Load(cluster, followers(cluster)[0])
    running.wait_for(200)
    for node in cluster.running:
        cluster.signal(node, signal.SIGKILL)
    for node in cluster.running:
        cluster.kill(node)
    running.end()
    cluster.start_all()
    leader = cluster.wait_ready()
    assert set(running.acknowledged) <= set(drain(cluster, leader))


def test_a_leader_that_is_stopped_hands_over_and_answers_everything(cluster: LocalCluster) -> None:
    leader = cluster.wait_ready()
    running = Load(cluster, followers(cluster)[0])
    running.wait_for(50)
    cluster.signal(leader, signal.SIGTERM)
    wait_until(lambda: [ended for ended in cluster.ended() if ended.code == 0], 10, f"{leader} to end with code 0")
    running.wait_for(50)
    running.end()
    # A connection that the stopping node had not taken yet is refused; all else is answered, and truthfully.
    assert running.others <= {("none",), (503, "no")}
    assert drain(cluster, followers(cluster)[0]) == running.acknowledged


def test_without_a_majority_nothing_is_acknowledged(cluster: LocalCluster) -> None:
    leader = cluster.wait_ready()
    assert enqueue(cluster, leader, "before").status == 201
    for node in followers(cluster):
        cluster.kill(node)
    answer = wait_until(lambda: _refused(cluster, leader), 10, "a refusal")
    assert answer.json()["applied"] in ("no", "unknown")
    down = next(node.id for node in cluster.nodes if node.id not in cluster.running)
    cluster.start(down)
    wait_until(lambda: enqueue(cluster, leader, "after").status == 201, 10, "an acknowledgement")
    bodies = drain(cluster, leader)
    assert (bodies[0], bodies[-1]) == ("before", "after")


def _refused(cluster: LocalCluster, node: str) -> probe.Answer | None:
    answer = enqueue(cluster, node, "meanwhile")
    return answer if answer.status == 503 else None


def test_equal_nodes_state_equal_digests(cluster: LocalCluster) -> None:
    for number in range(20):
        enqueue(cluster, "n1", number)
    nodes = ask("GET", f"{cluster.url('n2')}/v1/cluster/digest").json()["nodes"]
    assert len(nodes) == 3
    assert len(set(nodes.values())) == 1


def test_a_stop_ends_paused_nodes_too_and_gracefully(cluster: LocalCluster) -> None:
    follower = followers(cluster)[0]
    cluster.signal(follower, signal.SIGSTOP)
    assert cluster.stop(seconds=5) == []
    assert cluster.running == []
    assert [node.pid for node in cluster.nodes] == [None, None, None]
