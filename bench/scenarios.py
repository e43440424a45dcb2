"""What `make bench` measures, in its order, and the bars that it is held against.

Every figure of raftq over HTTP stands beside the bare echo server's at the same concurrency in the same run: rates
swing up to two times between runs, ratios do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raftq.bench import cluster, echo, load, measure, streaming
from raftq.bench.bars import Bar, at_least, at_most
from raftq.bench.measure import MIB

CONNECTIONS = (1, 32, 256)
BATCH = 100
BATCH_CONNECTIONS = (1, 32)
CYCLE_CONNECTIONS = 32
WAITING_MESSAGES = 200_000
WARMUP_SECONDS = 1
#: wrk has one thread for enqueues, which a load beyond this nearly fills.
LOAD_CORES_MAX = 0.9


@dataclass(frozen=True)
class Figure:
    """One scenario's outcome. Times are of one request (of a cycle: of all three), CPU and fsyncs of all nodes."""

    name: str
    #: Messages a second (of the echo: requests).
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_message: float
    fsyncs_per_message: float | None
    #: Mean time of one commit, over all nodes.
    commit_ms: float | None
    #: CPU that the load itself used, in cores; None when it runs inside the leader.
    load_cores: float | None
    seconds: float
    #: Rate against the echo's requests a second at the same concurrency.
    echo_ratio: float | None = None
    #: Every round's rate, when it was measured more than once: the figure is the round with the median rate.
    rounds: list[float] = field(default_factory=list)
    #: p50 of each step of a cycle.
    steps_p50_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Footprint:
    """Of all three nodes together, in bytes."""

    idle: measure.Memory
    waiting: measure.Memory
    waiting_messages: int
    disk_bytes_empty: int
    disk_bytes_waiting: int

    @property
    def disk_bytes_per_message(self) -> float:
        return (self.disk_bytes_waiting - self.disk_bytes_empty) / self.waiting_messages


@dataclass(frozen=True)
class Outcome:
    figures: list[Figure]
    footprint: Footprint
    bars: list[Bar]


def run(folder: Path, *, seconds: int, rounds: int, say: Callable[[str], None]) -> Outcome:
    """Everything, on new clusters under `folder`; `say` is told of each step."""
    say(f"memory and disk: {WAITING_MESSAGES:,} messages waiting")
    with cluster.running(folder) as nodes:
        footprint = measured_footprint(nodes)
    with cluster.running(folder) as nodes, echo.running() as (url, pid):
        figures = http_figures(Http(nodes, url, pid, seconds, rounds, say))
    say("in process")
    figures += in_process(folder, seconds)
    return Outcome(figures, footprint, bars(figures, footprint))


# ---------------------------------------------------------------------------------------------------- over HTTP


@dataclass(frozen=True)
class Http:
    nodes: cluster.Cluster
    echo_url: str
    echo_pid: int
    seconds: int
    rounds: int
    say: Callable[[str], None]

    def echo(self, connections: int) -> Figure:
        before = measure.cpu_seconds(self.echo_pid)
        seen = load.enqueue(self.echo_url, messages=1, connections=connections, seconds=self.seconds)
        used = cluster.Usage(measure.cpu_seconds(self.echo_pid) - before, 0, 0)
        return figure(f"echo c={connections}", seen.requests, seen.seconds, seen.latency, used, load_cores=seen.cores)

    def enqueue(self, messages: int, connections: int) -> Figure:
        kind = f"batches of {messages}" if messages > 1 else "single POSTs"
        queue = f"enqueue-{messages}-{connections}"
        url = self.nodes.queue_url(queue) + "/messages"
        return self._measured(
            f"{kind} c={connections}",
            lambda seconds: load.enqueue(url, messages=messages, connections=connections, seconds=seconds),
            lambda seen: seen.requests * messages,
            lambda: self.total(queue, "enqueued"),
        )

    def stream(self, depth: int) -> Figure:
        queue, url = f"stream-{depth}", self.nodes.leader().api_url
        return self._measured(
            f"stream, {depth} enqueues in flight",
            lambda seconds: streaming.enqueue(
                url, queue, depth=depth, seconds=seconds, body_characters=load.BODY_CHARACTERS
            ),
            lambda seen: seen.requests,
            lambda: self.total(queue, "enqueued"),
        )

    def cycle(self, connections: int) -> Figure:
        url = self.nodes.queue_url("cycle")
        return self._measured(
            f"enqueue, lease, ack in batches of {BATCH} c={connections}",
            lambda seconds: load.cycle(url, messages=BATCH, connections=connections, seconds=seconds),
            lambda seen: seen.acked,
            lambda: self.total("cycle", "acked"),
        )

    def total(self, queue: str, name: str) -> int:
        return int(self.nodes.stats(queue)["totals"][name])

    def _measured(
        self, name: str, offer: Callable[[int], load.Load], count: Callable[[load.Load], int], done: Callable[[], int]
    ) -> Figure:
        """Offer the load once to warm up, once to measure. What the load counts must be in the cluster (`done`)."""
        self.say(name)
        offer(WARMUP_SECONDS)
        term, done_before, before = self.nodes.term(), done(), self.nodes.usage()
        seen = offer(self.seconds)
        used = self.nodes.usage() - before
        if seen.cores > LOAD_CORES_MAX:
            self.say(f"  the load itself used {seen.cores:.2f} cores: it may have been the limit")
        if self.nodes.term() != term:
            raise cluster.ClusterFailed(f"{name}: the leader changed under load")
        if (there := done() - done_before) < count(seen):
            raise cluster.ClusterFailed(f"{name}: {count(seen)} messages were answered for, {there} are there")
        steps = {step: latency.p50_ms for step, latency in seen.steps.items()}
        made = figure(name, count(seen), seen.seconds, seen.latency, used, load_cores=seen.cores)
        return replace(made, steps_p50_ms=steps)


