"""An answer on its way to the socket: status, headers and body laid out as bytes once, written once.

`aiohttp.web.Server` asks three things of what a handler returns: `prepare`, `write_eof` and `keep_alive`. Giving it
those instead of a `web.Response` saves 13 us a request (multidicts, header objects and their serialisation): more than
all else that the front end does for one message. It is sent through aiohttp's own writer, with its backpressure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from aiohttp import HttpVersion10, web

JSON = "application/json"

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Answer:
    __slots__ = ("_request", "body", "close", "content_type", "headers", "keep_alive", "status")

    def __init__(
        self,
        body: bytes = b"",
        status: int = 200,
        content_type: str = JSON,
        headers: Iterable[tuple[str, str]] = (),
        close: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.close = close
        self.keep_alive: bool | None = None

    async def prepare(self, request: web.BaseRequest) -> None:
        self._request = request
        self.keep_alive = request.keep_alive and not self.close

    async def write_eof(self) -> None:
        request = self._request
        head = self._head(len(self.body))
        writer = request.writer
        await writer.write(head if request.method == "HEAD" else head + self.body)
        # aiohttp waits for none but large answers; small ones, asked for and not read, would pile up.
        if request.protocol.writing_paused:
            await writer.drain()

    def _head(self, body_bytes: int) -> bytes:
        plain = self.keep_alive and not self.headers and self._request.version != HttpVersion10
        return b"%b%b%b%b\r\n" % (
            _status_line(self.status, self.content_type),
            _date(int(time.time())),
            b"" if plain else self._more_headers(),
            b"" if self.status == 204 else b"Content-Length: %d\r\n" % body_bytes,
        )

    def _more_headers(self) -> bytes:
        lines = [f"{name}: {value}" for name, value in self.headers]
        lines.append("Connection: keep-alive" if self.keep_alive else "Connection: close")
        # A value never holds a line break: it is ours, or was percent-encoded.
        assert not any("\r" in line or "\n" in line for line in lines), lines
        return "".join(line + "\r\n" for line in lines).encode("latin-1", "replace")


class Streamed(Answer):
    """An answer whose body the handler itself has sent, piece by piece. One that was not sent whole ends the
    connection, so that its client knows."""

    __slots__ = ("_left",)

    async def begin(self, request: web.BaseRequest, body_bytes: int) -> None:
        await super().prepare(request)
        self._left = body_bytes
        await request.writer.write(self._head(body_bytes))

    async def send(self, piece: bytes) -> None:
        self._left -= len(piece)
        await self._request.writer.write(piece)

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002 - it has begun
        self.keep_alive = self.keep_alive and not self._left

    async def write_eof(self) -> None:
        """Nothing is left to be written."""


@lru_cache(256)
def _status_line(status: int, content_type: str) -> bytes:
    typed = f"Content-Type: {content_type}\r\n" if content_type else ""
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\nServer: raftq\r\n{typed}".encode()


@lru_cache(2)
def _date(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
