"""The connections of clients: how many there are, how large and how slow a request's head may be, and who is cut.

Owns the listening socket. A connection is refused as it is accepted, before anything is made for it; the event loop's
own server would take all that come. Beyond `connections` a few more are let in, on which health is told and everything
else refused: who looks after a full node still gets an answer.

What is slow costs no look at what is not. Heads that have not come stand in one line, the oldest first, with one timer;
who does not read is cut by the kernel (TCP_USER_TIMEOUT), which knows what was read, also of what is being closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, cast

import structlog
from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.web_protocol import _ErrInfo

from raftq.api import problems
from raftq.api.problems import Problem

if TYPE_CHECKING:
    from raftq.api.app import Api

#: Beyond `connections`: for anybody's look at the node's health, and then for this machine's own.
SPARE = 64
SPARE_LOCAL = 16
#: Requests that came behind the one that is being answered: with so many, no more is read.
PIPELINED_MAX = 4
_BACKLOG = 1024
#: In one pass of the loop.
_ACCEPTED_MAX = 64
#: Until it is tried again, when the system has no descriptor or memory for one more.
_PAUSE_SECONDS = 0.1
#: Heads that are due within it are cut together.
_SLACK_SECONDS = 0.1

_log = structlog.get_logger("raftq.api")


class Connections:
    def __init__(self, api: Api) -> None:
        self.api = api
        self.limits = limits = api.node.limits
        #: Of aiohttp: knows the connections, and ends them.
        self.server = web.Server(cast("Any", api.handle))
        self.options: dict[str, Any] = {
            "access_log": None,
            "logger": _http_log(),
            "auto_decompress": False,
            "keepalive_timeout": limits.keepalive_seconds,
            "lingering_time": limits.linger_seconds,
            "max_line_size": limits.target_bytes,
            "max_field_size": limits.field_bytes,
            "max_headers": limits.fields,
        }
        #: Accepted and not closed, also those that still shake hands.
        self.open = 0
        self._of_client: Counter[str] = Counter()
        #: Whose head has not come, and since when; the oldest first.
        self._heads: OrderedDict[HttpConnection, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._bound: socket.socket | None = None
        #: The last one could not be accepted, and that is logged.
        self._short = False
        self._ssl: ssl.SSLContext | None = None

    # Life

    def start(self, bound: socket.socket, ssl: ssl.SSLContext | None) -> None:
        """Raises OSError when it cannot be listened on."""
        bound.setblocking(False)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # whoever is accepted inherits it
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self.limits.write_seconds * 1000))
        bound.listen(_BACKLOG)
        self._bound, self._ssl = bound, ssl
        self._listen()

    def close(self) -> None:
        """Accept no more. What is open stays so."""
        if self._bound is not None:
            self._loop.remove_reader(self._bound)
            self._bound.close()
            self._bound = None
        for task in self._beginning:
            task.cancel()

    def _listen(self) -> None:
        if self._bound is not None:
            self._loop.add_reader(self._bound, self._accept)

    # In

    def _accept(self) -> None:
        assert self._bound is not None
        for _ in range(_ACCEPTED_MAX):
            try:
                accepted, address = self._bound.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # it has gone already
            except OSError as error:
                # Out of descriptors, as a rule. Those who wait keep their place: it is asked again in a moment.
                if not self._short:
                    _log.warning("no connection can be accepted", reason=error.strerror)
                self._short = True
                self._loop.remove_reader(self._bound)
                self._loop.call_later(_PAUSE_SECONDS, self._listen)
                return
            self._short = False
            self._take(accepted, address[0])

    def _take(self, accepted: socket.socket, host: str) -> None:
        limits = self.limits
        most = limits.connections + SPARE + (SPARE_LOCAL if _address(host).is_loopback else 0)
        client = _client(host) if limits.connections_per_client else ""
        if self.open >= most:
            self._turn_away(accepted, self.full())
        elif client and self._of_client[client] >= limits.connections_per_client:
            detail = f"One client may have {limits.connections_per_client:,} connections: close some."
            self._turn_away(accepted, self._full("connections_per_client_max", detail))
        else:
            connection = HttpConnection(self, client, spare=self.open >= limits.connections)
            self.open += 1
            self._of_client[client] += 1
            task = self._loop.create_task(self._begin(accepted, connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, accepted: socket.socket, connection: HttpConnection) -> None:
        # Only a TLS handshake takes time.
        patience = None if self._ssl is None else self.limits.head_seconds
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=self._ssl, ssl_handshake_timeout=patience
            )
        except BaseException as error:
            if not connection.made:
                accepted.close()
                self._forget(connection)
            if isinstance(error, ConnectionAbortedError):  # the handshake took too long
                self.api.met["head_seconds_max"] += 1
            if not isinstance(error, OSError):
                raise

    def full(self) -> Problem:
        detail = f"The node has {self.limits.connections:,} connections, and takes no more: try another, or later."
        return self._full("connections_max", detail)

    def _full(self, limit: str, detail: str) -> Problem:
        return self.api.over(limit, detail, "too-many-connections", retry_after=1, close=True)

    def _turn_away(self, accepted: socket.socket, problem: Problem) -> None:
        try:
            if self._ssl is None:
                accepted.setblocking(False)
                accepted.send(_as_bytes(problem))
                # What is left unread would make the close a reset, which may overtake the answer.
                accepted.recv(65536)
        except OSError:
            pass
        finally:
            accepted.close()

    # What connections tell

    def await_head(self, connection: HttpConnection) -> None:
        """It is cut unless `head_came` follows in time."""
        self._heads[connection] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self.limits.head_seconds, self._cut_slow)

    def head_came(self, connection: HttpConnection) -> None:
        self._heads.pop(connection, None)

    def lost(self, connection: HttpConnection, error: BaseException | None) -> None:
        if isinstance(error, TimeoutError):
            self.api.met["write_seconds_max"] += 1
        self._forget(connection)
        self.api.connection_lost(connection)

    def _forget(self, connection: HttpConnection) -> None:
        self.open -= 1
        self._of_client[connection.client] -= 1
        if not self._of_client[connection.client]:
            del self._of_client[connection.client]
        self._heads.pop(connection, None)

    def _cut_slow(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._heads:
            connection, since = next(iter(self._heads.items()))
            due = since + self.limits.head_seconds
            if due > now + _SLACK_SECONDS / 2:
                self._timer = self._loop.call_at(max(due, now + _SLACK_SECONDS), self._cut_slow)
                return
            del self._heads[connection]
            connection.end_slow()


class HttpConnection(web.RequestHandler):
    """One connection, as aiohttp serves it, with the bounds that aiohttp does not have."""

    __slots__ = ("_awaited", "_body", "_connections", "_head_bytes", "_refused", "client", "made", "spare")

    def __init__(self, connections: Connections, client: str, *, spare: bool) -> None:
        super().__init__(connections.server, loop=connections._loop, **connections.options)
        #: Whom it counts for; empty where that does not matter.
        self.client = client
        #: It is beyond the limit: health alone is told.
        self.spare = spare
        #: It is open, or was: what counts for it is given back when it is lost.
        self.made = False
        self._connections = connections
        #: The last request's, while it has not all come.
        self._body: StreamReader | None = None
        #: Of a head that has not all come.
        self._head_bytes = 0
        #: It stands in the line of heads that are waited for.
        self._awaited = True
        #: Nothing more is read.
        self._refused = False
        # What comes behind a request that takes long would else be 32 requests, each with a body in memory.
        self._max_msg_queue_size = PIPELINED_MAX
        self._msg_queue_resume_size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made = True
        super().connection_made(transport)
        self._connections.await_head(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._connections.lost(self, exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        before = self._request_count
        super().data_received(data)
        if came := self._request_count - before:
            if self._head_bytes or len(data) > self._connections.limits.head_bytes:
                self._check_heads(came)
            if self._awaited:
                self._awaited = False
                self._connections.head_came(self)
            message, body = self._messages[-1]
            self._refused = isinstance(message, _ErrInfo)
            self._body = None if body.is_eof() else body
        elif self._body is not None:
            if self._body.is_eof():
                self._body = None
        elif not self._upgraded and data.strip():
            self._part_came(len(data))

    def _part_came(self, size: int) -> None:
        """Of a head. What came in one piece with the request before it counts once the head is whole."""
        if not self._awaited:
            self._awaited = True
            self._connections.await_head(self)
        self._head_bytes += size
        if self._head_bytes > self._connections.limits.head_bytes:
            self._refuse(self._head_too_large())

    def _check_heads(self, came: int) -> None:
        """Of the last `came` requests, when one may be over the limit for whole heads."""
        self._head_bytes = 0
        for place in range(-came, 0):
            message, _ = self._messages[place]
            if isinstance(message, _ErrInfo):
                continue
            size = len(message.path) + sum(len(name) + len(value) for name, value in message.raw_headers)
            if size > self._connections.limits.head_bytes:
                for _ in range(-place):
                    self._messages.pop()
                self._refuse(self._head_too_large())
                break

    def _head_too_large(self) -> Problem:
        return self._over("head_bytes_max", f"A request's head takes {self._connections.limits.head_bytes:,} bytes")

    def end_slow(self) -> None:
        """The head that was waited for has not come."""
        self._awaited = False
        detail = "The head of the request did not arrive in time: send it at once."
        problem = self._connections.api.over("head_seconds_max", detail, "timeout", close=True)
        if self._head_bytes:
            self._refuse(problem)
        else:
            self.force_close()

    def _process_keepalive(self) -> None:
        ended = self._force_close
        super()._process_keepalive()
        if self._force_close and not ended:
            self._connections.api.met["idle_seconds_max"] += 1

    def _refuse(self, problem: Problem) -> None:
        """Answer so, once what came before is answered, and close."""
        self._refused = True
        self._messages.append((_ErrInfo(problem.status, problem, problem.detail), EMPTY_PAYLOAD))
        self._request_count += 1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no request that could be handled."""
        if not isinstance(exc, Problem | HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        problem = exc if isinstance(exc, Problem) else self._no_request(exc)
        self._connections.api.unrouted[problem.status] += 1
        return cast("Any", problem.answer())  # type: ignore[no-any-return]

    def _no_request(self, error: HttpProcessingError) -> Problem:
        limits = self._connections.limits
        match error:
            case LineTooLong(args=(_, limits.field_bytes, _)):
                return self._over("field_bytes_max", f"A header takes {limits.field_bytes:,} bytes")
            case LineTooLong():
                detail = f"A target takes {limits.target_bytes:,} bytes"
                return self._over("target_bytes_max", detail, "target-too-long")
            case BadHttpMessage(message="Too many headers received"):
                return self._over("fields_max", f"A request takes {limits.fields:,} headers")
        # The first words of the parser; what follows them shows what was sent, which may be secret.
        what = error.message.partition(":")[0].strip()[:100]
        return Problem("malformed", f"This is no HTTP/1.1 request: {what}.", close=True)

    def _over(self, limit: str, detail: str, kind: str = "headers-too-large") -> Problem:
        return self._connections.api.over(limit, f"{detail}: send less.", kind, close=True)


def _client(host: str) -> str:
    """Whom a connection counts for: of IPv6 addresses a client has 2^64."""
    address = _address(host)
    return str(address if address.version == 4 else ipaddress.IPv6Network((address, 64), strict=False))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = None if isinstance(address, ipaddress.IPv4Address) else address.ipv4_mapped
    return mapped or address


def _as_bytes(problem: Problem) -> bytes:
    """The answer to a request that was not read."""
    body = problem.body()
    headers = [*problem.headers(), ("Content-Type", problems.CONTENT_TYPE), ("Connection", "close")]
    lines = [f"HTTP/1.1 {problem.status} {problem.title}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _http_log() -> logging.Logger:
    """aiohttp's own, without the tracebacks of what clients sent that is no HTTP: it is answered 400."""
    logger = logging.getLogger("raftq.api.http")
    logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return not isinstance(error, HttpProcessingError | ConnectionError)
