"""`/metrics`: what this node counts, as Prometheus reads it; `/metrics/detailed`: what is counted of each queue.

The tables below are all that there is: `make docs` writes them into docs/operations.md. Nothing is computed while
requests are served but an addition or a bisection each; the rest is read at a scrape, from sums that the state machine
keeps: a scrape costs the same however many queues there are. A detailed one goes over the queues in pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from raftq.api import names
from raftq.api.answers import Answer, Streamed
from raftq.api.call import Call
from raftq.api.reads import name_text
from raftq.api.stats import age_seconds
from raftq.replication.shard import NotLeader, Status
from raftq.replication.stages import BOUNDS, Histogram
from raftq.storage.machine.tallies import COUNTS, TOTALS
from raftq.storage.machine.views import Tally

if TYPE_CHECKING:
    from raftq.api.app import Api

#: Queues of one detailed scrape; and how many of them are read, or written, in one go.
QUEUES_MAX = 10_000
_READ_IN_ONE_GO = 25
_WRITTEN_IN_ONE_GO = 1_000

_log = structlog.get_logger("raftq.api")


class Scrape(NamedTuple):
    """What a scrape of `/metrics` reads from."""

    api: Api
    status: Status
    #: Of `View.sums`, and the age of the oldest ready message; None while a snapshot takes the place of the tables.
    sums: dict[str, int] | None
    oldest_seconds: float | None


#: (values of the labels, value)
Sample = tuple[tuple[str, ...], Any]


class Family(NamedTuple):
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Callable[[Scrape], Iterable[Sample]]
    labels: tuple[str, ...] = ()

    def collected(self, scrape: Scrape) -> Metric | None:
        """None when there is nothing to say."""
        samples = list(self.samples(scrape))
        if not samples:
            return None
        metric: Any = _KINDS[self.kind](self.name, self.help, labels=self.labels)
        for labels, value in samples:
            found = (_buckets(value), value.sum) if isinstance(value, Histogram) else (value,)
            metric.add_metric(labels, *found)
        return metric  # type: ignore[no-any-return]


_KINDS: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
_BOUNDS = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]


def _buckets(histogram: Histogram) -> list[tuple[str, int]]:
    return list(zip(_BOUNDS, accumulate(histogram.counts), strict=True))


def _one(value: Callable[[Scrape], Any]) -> Callable[[Scrape], Iterator[Sample]]:
    """Of one value, without labels; nothing when it is None."""

    def samples(scrape: Scrape) -> Iterator[Sample]:
        found = value(scrape)
        if found is not None:
            yield (), found

    return samples


def _roles(scrape: Scrape) -> Iterator[Sample]:
    status = scrape.status
    for role in ("leader", "follower", "candidate"):
        yield (status.node_id, role), float(status.role == role)


def _lags(scrape: Scrape) -> Iterator[Sample]:
    status = scrape.status
    if status.role == "leader":
        for peer in status.peers:
            if peer.id != status.node_id and peer.match_index is not None:
                yield (peer.id,), max(status.last_index - peer.match_index, 0)


def _peer_lags(scrape: Scrape) -> Iterator[Sample]:
    return (((peer,), lag) for peer, lag in sorted(scrape.api.node.shard.stages.peer_lags.items()))


def _reachable(scrape: Scrape) -> Iterator[Sample]:
    return (((peer.id,), peer.reachable) for peer in scrape.status.peers if peer.id != scrape.status.node_id)


def _stages(scrape: Scrape) -> Iterator[Sample]:
    stages = scrape.api.node.shard.stages
    yield ("parse",), scrape.api.parsed
    yield ("wait",), stages.waited
    yield ("replicate",), stages.replicated
    yield ("commit",), stages.committed
    yield ("apply",), stages.applied


def _requests(scrape: Scrape) -> Iterator[Sample]:
    for route in scrape.api.routes.all:
        for status, count in route.answered.items():
            yield (route.method, route.pattern, str(status)), count
    for status, count in scrape.api.unrouted.items():
        yield ("", "", str(status)), count


def _offset(scrape: Scrape) -> float | None:
    offset_ms = scrape.status.clock_offset_ms
    return None if offset_ms is None else offset_ms / 1000


def _sum(name: str) -> Callable[[Scrape], Iterator[Sample]]:
    return _one(lambda scrape: None if scrape.sums is None else scrape.sums[name])


#: What is counted of a queue, and of all together: name of the count or total -> (metric, help).
QUEUE_COUNTS = {
    "ready": ("raftq_queue_messages_ready", "Messages that are ready, those that wait for others of their group too."),
    "leased": ("raftq_queue_messages_leased", "Messages that are leased."),
    "delayed": ("raftq_queue_messages_delayed", "Messages that wait for their delay to end."),
    "bytes": ("raftq_queue_messages_bytes", "Bytes of the messages, attributes included."),
}
QUEUE_TOTALS = {
    "enqueued": "Messages enqueued.",
    "delivered": "Deliveries: leases of one message each.",
    "acked": "Messages acked.",
    "nacked": "Messages nacked.",
    "released": "Messages released.",
    "expired": "Messages whose lease expired.",
    "duplicates": "Messages refused, since their dedup id was known.",
    "rejected": "Messages rejected.",
    "dead_lettered": "Messages that went on to a dead-letter queue.",
    "discarded": "Messages that would have, but for there being none.",
    "removed": "Messages purged, replaced, or deleted by their id.",
    "redriven": "Messages moved on by a redrive.",
}
OLDEST = ("raftq_queue_oldest_ready_age_seconds", "Age of the oldest message that is ready; 0 when none is.")


def total_name(total: str) -> str:
    return f"raftq_queue_messages_{total}_total"


def _gauge(name: str, text: str, value: Callable[[Scrape], float | None]) -> Family:
    return Family(name, "gauge", text, _one(value))


def _of_node() -> Iterator[Family]:
    yield Family(
        "raftq_build_info", "gauge", "1, with the version.", lambda s: [((s.api.node.version,), 1)], ("version",)
    )
    yield _gauge("raftq_ready", "1 when this node can serve writes, or reach who can.", lambda s: s.status.ready)
    yield Family("raftq_role", "gauge", "1 for the role of this node.", _roles, ("node", "role"))
    yield Family("raftq_requests_total", "counter", "Requests answered.", _requests, ("method", "route", "status"))
    text = (
        "Operations of streams refused, since the token lacks the scope. Requests: raftq_requests_total, 401 and 403."
    )
    yield Family("raftq_stream_forbidden_total", "counter", text, _one(lambda s: s.api.forbidden))
    yield _gauge("raftq_requests_in_flight", "Requests being answered.", lambda s: s.api.in_flight)
    yield _gauge("raftq_waiters", "Leases that wait for a message.", lambda s: s.api.waiters.waiting())
    text = (
        "parse: a request, from its head until its command is handed over. wait: an entry, how long the first of its "
    )
    text += "commands waited to be put into it. replicate: an entry, until a majority has it. commit: a transaction of "
    text += "this node. apply: what one cycle applied. wait and replicate: on the leader alone."
    yield Family("raftq_request_stage_seconds", "histogram", text, _stages, ("stage",))
    text = "Transactions made durable by this node, and the time they took."
    yield Family("raftq_commit_seconds", "histogram", text, _one(lambda s: s.api.node.shard.stages.committed))
    text = "How late the event loop ran a timer that is due every 10 ms."
    yield Family("raftq_loop_lag_seconds", "histogram", text, _one(lambda s: s.api.node.shard.stages.lag))
    yield _gauge("raftq_clock_offset_seconds", "This node's clock against the cluster's median.", _offset)


def _of_raft() -> Iterator[Family]:
    yield _gauge("raftq_raft_term", "Raft term.", lambda s: s.status.term)
    text = "Last entry known to be on a majority."
    yield _gauge("raftq_raft_commit_index", text, lambda s: s.status.commit_index)
    yield _gauge("raftq_raft_applied_index", "Last entry applied here.", lambda s: s.status.applied_index)
    yield _gauge("raftq_raft_last_index", "Last entry of the log.", lambda s: s.status.last_index)
    yield _gauge("raftq_raft_first_index", "First entry that the log still holds.", lambda s: s.status.first_index)
    yield _gauge("raftq_raft_log_bytes", "Bytes of the log, about.", lambda s: s.status.log_bytes)
    text = "Leader, an entry: from the first of its commands until a majority has it durably."
    latency = _one(lambda s: s.api.node.shard.stages.latency)
    yield Family("raftq_raft_commit_latency_seconds", "histogram", text, latency)
    text = "Leader: entries of the log that the peer is not known to have."
    yield Family("raftq_raft_peer_lag_entries", "gauge", text, _lags, ("peer",))
    text = "Leader, an append that the peer answered: from sending it until what it held is on its disk, and told."
    yield Family("raftq_raft_peer_lag_seconds", "histogram", text, _peer_lags, ("peer",))
    text = "1 when this node is connected with the peer."
    yield Family("raftq_raft_peer_reachable", "gauge", text, _reachable, ("peer",))


def _of_queues() -> Iterator[Family]:
    of_all = " Of all queues together"
    yield Family("raftq_queues", "gauge", "Queues.", _sum("queues"))
    for count, (name, text) in QUEUE_COUNTS.items():
        yield Family(name, "gauge", f"{text}{of_all}.", _sum(count))
    text = f"{OLDEST[1]}{of_all}; of more than 100 queues it may be a while behind."
    yield _gauge(OLDEST[0], text, lambda s: s.oldest_seconds)
    for total, text in QUEUE_TOTALS.items():
        yield Family(total_name(total), "counter", f"{text}{of_all}, deleted ones too.", _sum(total))


#: All of `/metrics` but what the node adds (`Node.measures`), and the process.
FAMILIES = (*_of_node(), *_of_raft(), *_of_queues())


class Metrics:
    """Of one node: a registry of its own."""

    def __init__(self, api: Api) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collected(api))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Collected(Collector):
    def __init__(self, api: Api) -> None:
        self._api = api

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        scrape = _scrape(self._api)
        for family in FAMILIES:
            metric = family.collected(scrape)
            if metric is not None:
                yield metric
        for name, text, kind, value in self._api.node.measures():
            metric = _KINDS[kind](name, text)
            metric.add_metric((), value)
            yield metric


def _scrape(api: Api) -> Scrape:
    shard = api.node.shard
    status = shard.status()
    try:
        sums = shard.stale().sums()
        since_ms = api.oldest.ready_ms(shard)
    except NotLeader:
        return Scrape(api, status, None, None)
    if since_ms is None:
        return Scrape(api, status, sums, None if sums["ready"] else 0.0)
    return Scrape(api, status, sums, age_seconds(since_ms, shard.wall_ms()))


async def scrape(call: Call) -> Answer:
    """GET /metrics: Tell what this node counts, for Prometheus."""
    return Answer(call.api.metrics.text(), content_type=CONTENT_TYPE_LATEST)


# One line a queue. Written by hand: prometheus-client takes some 5 us a line, in one go


class _Row(NamedTuple):
    queue: str
    values: tuple[float, ...]


#: (metric, kind, help), in the order of a row's values.
DETAILED = (
    *((name, "gauge", text) for name, text in QUEUE_COUNTS.values()),
    *((total_name(total), "counter", text) for total, text in QUEUE_TOTALS.items()),
    (OLDEST[0], "gauge", OLDEST[1]),
)
#: Whether there were more queues than a detailed scrape tells of.
CUT = ("raftq_detailed_cut", "gauge", f"1 when more than {QUEUES_MAX:,} queues were asked for: the rest is left out.")

assert tuple(QUEUE_COUNTS) == COUNTS
assert tuple(QUEUE_TOTALS) == TOTALS


async def scrape_detailed(call: Call) -> Answer:
    """GET /metrics/detailed?queue=&prefix=: Tell what is counted of each queue, for Prometheus. Of the first 10,000 by
    name, among those of the prefix; a queue that does not exist has no lines."""
    prefix = name_text(call, "prefix") or ""
    queue = call.query.get("queue")
    rows, cut = await _rows(call, prefix) if queue is None else (_row_of(call, queue, prefix), False)
    answer = Streamed(content_type=CONTENT_TYPE_LATEST)
    pieces = [piece async for piece in _pieces(rows, cut)]
    await answer.begin(call.request, sum(map(len, pieces)))
    try:
        for piece in pieces:
            async with asyncio.timeout(call.node.limits.read_seconds):
                await answer.send(piece)
    except Exception as error:  # half a body must not be followed by a problem
        _log.warning("a scrape was not sent whole", reason=str(error) or type(error).__name__)
    return answer


def _row_of(call: Call, queue: str, prefix: str) -> list[_Row]:
    view = call.node.shard.stale()
    info = view.queue(names.queue_key(queue, "query.queue"))
    if info is None or not queue.startswith(prefix):
        return []
    values = tuple(view.counted(info.key).values())
    return [_row(Tally(info.key, values, info.oldest_ready_ms), call.node.shard.wall_ms())]


async def _rows(call: Call, prefix: str) -> tuple[list[_Row], bool]:
    """And whether there were more. The loop gets a pass now and then."""
    rows: list[_Row] = []
    cursor = None
    shard = call.node.shard
    while len(rows) < QUEUES_MAX:
        count = min(_READ_IN_ONE_GO, QUEUES_MAX - len(rows))
        page, cursor = shard.stale().tallies(names.namespace(), prefix, count, cursor)
        now_ms = shard.wall_ms()
        rows += [_row(tally, now_ms) for tally in page]
        if cursor is None:
            return rows, False
        await asyncio.sleep(0)
    return rows, True


def _row(tally: Tally, now_ms: int) -> _Row:
    age = age_seconds(tally.oldest_ready_ms, now_ms) or 0.0
    return _Row(names.queue_name(tally.key), (*tally.values, age))


async def _pieces(rows: list[_Row], cut: bool) -> Any:
    """The text: all lines of a metric together."""
    for place, (name, kind, text) in enumerate(DETAILED):
        yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
        for at in range(0, len(rows), _WRITTEN_IN_ONE_GO):
            some = rows[at : at + _WRITTEN_IN_ONE_GO]
            # Names of queues hold nothing that would have to be escaped.
            yield "".join([f'{name}{{queue="{queue}"}} {values[place]}\n' for queue, values in some]).encode()
            await asyncio.sleep(0)
    name, kind, text = CUT
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {cut:d}\n".encode()
