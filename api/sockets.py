"""WebSockets on the low-level server: the handshake, and what every kind of them has in common.

A handler that upgrades its request returns `Upgraded` when the WebSocket has ended: the dispatch finds nothing left to
send. A `Connection` is told when the node stops, and when leadership moves, and says itself what it makes of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog
from aiohttp import WSCloseCode, hdrs, web

from raftq.api.answers import Answer
from raftq.api.call import Call
from raftq.api.frames import FORMATS
from raftq.api.problems import Problem

#: A client that stays silent so long is sent a ping, and has half as long to answer.
HEARTBEAT_SECONDS = 20.0
#: How long operations in flight, and then the client's own close frame, are waited for at the end.
END_SECONDS = 2.0
#: Of a close frame.
_REASON_BYTES_MAX = 120

_log = structlog.get_logger("raftq.api")


class Upgraded(Answer):
    """The end of a request that became a WebSocket: nothing is left to be sent."""

    def __init__(self) -> None:
        super().__init__(status=101, close=True)

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002 - it was prepared as a WebSocket
        self.keep_alive = False

    async def write_eof(self) -> None:
        """Nothing is left to be written."""


def protocol_of(call: Call) -> str:
    """The first subprotocol offered that there is; JSON when none is offered. Raises Problem 400."""
    offered = call.request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if offered is None:
        return next(iter(FORMATS))
    for name in offered.split(","):
        if name.strip() in FORMATS:
            return name.strip()
    raise Problem("malformed", f"Sec-WebSocket-Protocol: offer {' or '.join(FORMATS)}, or none for the first.")


def check_upgrade(call: Call) -> None:
    """Raises Problem 400."""
    if not web.WebSocketResponse(protocols=FORMATS).can_prepare(call.request):
        raise Problem("malformed", "This is a WebSocket (version 13): connect with a client for those, as websocat.")


async def accept(call: Call, bytes_max: int) -> web.WebSocketResponse:
    """Answer the handshake. A frame of more than `bytes_max` ends the connection with 1009. Raises Problem 400."""
    protocol_of(call)
    check_upgrade(call)
    socket = web.WebSocketResponse(
        protocols=FORMATS,
        heartbeat=HEARTBEAT_SECONDS,
        timeout=END_SECONDS,
        compress=False,
        max_msg_size=bytes_max,
        decode_text=False,
    )
    await socket.prepare(call.request)
    return socket


class Connection:
    """A WebSocket that the Api knows, from its handshake until its end."""

    def __init__(self, call: Call, socket: web.WebSocketResponse) -> None:
        self.api, self.socket = call.api, socket
        #: It ends when that is good no more. None: none is needed, or the leader looks after it.
        self.token = call.token
        if self.token is not None:
            self.api.watch_of_tokens.begin()
        #: It ends: nothing more is taken in.
        self.ending = False
        self._end: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def end(self, code: int, reason: str) -> None:
        """Begin to end; the first to say so gives code and reason."""
        self.ending = True
        if not self._end.done():
            self._end.set_result((code, reason))

    def stop(self) -> None:
        self.end(WSCloseCode.GOING_AWAY, "the node is stopping: connect to another")

    def led_by(self, leader: str | None) -> None:
        """Who leads, or the term, has changed."""

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """In a task beside; what it raises ends the connection."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._ran)
        return task

    def _ran(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        match error:
            case None:
                pass
            case ConnectionError():
                self.end(WSCloseCode.OK, "")  # the client has gone
            case Problem():
                self.end(WSCloseCode.INVALID_TEXT, error.detail)
            case _:
                _log.error("a WebSocket failed", exc_info=error)
                self.end(WSCloseCode.INTERNAL_ERROR, f"this is a defect of raftq ({type(error).__name__})")

    async def ended(self) -> tuple[int, str]:
        """Wait until `end`; the code and the reason that it was given."""
        return await self._end

    async def close(self) -> None:
        """With what `end` was given."""
        code, reason = await self._end
        await self.socket.close(code=code, message=reason.encode()[:_REASON_BYTES_MAX])


def wake(future: asyncio.Future[None] | None) -> None:
    """Whoever awaits it goes on."""
    if future is not None and not future.done():
        future.set_result(None)
