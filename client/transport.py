"""One HTTP exchange with one node, and nothing more: no retry, no redirect, no idea of a leader. (Of a GET alone a
second attempt may be made when a connection breaks.)

What went wrong is told in the only terms that matter above: `NotSent` (the node cannot have seen the request) or `Lost`
(it may have). Whatever is not certainly the first is the second.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aiohttp

_PIECE_BYTES = 256 * 1024
#: A POST or PATCH is never repeated by aiohttp, and a GET may be.
_SENT_PLAINLY = frozenset(("GET", "POST", "PATCH"))
#: Of a WebSocket: how long its handshake takes at most; after how long a silent node is sent a ping.
_HANDSHAKE_SECONDS = 5.0
_HEARTBEAT_SECONDS = 20.0


class NotSent(Exception):
    """The node was not reached: the request cannot have been applied."""


class Distrusted(NotSent):
    """Whoever answers there does not show a certificate of the authorities that are trusted: it was told nothing."""


class Lost(Exception):
    """The request left and no whole answer came back."""


class Headers(dict[str, str]):
    """Of a request. Shown without the token, so that no traceback or log of a program holds it."""

    def __repr__(self) -> str:
        return repr({name: "..." if name == "Authorization" else value for name, value in self.items()})


class Exchange(NamedTuple):
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    timeout_seconds: float


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Socket(Protocol):
    async def send(self, frame: bytes) -> None:
        """Raises Lost."""
        ...

    async def receive(self) -> bytes:
        """The next frame. Raises Lost when there is none any more."""
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    async def send(self, exchange: Exchange) -> Answer:
        """Raises NotSent or Lost."""
        ...

    async def receive(self, exchange: Exchange, take: Callable[[bytes], Awaitable[None]]) -> Answer:
        """As `send`, but the body of a 200 goes to `take` piece by piece, and not into the answer. The exchange may
        take as long as it needs, if something comes every `timeout_seconds`. What `take` raises passes, but for what
        an exchange raises: OSError, TimeoutError."""
        ...

    async def connect(self, url: str, headers: Mapping[str, str], protocol: str) -> Socket | Answer:
        """A WebSocket, or the answer that refuses it, its body left out. Raises NotSent or Lost."""
        ...

    async def close(self) -> None: ...


class AiohttpTransport:
    """A pool of connections; it opens its session at the first exchange, in the loop that runs then.

    ca_file: the authorities of the nodes' certificates, in PEM; None: those of the system. Raises ValueError for a file
    that holds none.
    """

    def __init__(self, *, connect_seconds: float = 2.0, ca_file: str | Path | None = None) -> None:
        self._connect_seconds = connect_seconds
        self._ssl = True if ca_file is None else _trusting(ca_file)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, exchange: Exchange) -> Answer:
        timeout = aiohttp.ClientTimeout(total=exchange.timeout_seconds, sock_connect=self._connect_seconds)
        async with self._answered(exchange, timeout) as response:
            return Answer(response.status, response.headers, await response.read())

    async def receive(self, exchange: Exchange, take: Callable[[bytes], Awaitable[None]]) -> Answer:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_seconds, sock_read=exchange.timeout_seconds
        )
        async with self._answered(exchange, timeout) as response:
            if response.status != 200:
                return Answer(response.status, response.headers, await response.read())
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                await take(piece)
            return Answer(response.status, response.headers, b"")

    async def connect(self, url: str, headers: Mapping[str, str], protocol: str) -> Socket | Answer:
        try:
            async with asyncio.timeout(self._connect_seconds + _HANDSHAKE_SECONDS):
                return _AiohttpSocket(
                    await self._opened().ws_connect(
                        url, headers=headers, protocols=(protocol,), heartbeat=_HEARTBEAT_SECONDS, max_msg_size=0
                    )
                )
        except aiohttp.WSServerHandshakeError as error:
            return Answer(error.status, error.headers or {}, b"")
        except aiohttp.ClientConnectorCertificateError as error:
            raise _distrusted(url, error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotSent(f"{url} cannot be reached: {_cause(error)}") from error

    @asynccontextmanager
    async def _answered(
        self, exchange: Exchange, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Raises NotSent and Lost for all that goes wrong with the connection within the block."""
        try:
            async with self._opened().request(
                exchange.method, exchange.url, **_sent_once(exchange), timeout=timeout, allow_redirects=False
            ) as response:
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise Distrusted(
                f"{exchange.url} is not trusted ({_cause(error)}): is it another CA, or another host?"
            ) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise NotSent(f"{exchange.url} cannot be reached: {_cause(error)}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Lost(str(error) or type(error).__name__) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Unlimited: who waits for a connection in the pool would have its timeout run before it was sent.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl))
        return self._session

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _AiohttpSocket:
    """Implements Socket, with binary frames."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send_bytes(frame)
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(_cause(error)) from error

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            data: bytes = message.data
            return data
        raise Lost(f"closed with {self._socket.close_code} {message.extra or ''}".rstrip())

    async def close(self) -> None:
        await self._socket.close()


def _sent_once(exchange: Exchange) -> dict[str, Any]:
    """Body and headers for aiohttp. It repeats a PUT or DELETE by itself when its connection breaks, but none whose
    body comes from a generator, be it an empty one."""
    body, headers = exchange.body or b"", exchange.headers
    if exchange.method in _SENT_PLAINLY and len(body) <= _PIECE_BYTES:
        return {"data": exchange.body, "headers": headers}
    headers = {**headers, "Content-Length": str(len(body))}
    # Of an empty body it would say that it is octet-stream.
    return {"data": _pieces(body), "headers": headers, "skip_auto_headers": ["Content-Type"]}


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), _PIECE_BYTES):
        yield body[at : at + _PIECE_BYTES]


def _trusting(ca_file: str | Path) -> ssl.SSLContext:
    """Of these authorities alone. Raises ValueError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise ValueError(f"{ca_file} holds no certificate in PEM") from error
    except OSError as error:
        raise ValueError(f"cannot read {ca_file}: {error.strerror}") from error


def _distrusted(url: str, error: Exception) -> Distrusted:
    return Distrusted(
        f"{url} is not trusted ({_cause(error)}): it needs another CA, or a name that its certificate has"
    )


def _cause(error: Exception) -> str:
    """What the system says: aiohttp adds words that are of no use to a person."""
    if isinstance(below := getattr(error, "certificate_error", None), ssl.SSLCertVerificationError):
        return below.verify_message
    below = getattr(error, "os_error", error)
    return getattr(below, "strerror", None) or str(below) or type(below).__name__
