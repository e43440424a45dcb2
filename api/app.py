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
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from raftq.api import cluster, curl, leases, messages, metrics, problems, queues, settlements
from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.leader import Leader
from raftq.api.ports import Node
from raftq.api.problems import Problem
from raftq.api.routing import Route, Routes
from raftq.api.waiters import Waiters
from raftq.replication.shard import NotLeader, ShardError
from raftq.storage.machine.replies import Effect

_log = structlog.get_logger("raftq.api")

#: What is still in flight when the front is closed is cut off after this.
_CUT_SECONDS = 0.5

_READ = frozenset({"consistency"})
_PAGE = _READ | {"limit", "cursor"}
_QUEUE = "/v1/queues/{queue}"


def routes() -> list[Route]:
    """The table. `leader`: only the leader can do it. A read finds that out by itself, unless it may be stale."""
    return [
        Route("PUT", _QUEUE, queues.define, leader=True),
        Route("GET", _QUEUE, queues.read, query=_READ),
        Route("PATCH", _QUEUE, queues.change, leader=True),
        Route("DELETE", _QUEUE, queues.remove, leader=True),
        Route("GET", "/v1/queues", queues.list_all, query=_PAGE | {"prefix", "stats"}),
        Route("POST", f"{_QUEUE}/messages", messages.enqueue, leader=True, large=True),
        Route("GET", f"{_QUEUE}/messages", messages.peek, query=_PAGE | {"state"}),
        Route("GET", f"{_QUEUE}/messages/{{id}}", messages.read_one, query=_READ),
        Route("POST", f"{_QUEUE}/lease", leases.lease, leader=True),
        Route("POST", f"{_QUEUE}/ack", settlements.ack, leader=True),
        Route("POST", f"{_QUEUE}/nack", settlements.nack, leader=True),
        Route("POST", f"{_QUEUE}/release", settlements.release, leader=True),
        Route("POST", f"{_QUEUE}/extend", settlements.extend, leader=True),
        Route("GET", f"{_QUEUE}/stats", queues.stats, query=_READ),
        Route("GET", "/v1/stats", queues.stats_of_all, query=_READ),
        Route("GET", "/v1/cluster", cluster.describe),
        Route("POST", "/v1/cluster/leader", cluster.transfer, leader=True),
        Route("POST", "/v1/cluster/nodes", cluster.add, leader=True),
        Route("DELETE", "/v1/cluster/nodes/{node}", cluster.remove, leader=True),
        Route("GET", "/v1/cluster/digest", cluster.digest, leader=True),
        Route("GET", "/v1/cluster/snapshot", cluster.snapshot),
        Route("POST", "/q/{queue}", curl.put, leader=True, proxied=True, large=True),
        Route("GET", "/q/{queue}", curl.take_one, leader=True, proxied=True, query=frozenset({"wait", "lease"})),
        Route("POST", "/q/{queue}/take", curl.take_one, leader=True, proxied=True, query=frozenset({"wait", "lease"})),
        Route("POST", "/q/{queue}/ack/{receipt}", curl.ack, leader=True, proxied=True),
        Route("GET", "/healthz", cluster.health, always=True),
        Route("HEAD", "/healthz", cluster.health, always=True),
        Route("GET", "/readyz", cluster.readiness, always=True),
        Route("HEAD", "/readyz", cluster.readiness, always=True),
        Route("GET", "/metrics", metrics.scrape, always=True),
        Route("GET", "/", cluster.welcome),
    ]


class Api:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.routes = Routes(routes())
        self.waiters = Waiters(lambda queue: node.shard.stale().ready(queue))
        self.leader = Leader(node.limits.wait_seconds)
        self.metrics = metrics.Metrics(self)
        #: Answers to what no route took, by status.
        self.unrouted: Counter[int] = Counter()
        self.in_flight = 0
        self._watched: dict[web.RequestHandler, Callable[[], object]] = {}
        self._idle = asyncio.Event()
        self._server: _Server | None = None
        self._listener: asyncio.Server | None = None

    # Life

    async def start(self, bound: socket.socket) -> None:
        """Listen on a bound socket and answer."""
        self._server = _Server(self)
        self._listener = await asyncio.get_running_loop().create_server(self._server, sock=bound, backlog=1024)

    async def drain(self, seconds: float) -> bool:
        """Once `node.stopping` is true: wake the waiters; whether all that was in flight is answered in `seconds`."""
        self.waiters.close()
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
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(_CUT_SECONDS)
        await self.leader.close()

    # What the shard tells

    def on_effects(self, effects: Iterable[Effect]) -> None:
        self.waiters.on_effects(effects)

    def on_role(self, role: str, leader: str | None, term: int) -> None:
        """Who leads has changed: waiters find out."""
        del role, leader, term
        self.waiters.wake_all()

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
        try:
            answer = await self._answer(call)
        except Problem as problem:
            answer = _answered(problem)
        except ShardError as error:
            answer = _answered(problems.of_shard(error))
        except ConnectionError:
            # Whoever asked has gone: this is never sent.
            answer = Answer(status=499, close=True)
        except web.RequestPayloadError as error:
            answer = _answered(Problem("malformed", f"The body could not be read: {error}", close=True))
        except Exception as error:
            if not call.gone:
                _log.exception("a request failed", method=request.method, target=call.target[:200])
            detail = f"This is a defect of raftq ({type(error).__name__}); the node logged it."
            answer = _answered(Problem("internal", detail, applied="unknown", close=True))
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
        self._count(call, answer.status)
        return answer

    async def _answer(self, call: Call) -> Answer:
        path, mark, _ = call.target.partition("?")
        route, call.parameters = self.routes.find(call.request.method, path)
        call.route = route
        node = self.node
        if node.stopping and not route.always:
            raise problems.stopping()
        if mark:
            call.take_query(route.query)
        call.negotiate()
        if route.leader and not node.leads():
            return await self.leader.forward(call, route)
        try:
            return await route.handler(call)
        except NotLeader:
            return await self.leader.forward(call, route)

    def _count(self, call: Call, status: int) -> None:
        counted = self.unrouted if call.route is None else call.route.answered
        counted[status] += 1


def _answered(problem: Problem) -> Answer:
    return Answer(problem.body(), problem.status, problems.CONTENT_TYPE, problem.headers(), problem.close)


class _Server(web.Server):
    """Tells the Api of connections that clients closed."""

    def __init__(self, api: Api) -> None:
        limits = api.node.limits
        super().__init__(
            cast("Any", api.handle),
            access_log=None,
            logger=_http_log(),
            auto_decompress=False,
            keepalive_timeout=limits.keepalive_seconds,
            lingering_time=limits.linger_seconds,
        )
        self._api = api

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._api.connection_lost(handler)


def _http_log() -> logging.Logger:
    """aiohttp's own, without the tracebacks of what clients sent that is no HTTP: it is answered 400."""
    logger = logging.getLogger("raftq.api.http")
    logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return not isinstance(error, HttpProcessingError | ConnectionError)
