"""How long no enqueue is acknowledged when the leader dies.

From SIGKILL of the leader's process to the first answer 201 to an enqueue that was sent after it, through a node that
lives. One client sends one request after another, as an application would: it follows redirects, and soon tries again
when refused. The dead node is started again, and the next round begins when all nodes have caught up.
"""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raftq.bench import cluster, measure
from raftq.bench.bars import Bar, at_most, number
from raftq.bench.report import table

RETRY_SECONDS = 0.005
#: A request that hangs this long is given up, and counts as time without an answer.
REQUEST_SECONDS_MAX = 1.0

BODY = {"body": "x" * 100}


@dataclass(frozen=True)
class Outcome:
    #: In the order of the rounds.
    milliseconds: list[float]
    acknowledged: int
    #: In the queue at the end; at least what was acknowledged, or the run fails. Repeated enqueues may stand twice.
    found: int

    @property
    def median_ms(self) -> float:
        return measure.median(self.milliseconds)


@dataclass
class Client:
    """Counts what it was told is safe."""

    acknowledged: int = 0

    def enqueue(self, api_url: str) -> None:
        """Until it is acknowledged. Raises ClusterFailed when nothing is within 30 seconds."""
        end = time.monotonic() + cluster.START_SECONDS_MAX
        while not enqueued(api_url + "/v1/queues/failover/messages"):
            if time.monotonic() > end:
                raise cluster.ClusterFailed("no enqueue was acknowledged")
            time.sleep(RETRY_SECONDS)
        self.acknowledged += 1


def enqueued(url: str) -> bool:
    """One enqueue through `url`, or through the leader that it names."""
    try:
        status, _, location = cluster.request("POST", url, BODY, seconds=REQUEST_SECONDS_MAX)
        if status == 307 and location:
            status, _, _ = cluster.request("POST", location, BODY, seconds=REQUEST_SECONDS_MAX)
    except (OSError, http.client.HTTPException):
        return False
    return status == 201


def run(folder: Path, *, rounds: int, say: Callable[[str], None]) -> tuple[Outcome, list[Bar]]:
    client, took = Client(), []
    with cluster.running(folder) as nodes:
        for place in range(1, rounds + 1):
            took.append(one(nodes, client))
            say(f"round {place} of {rounds}: {took[-1]:.0f} ms")
        outcome = Outcome(took, client.acknowledged, nodes.stats("failover")["ready"])
    if outcome.found < outcome.acknowledged:
        raise cluster.ClusterFailed(f"{outcome.acknowledged} enqueues were acknowledged, {outcome.found} are there")
    return outcome, bars(outcome)


def one(nodes: cluster.Cluster, client: Client) -> float:
    """Kill the leader once; milliseconds until an enqueue is acknowledged. Returns when the cluster is whole again."""
    leader, term = nodes.leader(), nodes.term()
    other = next(node for node in nodes.nodes() if node.id != leader.id)
    client.enqueue(other.api_url)
    killed = time.perf_counter()
    os.kill(leader.pid, signal.SIGKILL)
    client.enqueue(other.api_url)
    took = (time.perf_counter() - killed) * 1e3
    if nodes.view(other)["term"] == term:
        raise cluster.ClusterFailed(f"{leader.id} still led: nothing was measured")
    nodes.start(leader)
    cluster.wait(nodes.settled, f"{leader.id} has caught up")
    return took


def bars(outcome: Outcome) -> list[Bar]:
    return [
        at_most(f"median of {len(outcome.milliseconds)}", outcome.median_ms, 300, "ms"),
        at_most(f"worst of {len(outcome.milliseconds)}", max(outcome.milliseconds), 1500, "ms"),
    ]


def body(outcome: Outcome) -> str:
    ordered = sorted(outcome.milliseconds)
    cells = (len(ordered), ordered[0], outcome.median_ms, measure.percentile(ordered, 0.9), ordered[-1])
    head = ("rounds", "least ms", "median ms", "p90 ms", "worst ms")
    return table(head, [tuple(number(value) for value in cells)]) + (
        "\n\nFrom SIGKILL of the leader's process to the first acknowledged enqueue sent after it through a node that "
        f"lives, by one client that tries again every {RETRY_SECONDS * 1e3:.0f} ms and follows redirects. "
        f"{outcome.acknowledged} enqueues were acknowledged, {outcome.found} are in the queue."
    )
