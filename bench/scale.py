"""What much costs: a million messages in one queue, a hundred thousand queues, a million messages acked in no order.

The same single requests are timed on an empty cluster and on the full one, on one connection to the leader, in turns;
memory and disk are those of all nodes. How much the tables hold is told by a backup, since the file on disk never
shrinks: its free pages are used again.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raftq.bench import cluster, load, measure
from raftq.bench.bars import Bar, at_most, number
from raftq.bench.measure import MIB
from raftq.bench.report import table

QUEUE = "scale"
BATCH = 1000
IN_EACH_QUEUE = 10
#: Of each request: how often it is timed.
TIMES = 300
#: What a request may cost, of what it costs on an empty cluster.
TIMES_MAX = 2.0
FILLERS = 4
#: On the empty cluster, so that a page of the list is as long there.
QUEUES_BEFORE = 100
LEASE_SECONDS = 3600
#: Of the messages that are acked in no order, before the rest.
PART = 0.9
#: Sparse batches are rewritten some 10 s after the ack.
REWRITE_SECONDS = 20.0
SEED = 1


@dataclass(frozen=True)
class Cost:
    """Median milliseconds of one request."""

    request: str
    empty_ms: float
    full_ms: float

    @property
    def times(self) -> float:
        return self.full_ms / self.empty_ms


@dataclass(frozen=True)
class Figure:
    name: str
    messages: int
    queues: int
    costs: list[Cost]
    memory_empty: measure.Memory
    memory_full: measure.Memory
    disk_bytes_empty: int
    disk_bytes_full: int
    nodes: int

    @property
    def disk_bytes_per_message(self) -> float:
        """Of one node, its log included."""
        return (self.disk_bytes_full - self.disk_bytes_empty) / self.messages / self.nodes


@dataclass(frozen=True)
class Space:
    """Bytes of a backup, which is what the tables hold: of all messages, leased; when PART of them was acked in no
    order; and when all were."""

    messages: int
    leased: int
    part_acked: int
    acked: int
    #: Of the acks, in messages a second.
    rate: float


@dataclass(frozen=True)
class Outcome:
    figures: list[Figure]
    space: Space


def run(folder: Path, *, messages: int, queues: int, say: Callable[[str], None]) -> tuple[Outcome, list[Bar]]:
    with cluster.running(folder) as nodes:
        one = Scale(nodes, say).one_queue(messages)
        space = Acks(nodes, say).space()
    with cluster.running(folder) as nodes:
        many = Scale(nodes, say).many_queues(queues)
    outcome = Outcome([one, many], space)
    return outcome, bars(outcome)


class Connection:
    """To the leader, kept open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)

    def close(self) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        found = answer.read()
        if answer.status >= 300:
            raise cluster.ClusterFailed(f"{method} {path} answered {answer.status}: {found[:200]!r}")
        read: dict[str, Any] = json.loads(found)
        return read


def bodies(amount: int) -> dict[str, Any]:
    return {"messages": [{"body": "x" * load.BODY_CHARACTERS}] * amount}