def figure(
    name: str,
    messages: int,
    seconds: float,
    latency: load.Latency,
    used: cluster.Usage,
    *,
    load_cores: float | None = None,
) -> Figure:
    return Figure(
        name=name,
        rate=messages / seconds,
        p50_ms=latency.p50_ms,
        p99_ms=latency.p99_ms,
        cpu_us_per_message=used.cpu_seconds / messages * 1e6,
        fsyncs_per_message=used.commits / messages if used.commits else None,
        commit_ms=used.commit_seconds / used.commits * 1e3 if used.commits else None,
        load_cores=load_cores,
        seconds=seconds,
    )


def http_figures(http: Http) -> list[Figure]:
    """Single POSTs in rounds, each right after an echo; then batches and cycles, which grow the data file most."""
    figures: list[Figure] = []
    for connections in CONNECTIONS:
        figures += _pairs([(http.echo(connections), http.enqueue(1, connections)) for _ in range(http.rounds)])
    echoes = {figure.name: figure.rate for figure in figures}
    figures.append(http.cycle(CYCLE_CONNECTIONS))
    for connections in BATCH_CONNECTIONS:
        batches = http.enqueue(BATCH, connections)
        figures.append(replace(batches, echo_ratio=batches.rate / echoes[f"echo c={connections}"]))
    return figures


def _pairs(pairs: list[tuple[Figure, Figure]]) -> list[Figure]:
    """The median echo and the median single, with the median of the ratios that each pair had."""
    echoes, singles = zip(*pairs, strict=True)
    ratio = measure.median(single.rate / reference.rate for reference, single in pairs)
    return [median(echoes), replace(median(singles), echo_ratio=ratio)]


def median(figures: Sequence[Figure]) -> Figure:
    """The one with the median rate, with the rates of all."""
    ordered = sorted(figures, key=lambda figure: figure.rate)
    middle = ordered[(len(ordered) - 1) // 2]
    return replace(middle, rounds=[figure.rate for figure in figures])


# ----------------------------------------------------------------------------------------------- memory and disk


def measured_footprint(nodes: cluster.Cluster) -> Footprint:
    measure.settle(nodes.allocated_bytes)
    idle, empty = nodes.memory(), nodes.allocated_bytes()
    fill(nodes, WAITING_MESSAGES)
    cluster.wait(nodes.settled, "all nodes have applied everything")
    waiting = measure.settle(nodes.allocated_bytes)
    ready = nodes.stats("waiting")["ready"]
    if ready != WAITING_MESSAGES:
        raise cluster.ClusterFailed(f"{ready} messages wait, not {WAITING_MESSAGES}")
    return Footprint(idle, nodes.memory(), ready, empty, waiting)


def fill(nodes: cluster.Cluster, messages: int) -> None:
    """Exactly `messages`, in batches of `BATCH`, one after another."""
    url = nodes.queue_url("waiting") + "/messages"
    body = {"messages": [{"body": "x" * load.BODY_CHARACTERS}] * BATCH}
    for _ in range(messages // BATCH):
        status, answer, _ = cluster.request("POST", url, body)
        if status != 201:
            raise cluster.ClusterFailed(f"POST {url} answered {status}: {answer[:200]!r}")


# -------------------------------------------------------------------------------------------------- in process


def in_process(folder: Path, seconds: int) -> list[Figure]:
    """The same enqueues without HTTP. The node's own code makes them, which this folder may not import: another
    program runs the leader and its load in one process, and the followers in two more."""
    command = [sys.executable, "-m", "raftq.cli.bench", "--seconds", str(seconds), "--data", str(folder)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise cluster.ClusterFailed(f"the load in process ended with {answer.returncode}")
    return [Figure(**json.loads(line)) for line in answer.stdout.splitlines()]


# -------------------------------------------------------------------------------------------------------- bars


def bars(figures: list[Figure], footprint: Footprint) -> list[Bar]:
    """What the project promises. A ratio of 1 or more passes."""
    by_name = {figure.name: figure for figure in figures}
    echo_32 = by_name["echo c=32"].rate
    batches = 500_000 * echo_32 / 30_000
    scaled = f"500,000 where the echo does 30,000, here {echo_32:,.0f}"
    cycle = by_name[f"enqueue, lease, ack in batches of {BATCH} c={CYCLE_CONNECTIONS}"]
    return [
        at_least("single POSTs c=256", by_name["single POSTs c=256"].echo_ratio or 0, 0.6, "of the echo's rate"),
        at_most("single POSTs c=1, p50", by_name["single POSTs c=1"].p50_ms, 0.6, "ms"),
        at_least("batches of 100 c=32", by_name["batches of 100 c=32"].rate, batches, f"messages/s ({scaled})"),
        at_least("enqueue, lease, ack", cycle.rate, 100_000, "messages/s"),
        at_most("single POSTs c=32", by_name["single POSTs c=32"].fsyncs_per_message or 0, 0.35, "fsyncs/message"),
        at_most("three nodes idle", footprint.idle.pss / MIB, 200, "MiB (PSS)"),
        at_most(f"{footprint.waiting_messages:,} waiting", footprint.waiting.pss / MIB, 300, "MiB (PSS)"),
        at_most(f"{footprint.waiting_messages:,} waiting", footprint.disk_bytes_per_message, 600, "bytes/message"),
    ]
