"""The HTTP front end: one table of routes, one dispatch, one place where errors become answers.

How `node/` uses it:

    api = Api(node)                         # node: raftq.api.ports.Node; within the running loop
    shard = RaftShard(..., on_effects=api.on_effects, on_role=api.on_role)
    await api.start(bound)                  # a bound socket; requests are answered from here on
    ...
    node.stopping = True                    # SIGTERM: new work is refused with 503 and Connection: close
    await api.drain(seconds)                # waiters get 503 at once; what is in flight is answered
    await shard.stop()                      # leadership goes over, while this front still says 503 and not "refused"
    await api.stop()                        # drains again (0 s), closes the socket and the connections

The shard may be made after the Api: `node.shard` is first read by a request. Effects may be lost or repeated.
It stands on the low-level `aiohttp.web.Server`: handlers are plain async functions from a `Call` to an `Answer`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any, cast

import structlog
from aiohttp import hdrs, web

from raftq.api import answer_schemas as shown
from raftq.api import (
    audit,
    auth,
    cluster,
    curl,
    docs_page,
    events,
    leases,
    messages,
    metrics,
    openapi,
    operations,
    problems,
    queues,
    redrives,
    schedules,
    schemas,
    settlements,
    stats,
    streams,
    token,
    tokens,
    topics,
    transactions,
)
from raftq.api.answers import Answer
from raftq.api.auth import Need
from raftq.api.call import Call
from raftq.api.connections import Connections, HttpConnection
from raftq.api.leader import Leader
from raftq.api.ports import Node
from raftq.api.problems import Problem
from raftq.api.routing import Route, Routes
from raftq.api.sockets import Connection
from raftq.api.waiters import Waiters
from raftq.replication.shard import NotLeader, ShardError
from raftq.replication.stages import Histogram
from raftq.storage.machine.replies import Effect

_log = structlog.get_logger("raftq.api")

#: What is still in flight when the front is closed is cut off after this.
_CUT_SECONDS = 0.5

_READ = frozenset({"consistency"})
_PAGE = _READ | {"limit", "cursor"}
_TAKE = frozenset({"wait", "lease"})
_TAKEN = {200: shown.TAKEN_ONE, 204: None}
_HEALTH = frozenset({"queues", "prefix", "limit", "cursor"})
_QUEUE = "/v1/queues/{queue}"
_TOPIC = "/v1/topics/{topic}"
_SUBSCRIPTION = f"{_TOPIC}/subscriptions/{{queue}}"
_TOPIC_PROBLEMS = ("unknown-topic",)
_SCHEDULE = "/v1/schedules/{schedule}"
_TOKEN = "/v1/tokens/{id}"  # noqa: S105 - a path


def routes() -> list[Route]:
    """The table. `leader`: only the leader can do it. A read finds that out by itself, unless it may be stale.
    What `takes`, `gives` and `problems` say is the OpenAPI document."""
    return [
        Route(
            "PUT",
            _QUEUE,
            queues.define,
            Need.ADMIN,
            leader=True,
            takes=schemas.QUEUE,
            gives={200: shown.Queue, 201: shown.Queue},
        ),
        Route("GET", _QUEUE, queues.read, Need.ANY, query=_READ, gives={200: shown.Queue}),
        Route("PATCH", _QUEUE, queues.change, Need.ADMIN, leader=True, takes=schemas.QUEUE, gives={200: shown.Queue}),
        Route("DELETE", _QUEUE, queues.remove, Need.ADMIN, leader=True, gives={200: shown.QueueRemoved}),
        Route(
            "GET",
            "/v1/queues",
            queues.list_all,
            Need.LISTED,
            query=_PAGE | {"prefix", "stats"},
            gives={200: shown.QueuePage},
        ),
        Route(
            "POST",
            f"{_QUEUE}/messages",
            messages.enqueue,
            Need.PRODUCE,
            leader=True,
            large=True,
            takes=schemas.ENQUEUE,
            gives={201: shown.Enqueued},
            problems=("queue-full",),
        ),
        Route(
            "GET",
            f"{_QUEUE}/messages",
            messages.peek,
            Need.CONSUME,
            query=_PAGE | {"state"},
            gives={200: shown.MessagePage},
            problems=("conflict",),
        ),
        Route(
            "GET",
            f"{_QUEUE}/messages/{{id}}",
            messages.read_one,
            Need.CONSUME,
            query=_READ,
            gives={200: shown.MessagePeeked},
            problems=("unknown-message",),
        ),
        Route(
            "DELETE",
            f"{_QUEUE}/messages/{{id}}",
            operations.delete_message,
            Need.ADMIN,
            leader=True,
            gives={204: None},
            problems=("unknown-message",),
        ),
        Route(
            "POST",
            f"{_QUEUE}/redrive",
            redrives.begin,
            Need.ADMIN,
            leader=True,
            takes=schemas.REDRIVE,
            gives={202: shown.Redrive},
        ),
        Route(
            "GET",
            f"{_QUEUE}/redrive",
            redrives.read,
            Need.ANY,
            query=_READ,
            gives={200: shown.Redrive},
            problems=("unknown-redrive", "conflict"),
        ),
        Route(
            "DELETE",
            f"{_QUEUE}/redrive",
            redrives.cancel,
            Need.ADMIN,
            leader=True,
            gives={200: shown.Redrive},
            problems=("unknown-redrive",),
        ),
        Route(
            "POST",
            f"{_QUEUE}/purge",
            operations.purge,
            Need.ADMIN,
            leader=True,
            takes=schemas.PURGE,
            gives={200: shown.Purged},
        ),
        Route(
            "POST",
            f"{_QUEUE}/pause",
            operations.pause,
            Need.ADMIN,
            leader=True,
            takes=schemas.NOTHING,
            gives={200: shown.Queue},
        ),
        Route(
            "POST",
            f"{_QUEUE}/resume",
            operations.resume,
            Need.ADMIN,
            leader=True,
            takes=schemas.NOTHING,
            gives={200: shown.Queue},
        ),
        Route(
            "POST",
            f"{_QUEUE}/lease",
            leases.lease,
            Need.CONSUME,
            leader=True,
            takes=schemas.LEASE,
            gives={200: shown.Leased},
        ),
        Route(
            "POST",
            f"{_QUEUE}/ack",
            settlements.ack,
            Need.CONSUME,
            leader=True,
            takes=schemas.RECEIPTS,
            gives={200: shown.Settled},
        ),
        Route(
            "POST",
            f"{_QUEUE}/nack",
            settlements.nack,
            Need.CONSUME,
            leader=True,
            takes=schemas.NACK,
            gives={200: shown.Settled},
        ),
        Route(
            "POST",
            f"{_QUEUE}/release",
            settlements.release,
            Need.CONSUME,
            leader=True,
            takes=schemas.RECEIPTS,
            gives={200: shown.Settled},
        ),
        Route(
            "POST",
            f"{_QUEUE}/reject",
            settlements.reject,
            Need.CONSUME,
            leader=True,
            takes=schemas.REJECT,
            gives={200: shown.Settled},
        ),
        Route(
            "POST",
            f"{_QUEUE}/extend",
            settlements.extend,
            Need.CONSUME,
            leader=True,
            takes=schemas.EXTEND,
            gives={200: shown.Extended},
        ),
        Route(
            "POST",
            "/v1/transactions",
            transactions.transact,
            Need.EACH,
            leader=True,
            large=True,
            takes=schemas.TRANSACT,
            gives={200: shown.Transacted},
            problems=("transaction-refused",),
        ),
        Route(
            "PUT",
            _TOPIC,
            topics.define,
            Need.ADMIN,
            leader=True,
            takes=schemas.TOPIC,
            gives={200: shown.Topic, 201: shown.Topic},
        ),
        Route("GET", _TOPIC, topics.read, Need.ANY, query=_READ, gives={200: shown.Topic}, problems=_TOPIC_PROBLEMS),
        Route(
            "DELETE",
            _TOPIC,
            topics.remove,
            Need.ADMIN,
            leader=True,
            gives={200: shown.TopicRemoved},
            problems=_TOPIC_PROBLEMS,
        ),
        Route(
            "GET", "/v1/topics", topics.list_all, Need.LISTED, query=_PAGE | {"prefix"}, gives={200: shown.TopicPage}
        ),
        Route(
            "GET",
            f"{_TOPIC}/subscriptions",
            topics.subscriptions,
            Need.ANY,
            query=_READ,
            gives={200: shown.SubscriptionList},
            problems=_TOPIC_PROBLEMS,
        ),
        Route(
            "PUT",
            _SUBSCRIPTION,
            topics.subscribe,
            Need.ADMIN,
            leader=True,
            takes=schemas.SUBSCRIPTION,
            gives={200: shown.Subscription, 201: shown.Subscription},
            problems=_TOPIC_PROBLEMS,
        ),
        Route(
            "GET",
            _SUBSCRIPTION,
            topics.read_subscription,
            Need.ANY,
            query=_READ,
            gives={200: shown.Subscription},
            problems=(*_TOPIC_PROBLEMS, "unknown-subscription"),
        ),
        Route(
            "DELETE",
            _SUBSCRIPTION,
            topics.unsubscribe,
            Need.ADMIN,
            leader=True,
            gives={204: None},
            problems=(*_TOPIC_PROBLEMS, "unknown-subscription"),
        ),
        Route(
            "POST",
            f"{_TOPIC}/messages",
            topics.publish,
            Need.PRODUCE,
            leader=True,
            large=True,
            takes=schemas.PUBLISH,
            gives={201: shown.Published},
            problems=(*_TOPIC_PROBLEMS, "queue-full"),
        ),
        Route(
            "PUT",
            _SCHEDULE,
            schedules.define,
            Need.ADMIN,
            leader=True,
            takes=schemas.SCHEDULE,
            gives={200: shown.Schedule, 201: shown.Schedule},
            problems=_TOPIC_PROBLEMS,
        ),
        Route(
            "GET",
            _SCHEDULE,
            schedules.read,
            Need.ANY,
            query=_READ,
            gives={200: shown.Schedule},
            problems=("unknown-schedule",),
        ),
        Route(
            "DELETE",
            _SCHEDULE,
            schedules.remove,
            Need.ADMIN,
            leader=True,
            gives={204: None},
            problems=("unknown-schedule",),
        ),
        Route(
            "GET",
            "/v1/schedules",
            schedules.list_all,
            Need.LISTED,
            query=_PAGE | {"prefix"},
            gives={200: shown.SchedulePage},
        ),
        Route(
            "GET",
            "/v1/stream",
            streams.stream,
            Need.EACH,
            relayed=True,
            gives={101: None},
            problems=("no-leader", "unreachable-leader", "overloaded"),
        ),
        Route(
            "GET",
            "/v1/events",
            events.watch,
            Need.EACH,
            query=frozenset({"prefix"}),
            gives={101: None},
            problems=("overloaded",),
        ),
        Route("GET", f"{_QUEUE}/stats", stats.of_queue, Need.ANY, query=_READ, gives={200: shown.QueueStats}),
        Route("GET", "/v1/stats", stats.of_all, Need.SUMS, query=_READ, gives={200: shown.AllStats}),
        Route("GET", "/v1/cluster", cluster.describe, Need.TOKEN, gives={200: shown.Cluster}),
        Route(
            "POST",
            "/v1/cluster/leader",
            cluster.transfer,
            Need.CLUSTER,
            leader=True,
            takes=schemas.TRANSFER,
            gives={200: shown.Transferred},
            problems=("change-underway",),
        ),
        Route(
            "POST",
            "/v1/cluster/nodes",
            cluster.add,
            Need.CLUSTER,
            leader=True,
            takes=schemas.NODE,
            gives={202: shown.NodeAdded},
            problems=("change-underway",),
        ),
        Route(
            "DELETE",
            "/v1/cluster/nodes/{node}",
            cluster.remove,
            Need.CLUSTER,
            leader=True,
            gives={200: shown.NodeRemoved},
            problems=("change-underway", "unknown-node"),
        ),
        Route("GET", "/v1/cluster/digest", cluster.digest, Need.CLUSTER, leader=True, gives={200: shown.Digests}),
        Route(
            "GET",
            "/v1/cluster/snapshot",
            cluster.snapshot,
            Need.CLUSTER,
            gives={200: shown.SNAPSHOT},
            problems=("conflict",),
        ),
        Route(
            "POST",
            "/v1/tokens",
            tokens.create,
            Need.CLUSTER,
            leader=True,
            takes=schemas.TOKEN,
            gives={201: shown.TokenMade},
        ),
        # Never stale: a token that was revoked is not shown as one that is good.
        Route(
            "GET",
            "/v1/tokens",
            tokens.list_all,
            Need.CLUSTER,
            leader=True,
            query=_PAGE - _READ,
            gives={200: shown.TokenPage},
        ),
        Route(
            "GET",
            _TOKEN,
            tokens.read,
            Need.CLUSTER,
            leader=True,
            gives={200: shown.TokenShown},
            problems=("unknown-token",),
        ),
        Route(
            "DELETE",
            _TOKEN,
            tokens.revoke,
            Need.CLUSTER,
            leader=True,
            gives={204: None},
            problems=("unknown-token",),
        ),
        Route(
            "POST",
            "/q/{queue}",
            curl.put,
            Need.PRODUCE,
            leader=True,
            proxied=True,
            large=True,
            takes=shown.ANY_BODY,
            gives={201: shown.PUT_ONE},
            problems=("queue-full",),
        ),
        Route("GET", "/q/{queue}", curl.take_one, Need.CONSUME, leader=True, proxied=True, query=_TAKE, gives=_TAKEN),
        Route(
            "POST", "/q/{queue}/take", curl.take_one, Need.CONSUME, leader=True, proxied=True, query=_TAKE, gives=_TAKEN
        ),
        Route(
            "POST",
            "/q/{queue}/ack/{receipt}",
            curl.ack,
            Need.CONSUME,
            leader=True,
            proxied=True,
            gives={200: shown.PLAIN},
            problems=("gone",),
        ),
        Route("GET", "/healthz", cluster.health, Need.HEALTH, always=True, query=_HEALTH, gives={200: shown.HEALTH}),
        Route("HEAD", "/healthz", cluster.health, Need.HEALTH, always=True, query=_HEALTH, gives={200: shown.HEALTH}),
        Route(
            "GET",
            "/readyz",
            cluster.readiness,
            Need.NOTHING,
            always=True,
            gives={200: shown.PLAIN},
            problems=("no-leader", "stopping"),
        ),
        Route(
            "HEAD",
            "/readyz",
            cluster.readiness,
            Need.NOTHING,
            always=True,
            gives={200: shown.PLAIN},
            problems=("no-leader", "stopping"),
        ),
        Route("GET", "/metrics", metrics.scrape, Need.TOKEN, always=True, gives={200: shown.METRICS}),
        Route(
            "GET",
            "/metrics/detailed",
            metrics.scrape_detailed,
            Need.LISTED,
            always=True,
            query=frozenset({"queue", "prefix"}),
            gives={200: shown.METRICS},
        ),
        Route("GET", "/openapi.json", openapi.read, Need.TOKEN, gives={200: shown.DOCUMENT}),
        Route("GET", "/docs", docs_page.read, Need.TOKEN, gives={200: shown.PAGE}),
        Route("GET", "/docs/{asset}", docs_page.asset, Need.TOKEN, gives={200: shown.ASSET}, problems=("not-found",)),
        Route("GET", "/", cluster.welcome, Need.NOTHING, gives={200: shown.PLAIN}),
    ]


class Api:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.routes = Routes(routes())
        self.waiters = Waiters(lambda queue, groups: node.shard.stale().ready(queue, groups))
        self.leader = Leader(self)
        self.metrics = metrics.Metrics(self)
        self.oldest = stats.Oldest()
        #: Once a request that proposes: from its head until its command was handed to the shard, waits left out.
        self.parsed = Histogram()
        #: The OpenAPI document, once it was asked for.
        self.document: bytes | None = None
        #: Answers to what no route took, by status.
        self.unrouted: Counter[int] = Counter()
        #: How often a limit turned something away or cut it off, by its setting's name.
        self.met: Counter[str] = Counter()
        self.in_flight = 0
        #: The WebSockets.
        self.connections: set[Connection] = set()
        self.watch_of_tokens = auth.Watch(self)
        self.audit = audit.Audit()
        #: Operations of streams that were answered `forbidden`.
        self.forbidden = 0
        self.events = events.Events(self)
        self._watched: dict[web.RequestHandler, Callable[[], object]] = {}
        self._idle = asyncio.Event()
        self.front = Connections(self)

    # Life

    async def start(self, bound: socket.socket, ssl: SSLContext | None = None) -> None:
        """Listen on a bound socket and answer; with `ssl` by HTTPS alone. Raises OSError."""
        self.leader.secure = ssl is not None
        self.front.start(bound, ssl)

    async def drain(self, seconds: float) -> bool:
        """Once `node.stopping` is true: wake the waiters; whether all that was in flight is answered in `seconds`."""
        self.waiters.close()
        for connection in list(self.connections):
            connection.stop()
        self._idle.clear()
        try:
            async with asyncio.timeout(seconds):
                while self.in_flight:
                    await self._idle.wait()
                    self._idle.clear()
        except TimeoutError:
            return False
        return True

    async def stop(self, seconds: float = 0.0) -> None:
        """Drain for at most `seconds`, and close the socket and the connections."""
        await self.drain(seconds)
        self.front.close()
        self.front.server.pre_shutdown()
        await self.front.server.shutdown(_CUT_SECONDS)
        await self.leader.close()
        await self.oldest.close()
        self.audit.close()

    # What the shard tells

    def on_effects(self, effects: Iterable[Effect]) -> None:
        self.waiters.on_effects(effects)

    def on_role(self, role: str, leader: str | None, term: int) -> None:
        """Who leads has changed: waiters and WebSockets find out."""
        self.waiters.wake_all()
        self.events.led_by(role, leader, term)
        for connection in list(self.connections):
            connection.led_by(leader)

    # Requests

    @contextmanager
    def watch(self, request: web.BaseRequest, gone: Callable[[], object]) -> Iterator[None]:
        """Call `gone` when the client of the request closes the connection within the block."""
        connection = request.protocol
        self._watched[connection] = gone
        try:
            yield
        finally:
            self._watched.pop(connection, None)

    def connection_lost(self, connection: web.RequestHandler) -> None:
        gone = self._watched.pop(connection, None)
        if gone is not None:
            gone()

    async def handle(self, request: web.BaseRequest) -> Answer:
        """Answer any request: never raises but for a connection that broke, or a handler that is cancelled."""
        call = Call(self, request)
        self.in_flight += 1
        spare = cast("HttpConnection", request.protocol).spare
        try:
            answer = await self._answer(call, spare=spare)
        except Problem as problem:
            answer = problem.answer()
        except ShardError as error:
            answer = problems.of_shard(error).answer()
        except ConnectionError:
            # Whoever asked has gone: this is never sent.
            answer = Answer(status=499, close=True)
        except web.RequestPayloadError as error:
            answer = Problem("malformed", f"The body could not be read: {error}", close=True).answer()
        except Exception as error:
            if not call.gone:
                _log.exception("a request failed", method=request.method, target=token.redacted(call.target[:200]))
            detail = f"This is a defect of raftq ({type(error).__name__}); the node logged it."
            answer = Problem("internal", detail, applied="unknown", close=True).answer()
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
        if spare:
            answer.close = True
        self._count(call, answer.status)
        return answer

    async def _answer(self, call: Call, *, spare: bool) -> Answer:
        call.check_framing()
        path, mark, _ = call.target.partition("?")
        route, call.parameters = self.routes.find(call.request.method, path)
        call.route = route
        node = self.node
        call.negotiate()
        if node.stopping and not route.always:
            raise problems.stopping()
        if spare and not route.always:
            raise self.front.full()
        if node.tokens_required:
            auth.identify(call, route)
        elif hdrs.ORIGIN in call.request.headers:
            auth.refuse_foreign(call, route)
        if mark:
            call.take_query(route.query)
        if node.tokens_required and not auth.authorize(call, route):
            return await self._sent_on(call, route)
        if route.leader and not node.leads():
            return await self._sent_on(call, route)
        try:
            return await route.handler(call)
        except NotLeader:
            return await self._sent_on(call, route)

    async def _sent_on(self, call: Call, route: Route) -> Answer:
        answer = await self.leader.forward(call, route)
        call.sent_on = True
        return answer

    def over(self, limit: str, detail: str, kind: str = "overloaded", **fields: Any) -> Problem:
        """The limit of this setting is met: counts it, and says it."""
        self.met[limit] += 1
        return Problem(kind, detail, limit=limit, **fields)

    def _count(self, call: Call, status: int) -> None:
        route = call.route
        counted = self.unrouted if route is None else route.answered
        counted[status] += 1
        if not call.sent_on and (status in audit.REFUSALS or (route is not None and route.audited)):
            self.audit.tell(call, status)
