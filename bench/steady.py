"""Whether a cluster at full load, in which nothing fails, keeps its leader: elections in N minutes.

Two loads at once on one queue: cycles of enqueue, lease and ack in batches, and single enqueues, which the cycles
lease along, so that the queue stays small however long it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from raftq.bench import cluster, load
from raftq.bench.bars import Bar, at_most, number
from raftq.bench.report import table

CYCLE_CONNECTIONS = 8
SINGLE_CONNECTIONS = 32
BATCH = 100
#: A cycle leases more than it enqueues: the single messages come along.
LEASE_MAX = 500
SAY_SECONDS = 10
PART_SECONDS = 30


@dataclass(frozen=True)
class Outcome:
    minutes: float
    #: Terms that the cluster went through: elections, won or not.
    elections: int
    #: Parts of the load that ended with an error, such as a lost leader.
    failures: list[str]
    acked_per_second: float
    singles_per_second: float
    #: Worst of the parts.
    singles_p99_ms: float
    cycle_p99_ms: float
    cpu_cores: float


@dataclass
class Stream:
    """One kind of load in parts of `PART_SECONDS`, each aimed at the leader of its time."""

    offer: Callable[[int], load.Load]
    parts: list[load.Load] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, seconds: int) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) >= 1:
            try:
                self.parts.append(self.offer(min(PART_SECONDS, round(left))))
            except (load.LoadFailed, cluster.ClusterFailed, OSError) as error:
                self.failures.append(str(error))
                time.sleep(1)

    def per_second(self, count: Callable[[load.Load], int]) -> float:
        return sum(map(count, self.parts)) / sum(part.seconds for part in self.parts) if self.parts else 0.0

    def worst(self, latency: Callable[[load.Load], float]) -> float:
        return max(map(latency, self.parts), default=0.0)


def run(folder: Path, *, seconds: int, say: Callable[[str], None]) -> tuple[Outcome, list[Bar]]:
    with cluster.running(folder) as nodes, ThreadPoolExecutor(2) as pool:
        term, before, began = nodes.term(), nodes.usage(), time.monotonic()
        cycles, singles = Stream(partial(_cycles, nodes)), Stream(partial(_singles, nodes))
        watch(nodes, [pool.submit(stream.run, seconds) for stream in (cycles, singles)], term, say)
        used = (nodes.usage() - before).cpu_seconds / (time.monotonic() - began)
        outcome = _outcome(seconds / 60, nodes.term() - term, cycles, singles, used)
    return outcome, bars(outcome)


def _cycles(nodes: cluster.Cluster, seconds: int) -> load.Load:
    url = nodes.queue_url("steady")
    return load.cycle(url, messages=BATCH, connections=CYCLE_CONNECTIONS, seconds=seconds, lease_max=LEASE_MAX)


def _singles(nodes: cluster.Cluster, seconds: int) -> load.Load:
    url = nodes.queue_url("steady") + "/messages"
    return load.enqueue(url, messages=1, connections=SINGLE_CONNECTIONS, seconds=seconds)


def watch(nodes: cluster.Cluster, loads: list[Future[None]], term: int, say: Callable[[str], None]) -> None:
    """Says how it stands until the loads end; raises what ended one of them."""
    began = time.monotonic()
    while wait(loads, timeout=SAY_SECONDS).not_done:
        try:
            state = f"{nodes.term() - term} elections, leader {nodes.leader().id}"
        except (OSError, cluster.ClusterFailed) as error:
            state = f"no answer: {error}"
        say(f"{time.monotonic() - began:.0f} s: {state}")
    for ended in loads:
        ended.result()


def _outcome(minutes: float, elections: int, cycles: Stream, singles: Stream, cpu_cores: float) -> Outcome:
    return Outcome(
        minutes=minutes,
        elections=elections,
        failures=cycles.failures + singles.failures,
        acked_per_second=cycles.per_second(lambda part: part.acked),
        singles_per_second=singles.per_second(lambda part: part.requests),
        singles_p99_ms=singles.worst(lambda part: part.latency.p99_ms),
        cycle_p99_ms=cycles.worst(lambda part: part.latency.p99_ms),
        cpu_cores=cpu_cores,
    )


def bars(outcome: Outcome) -> list[Bar]:
    return [at_most(f"elections in {outcome.minutes:.1f} minutes", outcome.elections, 0, "without a fault")]


def body(outcome: Outcome) -> str:
    rates = ("acked/s", "singles/s", "singles worst p99 ms", "cycle worst p99 ms", "CPU of nodes, cores")
    head = ("minutes", "elections", "failed parts", *rates)
    cells = (
        outcome.minutes,
        outcome.elections,
        len(outcome.failures),
        outcome.acked_per_second,
        outcome.singles_per_second,
        outcome.singles_p99_ms,
        outcome.cycle_p99_ms,
        outcome.cpu_cores,
    )
    return table(head, [tuple(number(value) for value in cells)]) + (
        f"\n\n{CYCLE_CONNECTIONS} connections enqueue {BATCH}, lease up to {LEASE_MAX} and ack, {SINGLE_CONNECTIONS} "
        "connections enqueue one by one, all on one queue, in parts of "
        f"{PART_SECONDS} s."
    )
