"""How a node catches up while a steady load goes on, and what that costs the load and the memory of both sides.

Three times, in one cluster: a follower that was away for a while and finds all that it lacks in the leader's log; one
that was away for so long that the log is cut above what it has, so that it gets a snapshot; and an empty node that is
added to the cluster, until it votes. The load is measured before, meanwhile and afterwards. At the end all nodes must
hold the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftq.bench import cluster, load, measure, paced
from raftq.bench.bars import Bar, at_most, number
from raftq.bench.measure import MIB
from raftq.bench.report import table

#: Of the load: enqueues a second, one by one.
RATE = 1000
CONNECTIONS = 32
QUEUE = "catchup"
#: A follower has caught up when it lacks at most this many entries, a tenth of a second of the load.
NEAR_ENTRIES = 100
#: How many messages the first follower lacks, as a share of those that the second one does.
WITHIN_LOG_SHARE = 0.1
BATCH = 1000
BATCH_CHARACTERS = 4_000_000
FILL_CONNECTIONS = 4
LOOK_SECONDS = 0.1
#: After the messages asked for, until the log is cut.
FILL_SECONDS_MAX = 300.0
CATCHUP_SECONDS_MAX = 600.0
DIGEST_SECONDS_MAX = 120.0
FORGET_SECONDS_MAX = 120.0

INSTALLED_METRIC = "raftq_snapshots_installed_total"
SENT_METRIC = "raftq_snapshot_sent_bytes_total"


@dataclass(frozen=True)
class Latency:
    """Of the enqueues that were due in one part of the time."""

    enqueues: int
    p50_ms: float
    p99_ms: float
    worst_ms: float


@dataclass(frozen=True)
class MemoryUse:
    """Of one process, in bytes: what counts as its own, and that without mapped files."""

    pss: int
    anonymous: int

    def or_more(self, other: MemoryUse) -> MemoryUse:
        return MemoryUse(max(self.pss, other.pss), max(self.anonymous, other.anonymous))


@dataclass(frozen=True)
class Figure:
    name: str
    #: Enqueued while the node was away; of an empty node, all that there is.
    messages: int
    #: From the command that starts the node.
    seconds: float
    #: Snapshots that the node installed, and their bytes as the leader sent them.
    snapshots: int
    snapshot_bytes: int
    elections: int
    before: Latency
    during: Latency
    after: Latency
    leader_before: MemoryUse
    leader_peak: MemoryUse
    #: None of a new node.
    node_before: MemoryUse | None
    node_peak: MemoryUse


@dataclass(frozen=True)
class Outcome:
    figures: list[Figure]
    #: Of the tables on all nodes at the end.
    digest: str
    nodes: int


@dataclass
class Watched:
    """One catching up as it was watched."""

    began: float
    ended: float = 0.0
    #: The most that was seen.
    leader: MemoryUse = MemoryUse(0, 0)
    node: MemoryUse = MemoryUse(0, 0)


def run(
    folder: Path, *, messages: int, seconds: int, say: Callable[[str], None], characters: int = load.BODY_CHARACTERS
) -> tuple[Outcome, list[Bar]]:
    with cluster.running(folder) as nodes:
        catchup = Catchup(nodes, characters, seconds, say)
        within = catchup.away("within the log", round(messages * WITHIN_LOG_SHARE), by_snapshot=False)
        below = catchup.away("below the log", messages, by_snapshot=True)
        say("waiting until the snapshot is deleted, so that the next node needs another")
        cluster.wait(catchup.no_snapshot, "the snapshot is deleted", most_seconds=FORGET_SECONDS_MAX)
        figures = [within, below, catchup.empty("empty")]
        digest = common_digest(nodes)
        outcome = Outcome(figures, digest, len(nodes.nodes()))
    return outcome, bars(outcome)


class Catchup:
    """One cluster with a leader that stays, in which other nodes catch up."""

    def __init__(self, nodes: cluster.Cluster, characters: int, seconds: int, say: Callable[[str], None]) -> None:
        self._nodes, self._characters, self._seconds, self._say = nodes, characters, seconds, say
        self._leader = nodes.leader()
        self._batch = min(BATCH, max(BATCH_CHARACTERS // characters, 1))

    def away(self, name: str, messages: int, *, by_snapshot: bool) -> Figure:
        """A follower is killed, and started again once it lacks `messages`, or more if the log is to be cut above what
        it has."""
        nodes = self._nodes
        node = next(node for node in nodes.nodes() if node != self._leader)
        had, before = self._metric(node, "raftq_raft_last_index"), memory_use(node.pid)
        os.kill(node.pid, signal.SIGKILL)
        cluster.wait(lambda: nodes.node(node.id) is None, f"raftq up sees that {node.id} died")
        lacked = self._fill(messages)
        end = time.monotonic() + FILL_SECONDS_MAX
        while by_snapshot and self._metric(self._leader, "raftq_raft_first_index") <= had:
            if time.monotonic() > end:
                raise cluster.ClusterFailed(f"the log still holds what {node.id} lacks, {lacked:,} messages")
            lacked += self._fill(max(messages // 20, self._batch))
        self._say(f"{name}: {node.id} lacks {lacked:,} messages")
        figure = self._measured(name, node.id, ["start", node.id], lacked, before)
        if bool(figure.snapshots) != by_snapshot:
            raise cluster.ClusterFailed(f"{name}: {node.id} caught up by {figure.snapshots} snapshots")
        return figure

    def no_snapshot(self) -> bool:
        """The leader keeps the last one for a while, for others that need it."""
        return not any((self._leader.data / "snapshots").glob("*"))

    def empty(self, name: str) -> Figure:
        node = f"n{len(self._nodes.nodes()) + 1}"
        there = self._nodes.stats(QUEUE)["ready"]
        figure = self._measured(name, node, ["cluster", "add", node, "--no-wait"], there, None)
        if not figure.snapshots:
            raise cluster.ClusterFailed(f"{name}: {node} caught up without a snapshot")
        return figure

    def _measured(
        self, name: str, node_id: str, command: list[str], lacked: int, node_before: MemoryUse | None
    ) -> Figure:
        nodes, leader = self._nodes, self._leader
        url = f"{leader.api_url}/v1/queues/{QUEUE}/messages"
        term, sent = self._metric(leader, "raftq_raft_term"), self._metric(leader, SENT_METRIC)
        with paced.running(url, rate=RATE, connections=CONNECTIONS) as seen:
            begun = time.monotonic()
            time.sleep(self._seconds)
            leader_before = memory_use(leader.pid)
            watched = self._watch(node_id, [*command, "--data", str(nodes.folder)])
            self._say(f"{name}: {node_id} has caught up after {watched.ended - watched.began:.1f} s")
            time.sleep(self._seconds)
            ended = time.monotonic()
        node = nodes.node(node_id)
        if node is None:
            raise cluster.ClusterFailed(f"{name}: {node_id} has died")
        return Figure(
            name=name,
            messages=lacked,
            seconds=watched.ended - watched.began,
            snapshots=round(self._metric(node, INSTALLED_METRIC)),
            snapshot_bytes=round(self._metric(leader, SENT_METRIC) - sent),
            elections=round(self._metric(leader, "raftq_raft_term") - term),
            before=latency(seen.between(begun, watched.began)),
            during=latency(seen.between(watched.began, watched.ended)),
            after=latency(seen.between(watched.ended, ended)),
            leader_before=leader_before,
            leader_peak=watched.leader,
            node_before=node_before,
            node_peak=watched.node,
        )

    def _watch(self, node_id: str, command: list[str]) -> Watched:
        """Run `command`, and look at memory until the node has caught up and votes."""
        watched = Watched(began=time.monotonic())
        process = subprocess.Popen([cluster.raftq(), *command], stdout=subprocess.DEVNULL)
        try:
            while not self._caught_up(node_id):
                if process.poll():
                    raise cluster.ClusterFailed(f"raftq {' '.join(command)} ended with {process.returncode}")
                if time.monotonic() - watched.began > CATCHUP_SECONDS_MAX:
                    raise cluster.ClusterFailed(f"{node_id} has not caught up in {CATCHUP_SECONDS_MAX:.0f} s")
                watched.leader = watched.leader.or_more(memory_use(self._leader.pid))
                if (node := self._nodes.node(node_id)) is not None:
                    watched.node = watched.node.or_more(memory_use(node.pid))
                time.sleep(LOOK_SECONDS)
            watched.ended = time.monotonic()
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
        return watched

    def _caught_up(self, node_id: str) -> bool:
        members = {member["id"]: member for member in self._nodes.view(self._leader)["nodes"]}
        node, leader = members.get(node_id), members[self._leader.id]
        if node is None or not node["reachable"] or not node["voter"]:
            return False
        return bool((node["applied_index"] or 0) >= leader["applied_index"] - NEAR_ENTRIES)

    def _fill(self, messages: int) -> int:
        """Enqueue exactly `messages` in batches."""
        url = f"{self._leader.api_url}/v1/queues/{QUEUE}/messages"
        sizes = [min(self._batch, messages - done) for done in range(0, messages, self._batch)]

        def enqueue(size: int) -> None:
            body = {"messages": [{"body": "x" * self._characters}] * size}
            status, answer, _ = cluster.request("POST", url, body, seconds=30.0)
            if status != 201:
                raise cluster.ClusterFailed(f"POST {url} answered {status}: {answer[:200]!r}")

        with ThreadPoolExecutor(FILL_CONNECTIONS) as pool:
            for _ in pool.map(enqueue, sizes):
                pass
        return messages

    def _metric(self, node: cluster.Node, name: str) -> float:
        return measure.metric(cluster.text(node.api_url + "/metrics"), name)


def memory_use(pid: int) -> MemoryUse:
    memory = measure.memory([pid])
    return MemoryUse(memory.pss, memory.pss - memory.pss_file)


def latency(milliseconds: list[float]) -> Latency:
    p50, p99 = (measure.percentile(milliseconds, share) for share in (0.5, 0.99))
    return Latency(len(milliseconds), p50, p99, milliseconds[-1])


def common_digest(nodes: cluster.Cluster) -> str:
    """Of every node at one index. Raises ClusterFailed when they are not equal."""

    def told() -> dict[str, Any]:
        """Nothing until all have."""
        answer = cluster.get(nodes.leader().api_url + "/v1/cluster/digest", seconds=30.0)
        found: dict[str, Any] = answer["nodes"]
        return {} if None in found.values() else found

    digests = cluster.wait(told, "every node tells its digest", most_seconds=DIGEST_SECONDS_MAX)
    if set(digests) != {node.id for node in nodes.nodes()} or len(set(digests.values())) != 1:
        raise cluster.ClusterFailed(f"the nodes do not hold the same: {digests}")
    return str(next(iter(digests.values())))


def bars(outcome: Outcome) -> list[Bar]:
    elections = sum(figure.elections for figure in outcome.figures)
    return [at_most("elections while nodes catch up", elections, 0, "without a fault of the leader")]


def body(outcome: Outcome) -> str:
    head = ("node that catches up", "messages it lacks", "seconds", "snapshot MiB", "elections")
    rows = [
        (
            figure.name,
            number(figure.messages),
            number(figure.seconds),
            mib(figure.snapshot_bytes) if figure.snapshots else "-",
            number(figure.elections),
        )
        for figure in outcome.figures
    ]
    return "\n\n".join((table(head, rows), latencies(outcome.figures), memories(outcome.figures), notes(outcome)))


def latencies(figures: list[Figure]) -> str:
    head = ("enqueues at the leader", "enqueues", "p50 ms", "p99 ms", "worst ms")
    rows = [
        (
            f"{figure.name}, {when}",
            *map(number, (seen.enqueues, seen.p50_ms, seen.p99_ms, seen.worst_ms)),
        )
        for figure in figures
        for when, seen in (("before", figure.before), ("meanwhile", figure.during), ("afterwards", figure.after))
    ]
    return table(head, rows)


def memories(figures: list[Figure]) -> str:
    head = ("PSS MiB (of which not mapped files)", "leader before", "leader peak", "node before", "node peak")
    rows = [
        (
            figure.name,
            *map(cell, (figure.leader_before, figure.leader_peak, figure.node_before, figure.node_peak)),
        )
        for figure in figures
    ]
    return table(head, rows)


def notes(outcome: Outcome) -> str:
    return (
        f"{RATE:,} single enqueues a second are due, over {CONNECTIONS} connections to the leader; one that is due "
        "while its connection waits for an answer counts from when it was due. Seconds are from the command that "
        f"starts the node until it has applied all but at most {NEAR_ENTRIES} entries of what the leader has, and "
        "votes. All nodes share the cores and the disk of this machine, so the start of a process alone is felt by the "
        "leader. A follower's memory before is from before it was killed; peaks are of samples every "
        f"{LOOK_SECONDS:g} s. At the end the tables of all {outcome.nodes} nodes had the digest {outcome.digest}."
    )


def cell(memory: MemoryUse | None) -> str:
    return "-" if memory is None else f"{mib(memory.pss)} ({mib(memory.anonymous)})"


def mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