class Scale:
    def __init__(self, nodes: cluster.Cluster, say: Callable[[str], None]) -> None:
        self._nodes, self._say = nodes, say
        self._url = nodes.leader().api_url
        self._rng = random.Random(SEED)

    def one_queue(self, messages: int) -> Figure:
        path = f"/v1/queues/{QUEUE}"
        batches = [BATCH] * (messages // BATCH)

        def fill(connection: Connection, _number: int, size: int) -> None:
            connection.ask("POST", f"{path}/messages", bodies(size))

        return self._measured("one queue", messages, 1, lambda _: path, lambda: self._fill(fill, batches))

    def many_queues(self, queues: int) -> Figure:
        def fill(connection: Connection, number: int, size: int) -> None:
            connection.ask("POST", f"{_path(QUEUES_BEFORE + number)}/messages", bodies(size))

        with closing(Connection(self._url)) as connection:
            for at in range(QUEUES_BEFORE):
                connection.ask("POST", f"{_path(at)}/messages", bodies(IN_EACH_QUEUE))

        def some(full: bool) -> str:
            return _path(self._rng.randrange(queues if full else QUEUES_BEFORE))

        rest = [IN_EACH_QUEUE] * (queues - QUEUES_BEFORE)
        return self._measured("many queues", queues * IN_EACH_QUEUE, queues, some, lambda: self._fill(fill, rest))

    def _measured(
        self, name: str, messages: int, queues: int, path: Callable[[bool], str], fill: Callable[[], None]
    ) -> Figure:
        nodes = self._nodes
        empty = self._times(lambda: path(False))
        memory, disk = nodes.memory(), measure.settle(nodes.allocated_bytes)
        self._say(f"{name}: filling")
        fill()
        cluster.wait(nodes.settled, "all nodes have applied it")
        self._say(f"{name}: measuring")
        full = self._times(lambda: path(True))
        return Figure(
            name=name,
            messages=messages,
            queues=queues,
            costs=[Cost(request, empty[request], full[request]) for request in empty],
            memory_empty=memory,
            memory_full=nodes.memory(),
            disk_bytes_empty=disk,
            disk_bytes_full=measure.settle(nodes.allocated_bytes),
            nodes=len(nodes.nodes()),
        )

    def _times(self, path: Callable[[], str]) -> dict[str, float]:
        """Median milliseconds by request."""
        took: dict[str, list[float]] = {}
        with closing(Connection(self._url)) as connection:
            for _ in range(TIMES):
                for request, seconds in self._round(connection, path()):
                    took.setdefault(request, []).append(seconds * 1000)
        return {request: measure.median(times) for request, times in took.items()}

    def _round(self, connection: Connection, path: str) -> Iterator[tuple[str, float]]:
        given: dict[str, Any] = {}
        for request, method, url, body in (
            ("enqueue", "POST", f"{path}/messages", bodies(1)),
            ("lease", "POST", f"{path}/lease", {"max": 1, "lease_seconds": LEASE_SECONDS}),
            ("ack", "POST", f"{path}/ack", None),
            ("stats of the queue", "GET", f"{path}/stats", None),
            ("stats of all", "GET", "/v1/stats", None),
            ("list, a page of 100", "GET", "/v1/queues?limit=100", None),
        ):
            content = {"receipts": [given["messages"][0]["receipt"]]} if request == "ack" else body
            began = time.perf_counter()
            answer = connection.ask(method, url, content)
            yield request, time.perf_counter() - began
            given = answer if request == "lease" else given

    def _fill(self, fill: Callable[[Connection, int, int], None], sizes: list[int]) -> None:
        def some(first: int) -> None:
            with closing(Connection(self._url)) as connection:
                for at in range(first, len(sizes), FILLERS):
                    fill(connection, at, sizes[at])

        with ThreadPoolExecutor(FILLERS) as pool:
            for _ in pool.map(some, range(FILLERS)):
                pass


def _path(number: int) -> str:
    return f"/v1/queues/q{number:06}"


class Acks:
    """Of all that is in the queue, in no order."""

    def __init__(self, nodes: cluster.Cluster, say: Callable[[str], None]) -> None:
        self._nodes, self._say = nodes, say
        self._url = nodes.leader().api_url

    def space(self) -> Space:
        with closing(Connection(self._url)) as connection:
            receipts: list[str] = []
            lease = {"max": BATCH, "lease_seconds": LEASE_SECONDS}
            while given := connection.ask("POST", f"/v1/queues/{QUEUE}/lease", lease)["messages"]:
                receipts += [message["receipt"] for message in given]
            random.Random(SEED).shuffle(receipts)
            leased, part = self._backup_bytes(), int(len(receipts) * PART)
            self._say(f"acking {part:,} of {len(receipts):,} messages in no order")
            began = time.monotonic()
            self._ack(connection, receipts[:part])
            seconds = time.monotonic() - began
            time.sleep(REWRITE_SECONDS)
            part_acked = self._backup_bytes()
            self._ack(connection, receipts[part:])
            time.sleep(REWRITE_SECONDS)
            return Space(len(receipts), leased, part_acked, self._backup_bytes(), part / seconds)

    @staticmethod
    def _ack(connection: Connection, receipts: list[str]) -> None:
        for first in range(0, len(receipts), BATCH):
            body = {"receipts": receipts[first : first + BATCH]}
            results = connection.ask("POST", f"/v1/queues/{QUEUE}/ack", body)["results"]
            if any(result["status"] != "done" for result in results):
                raise cluster.ClusterFailed("an ack of a message that is leased was not done")

    def _backup_bytes(self) -> int:
        status, found, _ = cluster.request("GET", f"{self._url}/v1/cluster/snapshot", seconds=300)
        if status != 200:
            raise cluster.ClusterFailed(f"a backup was answered {status}: {found[:200]!r}")
        return len(found)


def bars(outcome: Outcome) -> list[Bar]:
    found = [
        at_most(f"{figure.name}: {cost.request}", cost.times, TIMES_MAX, "times its cost on an empty cluster")
        for figure in outcome.figures
        for cost in figure.costs
    ]
    space = outcome.space
    left = (space.part_acked - space.acked) / (space.leased - space.acked)
    # Rewritten batches hold less than four times what lives.
    return [*found, at_most("space of acked messages that is not free", left, 4 * (1 - PART), "of what they took")]


def body(outcome: Outcome) -> str:
    return "\n\n".join((costs(outcome), footprints(outcome), spaces(outcome.space)))


def costs(outcome: Outcome) -> str:
    head = ("p50 ms of one request", "empty", "full", "times")
    rows = [
        (f"{figure.name}: {cost.request}", *map(number, (cost.empty_ms, cost.full_ms, cost.times)))
        for figure in outcome.figures
        for cost in figure.costs
    ]
    return table(head, rows)


def footprints(outcome: Outcome) -> str:
    head = (
        "",
        "messages",
        "queues",
        "PSS MiB of a node, empty",
        "full (of which not mapped files)",
        "disk bytes a message of a node, its log included",
    )
    rows = [
        (
            figure.name,
            number(figure.messages),
            number(figure.queues),
            number(figure.memory_empty.pss / figure.nodes / MIB),
            f"{number(figure.memory_full.pss / figure.nodes / MIB)} "
            f"({number((figure.memory_full.pss - figure.memory_full.pss_file) / figure.nodes / MIB)})",
            number(figure.disk_bytes_per_message),
        )
        for figure in outcome.figures
    ]
    return table(head, rows)


def spaces(space: Space) -> str:
    sizes = ", ".join(f"{size / MIB:,.1f}" for size in (space.leased, space.part_acked, space.acked))
    return (
        f"{space.messages:,} leased messages, acked in no order, {BATCH:,} receipts at once: the tables hold {sizes} "
        f"MiB with none, {PART:.0%} and all of them acked, {REWRITE_SECONDS:.0f} s after the acks; {space.rate:,.0f} "
        f"acks a second on one connection. A request is timed {TIMES} times on one connection to the leader, in turn "
        f"with the others; an empty cluster has a message in its queue, or {QUEUES_BEFORE} queues of {IN_EACH_QUEUE}."
    )
