"""The way to the leader: a redirect, or a proxy for clients that cannot follow one.

A request is forwarded at most once: the one that is marked so and meets a node that does not lead is told that there is
no leader. What is said of its outcome is true: `applied: no` only of a read, or when the leader was never reached.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Literal
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs
from yarl import URL

from raftq.api import problems
from raftq.api.answers import Answer
from raftq.api.call import FORWARD, Call
from raftq.api.problems import Problem
from raftq.api.routing import Route

#: Marks a request that another node forwarded.
FORWARDED = "Raftq-Forwarded"

_CONNECT_SECONDS = 2.0
#: Longer than the longest wait by this.
_SPARE_SECONDS = 15.0
_CHUNK_BYTES = 256 * 1024

#: Not passed on: they belong to one connection, or are made anew.
_NOT_SENT = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
    )
)
_NOT_RETURNED = frozenset(
    (
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "content-type",
        "date",
        "server",
    )
)
#: Characters of a target that stand for themselves in a Location.
_SAFE = "/?&=%:;,+!$'()*@~-._[]"


class Leader:
    """The session to the leader is opened with the first request that is proxied."""

    def __init__(self, wait_seconds: float) -> None:
        read = wait_seconds + _SPARE_SECONDS
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=read)
        #: How to trust a leader at https, asked for every request; None: as the system does.
        self.ssl: Callable[[], ssl.SSLContext] | None = None
        #: This node is reached by TLS alone.
        self.secure = False
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, auto_decompress=False)
        return self._session

    def trust(self) -> ssl.SSLContext | Literal[True]:
        """For a connection to the leader."""
        return True if self.ssl is None else self.ssl()

    def check_way(self, call: Call, url: str) -> None:
        """A token that came by TLS does not go on without. Raises Problem 503."""
        if self.secure and hdrs.AUTHORIZATION in call.request.headers and not url.startswith("https:"):
            detail = f"The leader at {url} has no TLS yet, and a token is not sent there from here. Retry."
            raise Problem("unreachable-leader", detail, retry_after=1)

    async def forward(self, call: Call, route: Route) -> Answer:
        """Raises Problem 503."""
        headers = call.request.headers
        url = call.node.leader_url()
        if url is None or FORWARDED in headers:
            raise problems.no_leader()
        proxied = route.proxied or headers.get(FORWARD) == "proxy" or hdrs.AUTHORIZATION in headers
        return await self._proxied(call, route, url) if proxied else _redirected(call, url)

    async def _proxied(self, call: Call, route: Route, url: str) -> Answer:
        self.check_way(call, url)
        limits = call.node.limits
        body = await call.read(limits.batch_bytes if route.large else limits.request_bytes)
        sent = asyncio.ensure_future(self._send(call, route, url, body))
        with call.api.watch(call.request, sent.cancel):
            try:
                return await sent
            except asyncio.CancelledError:
                if call.gone:
                    raise ConnectionResetError("the client closed the connection") from None
                sent.cancel()
                raise

    async def _send(self, call: Call, route: Route, url: str, body: bytes) -> Answer:
        reads = call.request.method == "GET" and not route.proxied
        headers = [(name, value) for name, value in call.request.headers.items() if is_sent(name)]
        headers += [(FORWARDED, call.node.shard.status().node_id), (hdrs.CONTENT_LENGTH, str(len(body)))]
        try:
            async with self.session().request(
                call.request.method,
                URL(url + call.target, encoded=True),
                data=None if reads and not body else _once(body),
                headers=headers,
                # One without a type is JSON: it must not become octet-stream on its way.
                skip_auto_headers=[hdrs.CONTENT_TYPE],
                allow_redirects=False,
                ssl=self.trust(),
            ) as response:
                return _returned(response, await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            detail = f"The leader at {url} could not be reached ({error}). Retry."
            raise Problem("unreachable-leader", detail, retry_after=1) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            detail = f"The connection to the leader at {url} failed after sending ({type(error).__name__}). Retry"
            if reads:
                raise Problem("unreachable-leader", f"{detail}.", retry_after=1) from error
            detail += " with the same request_id or dedup_id."
            raise Problem("outcome-unknown", detail, applied="unknown", retry_after=1) from error


def is_sent(header: str) -> bool:
    """To the leader, with a request that is proxied."""
    name = header.lower()
    return name not in _NOT_SENT and not name.startswith("sec-websocket-")


async def _once(body: bytes) -> AsyncIterator[bytes]:
    """The body in pieces. aiohttp's client repeats a GET, PUT or DELETE by itself when its connection breaks, but none
    whose body comes from a generator, be it an empty one: what may take effect is sent once."""
    for at in range(0, len(body), _CHUNK_BYTES):
        yield body[at : at + _CHUNK_BYTES]


def _returned(response: aiohttp.ClientResponse, body: bytes) -> Answer:
    headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _NOT_RETURNED]
    return Answer(body, response.status, response.headers.get(hdrs.CONTENT_TYPE, ""), headers)


def _redirected(call: Call, url: str) -> Answer:
    # As it came, but for what a header cannot hold.
    location = url + quote(call.target.encode("utf-8", "surrogateescape"), safe=_SAFE)
    detail = f"The leader is at {url}: follow Location (curl -L), or send {FORWARD}: proxy."
    problem = Problem("not-leader", detail)
    return Answer(problem.body(), problem.status, problems.CONTENT_TYPE, [(hdrs.LOCATION, location)])
