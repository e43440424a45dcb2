"""What a crowd costs one node: thousands of idle connections, and thousands of long polls beside them, on the leader.

The same single enqueues are timed on one connection without the crowd, beside the idle, and beside the idle and the
polls. Memory is what the leader's process takes more, but for mapped files. Then as many messages come as there are
polls, in requests of up to 1,000: each poll is answered with one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftq.bench import cluster, crowd_clients, load, measure
from raftq.bench.bars import Bar, at_most, number
from raftq.bench.crowd_clients import Crowd
from raftq.bench.report import table
from raftq.bench.scale import Connection

BATCH = 1000
#: Of what an enqueue takes without the crowd, its p99 beside it.
TIMES_MAX = 1.5
#: Of a core, by the idle alone.
IDLE_CORES_MAX = 0.01
MEMORY_BYTES_MAX = 24 * 1024
OPEN_METRIC = "raftq_connections"
POLLS_METRIC = "raftq_waiters"
_DEFINERS = 4


@dataclass(frozen=True)
class Phase:
    name: str
    #: Of the crowd; the polls among them.
    connections: int
    polls: int
    #: Of the single enqueues.
    latency: load.Latency
    #: That the leader used before they began, with nothing to do.
    cores: float
    #: More than before the phase, for each connection that it added; None when it added none.
    bytes_each: float | None
    #: In which these were opened.
    opened_seconds: float


@dataclass(frozen=True)
class Wave:
    """Messages for all who wait."""

    name: str
    polls: int
    #: From the first request sent to the last one answered, and to the last poll answered.
    sent_seconds: float
    answered_seconds: float


@dataclass(frozen=True)
class Outcome:
    phases: list[Phase]
    waves: list[Wave]


def run(
    folder: Path, *, connections: int, polls: int, seconds: int, say: Callable[[str], None]
) -> tuple[Outcome, list[Bar]]:
    with cluster.running(folder) as nodes, crowd_clients.running(nodes.leader().api_url) as clients:
        outcome = Run(nodes, clients, seconds, say).outcome(connections, polls)
    return outcome, bars(outcome)


class Run:
    def __init__(self, nodes: cluster.Cluster, clients: Crowd, seconds: int, say: Callable[[str], None]) -> None:
        self._nodes, self._clients, self._seconds, self._say = nodes, clients, seconds, say
        self._leader = nodes.leader()

    def outcome(self, connections: int, polls: int) -> Outcome:
        many = [f"crowd-{number}" for number in range(polls)]
        self._say(f"defining {polls:,} queues")
        self._define([*many, "crowd"])
        self._enqueues()  # the first ones warm up what is measured
        before = self._phase("alone", 0, 0, 0, lambda: 0.0)
        idle = self._phase("beside the idle", connections, connections, 0, lambda: self._clients.idle(connections))
        first = self._phase("and polls of as many queues", polls, connections, polls, lambda: self._clients.poll(many))
        first_wave = self._wave(
            "each of another queue",
            polls,
            "/v1/transactions",
            [
                {"operations": [{"enqueue": {"queue": queue, "messages": [{"body": 1}]}} for queue in some]}
                for some in _cut(many)
            ],
        )
        self._clients.close(polls)
        self._until(OPEN_METRIC, connections)
        second = self._phase(
            "and polls of one queue", 0, connections, polls, lambda: self._clients.poll(["crowd"] * polls)
        )
        second_wave = self._wave(
            "all of one queue",
            polls,
            "/v1/queues/crowd/messages",
            [{"messages": [{"body": 1}] * len(some)} for some in _cut(many)],
        )
        return Outcome([before, idle, first, second], [first_wave, second_wave])

    def _define(self, queues: Sequence[str]) -> None:
        def some(first: int) -> None:
            with closing(Connection(self._leader.api_url)) as connection:
                for queue in queues[first::_DEFINERS]:
                    connection.ask("PUT", f"/v1/queues/{queue}", {})

        with ThreadPoolExecutor(_DEFINERS) as pool:
            for _ in pool.map(some, range(_DEFINERS)):
                pass
        cluster.wait(self._nodes.settled, "all nodes have applied it")

    def _phase(self, name: str, added: int, connections: int, polls: int, enter: Callable[[], float]) -> Phase:
        """`enter` adds connections, until there are `connections` idle and `polls` that wait."""
        self._say(f"{name}: {connections + polls:,} connections")
        memory = self._memory()
        opened = enter()
        self._until(OPEN_METRIC, connections + polls)
        self._until(POLLS_METRIC, polls)
        each = (self._memory() - memory) / added if added else None
        cores = self._cores()
        return Phase(name, connections + polls, polls, self._enqueues(), cores, each, opened)

    def _until(self, metric: str, count: int) -> None:
        def reached() -> bool:
            # The connection that asks is one of them.
            more = 1 if metric == OPEN_METRIC else 0
            return measure.metric(cluster.text(self._leader.api_url + "/metrics"), metric) == count + more

        cluster.wait(reached, f"{metric} is {count}")

    def _memory(self) -> int:
        def anonymous() -> int:
            found = measure.memory([self._leader.pid])
            return (found.pss - found.pss_file) >> 20

        measure.settle(anonymous, most_seconds=10.0)
        found = measure.memory([self._leader.pid])
        return found.pss - found.pss_file

    def _cores(self) -> float:
        began, before = time.monotonic(), measure.cpu_seconds(self._leader.pid)
        time.sleep(2 * self._seconds)
        return (measure.cpu_seconds(self._leader.pid) - before) / (time.monotonic() - began)

    def _enqueues(self) -> load.Latency:
        url = self._leader.api_url + "/v1/queues/single/messages"
        return load.enqueue(url, messages=1, connections=1, seconds=self._seconds).latency

    def _wave(self, name: str, polls: int, path: str, requests: list[dict[str, Any]]) -> Wave:
        self._say(f"{polls:,} messages for the polls, {name}")
        with closing(Connection(self._leader.api_url)) as connection:
            began = time.monotonic()
            for request in requests:
                connection.ask("POST", path, request)
            sent = time.monotonic() - began
        return Wave(name, polls, sent, self._clients.answered(polls) - began)


def _cut(queues: list[str]) -> list[list[str]]:
    return [queues[at : at + BATCH] for at in range(0, len(queues), BATCH)]


def bars(outcome: Outcome) -> list[Bar]:
    before, idle, *_ = outcome.phases
    found = [at_most("CPU of the leader for the idle", max(idle.cores - before.cores, 0.0), IDLE_CORES_MAX, "cores")]
    for phase in outcome.phases[1:]:
        times = phase.latency.p99_ms / before.latency.p99_ms
        found.append(at_most(f"p99 of an enqueue {phase.name}", times, TIMES_MAX, "times that without"))
        if phase.bytes_each is not None:
            found.append(at_most(f"memory {phase.name}, each", phase.bytes_each, MEMORY_BYTES_MAX, "bytes"))
    return found


def body(outcome: Outcome) -> str:
    return "\n\n".join((phases(outcome), waves(outcome), NOTES))


def phases(outcome: Outcome) -> str:
    head = ("single enqueues c=1", "connections", "p50 ms", "p99 ms", "leader idle, cores", "KiB each", "opened in s")
    rows = [
        (
            phase.name,
            number(phase.connections),
            number(phase.latency.p50_ms),
            number(phase.latency.p99_ms),
            number(phase.cores),
            "-" if phase.bytes_each is None else number(phase.bytes_each / 1024),
            number(phase.opened_seconds),
        )
        for phase in outcome.phases
    ]
    return table(head, rows)


def waves(outcome: Outcome) -> str:
    head = ("polls that are answered", "polls", "messages sent in s", "all answered after s")
    rows = [
        (wave.name, number(wave.polls), number(wave.sent_seconds), number(wave.answered_seconds))
        for wave in outcome.waves
    ]
    return table(head, rows)


NOTES = (
    "Three node processes on this machine, replication factor 3; all connections are to the leader, from a process of "
    "its own on the same cores. An idle connection was used once, and is kept alive. KiB each: what the leader's "
    "process takes more, mapped files left out, for each connection that the line adds to those of the idle; the "
    "second polls take what the first ones left. The polls "
    f"wait up to {crowd_clients.WAIT_SECONDS} s; messages for all of them come in requests of {BATCH:,}, one after "
    "another, and each poll leases one: a lease is a command of its own, durable on a majority before its answer."
)
