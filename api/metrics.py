"""`/metrics`: what this node counts, as Prometheus reads it.

Nothing is computed while requests are served but one addition each; the rest is asked of the shard at a scrape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from raftq.api import queues
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.replication.shard import Status

if TYPE_CHECKING:
    from raftq.api.app import Api

ROLES = ("leader", "follower", "candidate")


class Metrics:
    def __init__(self, api: Api) -> None:
        self._collector = _ApiCollector(api)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)

    def text(self, sums: dict[str, Any]) -> bytes:
        self._collector.sums = sums
        return generate_latest(self._registry)


async def scrape(call: Call) -> Answer:
    """GET /metrics"""
    sums = await queues.sums(call.node.shard)
    return Answer(call.api.metrics.text(sums), content_type=CONTENT_TYPE_LATEST)


class _ApiCollector(Collector):
    def __init__(self, api: Api) -> None:
        self._api = api
        self.sums: dict[str, Any] = {}

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        api = self._api
        yield from _of_raft(api.node.shard.status())
        yield from _of_queues(self.sums)
        yield self._requests()
        yield GaugeMetricFamily("raftq_requests_in_flight", "Requests being answered.", value=api.in_flight)
        yield GaugeMetricFamily("raftq_waiters", "Leases that wait for a message.", value=api.waiters.waiting())
        for name, text, kind, value in api.node.measures():
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            yield family(name, text, value=value)

    def _requests(self) -> Metric:
        family = CounterMetricFamily("raftq_requests", "Requests answered.", labels=("method", "route", "status"))
        for route in self._api.routes.all:
            for status, count in route.answered.items():
                family.add_metric((route.method, route.pattern, str(status)), count)
        for status, count in self._api.unrouted.items():
            family.add_metric(("", "", str(status)), count)
        return family


def _of_raft(status: Status) -> Iterator[Metric]:
    role = GaugeMetricFamily("raftq_role", "1 for the role of this node.", labels=("node", "role"))
    for name in ROLES:
        role.add_metric((status.node_id, name), float(status.role == name))
    yield role
    yield GaugeMetricFamily("raftq_ready", "1 when this node can serve writes, or reach who can.", value=status.ready)
    yield GaugeMetricFamily("raftq_term", "Raft term.", value=status.term)
    yield GaugeMetricFamily("raftq_commit_index", "Last entry known to be on a majority.", value=status.commit_index)
    yield GaugeMetricFamily("raftq_applied_index", "Last entry applied here.", value=status.applied_index)
    yield GaugeMetricFamily("raftq_last_index", "Last entry of the log.", value=status.last_index)
    yield GaugeMetricFamily("raftq_first_index", "First entry that the log still holds.", value=status.first_index)
    yield GaugeMetricFamily("raftq_log_bytes", "Bytes of the log, about.", value=status.log_bytes)
    if status.clock_offset_ms is not None:
        text = "This node's clock against the cluster's median."
        yield GaugeMetricFamily("raftq_clock_offset_seconds", text, value=status.clock_offset_ms / 1000)


def _of_queues(sums: dict[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily("raftq_queues", "Queues.", value=sums["queues"])
    messages = GaugeMetricFamily("raftq_messages", "Messages in all queues.", labels=("state",))
    for state in ("ready", "leased", "delayed"):
        messages.add_metric((state,), sums[state])
    yield messages
    yield GaugeMetricFamily("raftq_message_bytes", "Bytes of the messages in all queues.", value=sums["bytes"])
    age = sums["oldest_ready_seconds"]
    yield GaugeMetricFamily("raftq_oldest_ready_seconds", "Age of the oldest ready message.", value=age or 0)
    # A gauge, for it falls when a queue is deleted.
    totals = GaugeMetricFamily("raftq_queue_operations", "Totals of the queues that there are.", labels=("operation",))
    for name, value in sums["totals"].items():
        totals.add_metric((name,), value)
    yield totals
