"""`/v1/stream` on a node that does not lead: frames go to the leader and back as they are.

Of each frame the ids alone are read, so that every operation is answered even when the leader dies: what it has not
answered is told as unknown. The WebSocket ends with 1012 when the leader's does, or when another node leads.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Literal

import aiohttp
import msgspec
from aiohttp import ClientWSTimeout, WSCloseCode, WSMsgType, web

from raftq.api import auth, leader, problems, sockets
from raftq.api.answers import JSON, Answer
from raftq.api.call import Call
from raftq.api.frames import FORMATS, Format, Id
from raftq.api.problems import Problem
from raftq.api.sockets import END_SECONDS, HEARTBEAT_SECONDS, Connection, Upgraded

#: The client's own mistakes, and the end of its token, which the leader names as it closes.
_PASSED_ON = frozenset(
    (
        WSCloseCode.OK,
        WSCloseCode.UNSUPPORTED_DATA,
        WSCloseCode.INVALID_TEXT,
        WSCloseCode.POLICY_VIOLATION,
        WSCloseCode.MESSAGE_TOO_BIG,
    )
)


async def stream(call: Call) -> Answer:
    """Raises Problem 400, 401, 429 and 503."""
    sockets.check_upgrade(call)
    protocol = sockets.protocol_of(call)
    headers = call.request.headers
    url = call.node.leader_url()
    if url is None or leader.FORWARDED in headers:
        raise problems.no_leader()
    call.api.leader.check_way(call, url)
    with call.api.leader.place():
        await _proxied(call, url, protocol)
    return Upgraded()


async def _proxied(call: Call, url: str, protocol: str) -> None:
    """Raises Problem 429 and 503."""
    headers = call.request.headers
    sent = [(name, value) for name, value in headers.items() if leader.is_sent(name)]
    try:
        upstream = await call.api.leader.session().ws_connect(
            url + call.target,
            headers=[*sent, (leader.FORWARDED, call.node.shard.status().node_id)],
            protocols=(protocol,),
            heartbeat=HEARTBEAT_SECONDS,
            timeout=ClientWSTimeout(ws_close=END_SECONDS),
            max_msg_size=0,
            decode_text=False,
            ssl=call.api.leader.trust(),
        )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if isinstance(error, aiohttp.WSServerHandshakeError) and error.status == 401:
            raise auth.unknown() from error
        detail = f"The leader at {url} could not be reached ({error}). Retry."
        raise Problem("unreachable-leader", detail, retry_after=1) from error
    try:
        socket = await sockets.accept(call, call.node.limits.batch_bytes)
        proxied = Proxied(call, socket, upstream, url, FORMATS[protocol])
        await proxied.serve()
    finally:
        await upstream.close()


class _Operation(msgspec.Struct, gc=False):
    id: Id


class _Item(msgspec.Struct, gc=False):
    """Of the leader: an answer, unless it has one of the others."""

    id: Id | None
    push: msgspec.Raw = msgspec.Raw()
    ended: msgspec.Raw = msgspec.Raw()


class _Ids:
    """Reads ids alone."""

    def __init__(self, form: Format) -> None:
        decoder = msgspec.json.Decoder if form.content_type is JSON else msgspec.msgpack.Decoder
        self._operations: Any = decoder(_Operation | list[_Operation])
        self._items: Any = decoder(list[_Item])

    def asked(self, data: bytes) -> list[int | str]:
        """None of a frame in which some operation has none: the leader names what is wrong with it."""
        try:
            found = self._operations.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return []
        return [one.id for one in found] if type(found) is list else [found.id]

    def answered(self, data: bytes) -> list[int | str | None]:
        return [one.id for one in self._items.decode(data) if not len(one.push) + len(one.ended)]


class Proxied(Connection):
    def __init__(
        self,
        call: Call,
        socket: web.WebSocketResponse,
        upstream: aiohttp.ClientWebSocketResponse[Literal[False]],
        url: str,
        form: Format,
    ) -> None:
        super().__init__(call, socket)
        self._node, self._upstream, self._url, self._format = call.node, upstream, url, form
        self._ids = _Ids(form)
        #: Sent to the leader, and not answered.
        self._asked: set[int | str | None] = set()
        self._idle = asyncio.Event()

    async def serve(self) -> None:
        self.api.connections.add(self)
        up, down = self.run(self._up()), self.run(self._down())
        try:
            self.led_by(None)
            if self._node.stopping:
                self.stop()
            code, _ = await self.ended()
            up.cancel()
            if code == WSCloseCode.GOING_AWAY:  # this node stops, not the leader
                await self._wait_for_answers()
            down.cancel()
            await self._tell_unknown()
        finally:
            self.ending = True
            up.cancel()
            down.cancel()
            self.api.connections.discard(self)
        await self.close()

    def led_by(self, leader: str | None) -> None:  # noqa: ARG002 - its URL says it
        if self._node.leader_url() != self._url:
            self.end(WSCloseCode.SERVICE_RESTART, "the leader has changed: connect again")

    async def _up(self) -> None:
        while True:
            message = await self.socket.receive()
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return self.end(WSCloseCode.OK, "")
            self._asked.update(self._ids.asked(message.data))
            try:
                await self._upstream.send_frame(message.data, message.type)
            except ConnectionError:
                return self._lost()

    async def _down(self) -> None:
        upstream = self._upstream
        while True:
            message = await upstream.receive()
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                code = upstream.close_code
                if message.type is WSMsgType.CLOSE and code in _PASSED_ON:
                    return self.end(code or WSCloseCode.OK, str(message.extra or ""))
                return self._lost()
            await self.socket.send_frame(message.data, message.type)
            self._asked.difference_update(self._ids.answered(message.data))
            if not self._asked:
                self._idle.set()

    def _lost(self) -> None:
        self.end(WSCloseCode.SERVICE_RESTART, "the connection to the leader has ended: connect again")

    async def _wait_for_answers(self) -> None:
        try:
            async with asyncio.timeout(END_SECONDS):
                while self._asked:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            pass

    async def _tell_unknown(self) -> None:
        if not self._asked or self.socket.closed:
            return
        detail = "The connection to the leader ended. Connect again, and retry with the same request_id or dedup_id."
        problem = Problem("outcome-unknown", detail, applied="unknown")
        items = [self._format.problem(name, problem) for name in self._asked]
        with suppress(ConnectionError):  # the client may have gone as well
            await self.socket.send_frame(self._format.frame(items), self._format.frame_type)
