"""One request while it is answered: its parts decoded on demand, its body read within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web

from raftq.api import names, problems
from raftq.api.answers import JSON, Answer
from raftq.api.problems import Problem
from raftq.api.schemas import Schema
from raftq.storage.machine.records import TokenRecord

if TYPE_CHECKING:
    from raftq.api.app import Api
    from raftq.api.routing import Route

T = TypeVar("T")

MSGPACK = "application/msgpack"
#: Asks for the proxy to the leader: `Raftq-Forward: proxy`.
FORWARD = "Raftq-Forward"
_TYPES: dict[str | None, str] = {
    None: JSON,
    JSON: JSON,
    "text/json": JSON,
    MSGPACK: MSGPACK,
    "application/x-msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
}
#: Bytes that a request line's query may have in parameters.
_QUERY_FIELDS_MAX = 20


class Call:
    __slots__ = (
        "_body",
        "answer_type",
        "api",
        "came",
        "content_type",
        "node",
        "parameters",
        "query",
        "request",
        "route",
        "sent_on",
        "target",
        "token",
    )

    def __init__(self, api: Api, request: web.BaseRequest) -> None:
        #: Monotonic seconds; 0 once it was told how long it took to be taken in.
        self.came = monotonic()
        self.api = api
        self.node = api.node
        self.request = request
        #: None as long as nobody asked for it, and where none is needed.
        self.token: TokenRecord | None = None
        #: Another node answers it.
        self.sent_on = False
        #: None until it is found.
        self.route: Route | None = None
        #: Path and query as they came.
        self.target = _target(request)
        #: The path's parameters, decoded, in order.
        self.parameters: list[str] = []
        #: The query's parameters, of those that the route takes.
        self.query: dict[str, str] = {}
        self._body: bytes | None = None
        #: What the client sent (empty: neither) and what it wants back: JSON or MSGPACK.
        self.content_type = JSON
        self.answer_type = JSON

    def check_framing(self) -> None:
        """Raises Problem 400 when another reader, as a proxy before this node, could find another end of the request.
        One with a length beside a coding, or with two lengths, is refused by aiohttp."""
        request = self.request
        if request.version != HttpVersion11 and request.version != HttpVersion10:
            raise Problem("malformed", "Send HTTP/1.1.", close=True)
        coding = request.headers.get(hdrs.TRANSFER_ENCODING)
        if coding is not None and (coding.lower() != "chunked" or request.version == HttpVersion10):
            raise Problem("malformed", "Transfer-Encoding: is chunked alone, in HTTP/1.1.", close=True)

    def negotiate(self) -> None:
        """Take the namespace, Content-Type and Accept. The second counts only when there is a body to decode."""
        headers = self.request.headers
        names.enter(headers.get(names.NAMESPACE_HEADER))
        if headers.get(FORWARD, "proxy") != "proxy":
            raise Problem("invalid", f"{FORWARD}: is proxy, or left out.")
        content_type = headers.get(hdrs.CONTENT_TYPE)
        self.content_type = _TYPES.get(content_type) or _media_type(content_type)
        accept = headers.get(hdrs.ACCEPT)
        self.answer_type = self.content_type or JSON
        if accept is not None and accept != "*/*":
            self.answer_type = _wanted(accept, self.answer_type)

    @property
    def queue(self) -> str:
        """The queue of the path, as commands and views name it: `default/jobs`. Raises Problem 422."""
        return names.queue_key(self.parameters[0])

    @property
    def body(self) -> bytes:
        """What `read` or `decode` took in."""
        assert self._body is not None
        return self._body

    @property
    def gone(self) -> bool:
        """The client has closed the connection."""
        transport = self.request.transport
        return transport is None or transport.is_closing()

    def watch(self, gone: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `gone` when the client goes within the block."""
        return self.api.watch(self.request, gone)

    def take_query(self, allowed: frozenset[str]) -> None:
        """Fill `query`. Raises Problem for one that is not `allowed`, or is given twice."""
        text = self.target.partition("?")[2].partition("#")[0]
        try:
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS_MAX)
        except ValueError as error:
            raise Problem("malformed", "The query string could not be read: percent-encode it as UTF-8.") from error
        for name, value in pairs:
            if name not in allowed:
                takes = ", ".join(sorted(allowed)) or "none"
                raise problems.invalid(f"query.{name}", f"there is no such query parameter here; there are: {takes}")
            if name in self.query:
                raise problems.invalid(f"query.{name}", "give it once")
            self.query[name] = value

    async def read(self, bytes_max: int) -> bytes:
        """The body. Raises Problem 413 before it takes in more than `bytes_max`, 408 when it does not arrive."""
        if self._body is None:
            content = self.request.content
            # Nearly always head and body came in one packet: then there is nothing to wait for.
            body = content.read_nowait() if content.is_eof() else await self._receive(bytes_max)
            if len(body) > bytes_max:
                raise _too_large(bytes_max)
            if hdrs.CONTENT_ENCODING in self.request.headers:
                raise Problem("unsupported-media-type", "Send the body uncompressed, without Content-Encoding.")
            self._body = body
        return self._body

    async def _receive(self, bytes_max: int) -> bytes:
        if (self.request.content_length or 0) > bytes_max:
            raise _too_large(bytes_max)
        await self._invite()
        body = bytearray()
        try:
            async with asyncio.timeout(self.node.limits.read_seconds):
                while chunk := await self.request.content.readany():
                    body += chunk
                    if len(body) > bytes_max:
                        raise _too_large(bytes_max)
        except TimeoutError as error:
            detail = "The body did not arrive in time: send it at once."
            raise self.api.over("body_seconds_max", detail, "timeout", close=True) from error
        return bytes(body)

    async def _invite(self) -> None:
        """Answer `Expect: 100-continue`, which curl sends before a large body: the limits allow it."""
        expect = self.request.headers.get(hdrs.EXPECT)
        if expect is None:
            return
        if expect.lower() != "100-continue":
            raise Problem("expectation-failed", "Only Expect: 100-continue is understood.", close=True)
        await self.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def decode(self, schema: Schema[T], *, large: bool = False) -> T:
        """The body as `schema` has it; no body is an empty object. Raises Problem 400, 413, 415 or 422."""
        if not self.content_type and self.request.body_exists:
            raise _not_understood(self.request.headers.get(hdrs.CONTENT_TYPE, ""))
        limits = self.node.limits
        body = self._body
        if body is None:
            body = await self.read(limits.batch_bytes if large else limits.request_bytes)
        try:
            if self.content_type is JSON:
                # msgspec checks the syntax of what it keeps raw, but not that it is UTF-8.
                if not body.isascii():
                    body.decode()
                return schema.json.decode(body or b"{}")
            return schema.msgpack.decode(body or b"\x80")
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise problems.undecodable(error) from error

    def answer(self, value: Any, status: int = 200, headers: list[tuple[str, str]] | None = None) -> Answer:
        if self.answer_type is JSON:
            return Answer(msgspec.json.encode(value), status, JSON, headers or ())
        return Answer(msgspec.msgpack.encode(value), status, MSGPACK, headers or ())


def _target(request: web.BaseRequest) -> str:
    target = request.raw_path
    # The absolute form that a forward proxy may send, or `*`.
    return target if target.startswith("/") else str(request.rel_url)


def _too_large(bytes_max: int) -> Problem:
    return problems.too_large("request", f"The request is over {bytes_max:,} bytes: send less in one.", close=True)


def _media_type(content_type: str | None) -> str:
    """JSON or MSGPACK, or nothing when it is neither."""
    media, _, parameters = (content_type or "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    return _TYPES.get(media.strip().lower(), "") if charset in ("", "charset=utf-8", "charset=utf8") else ""


def _not_understood(content_type: str) -> Problem:
    detail = f"{content_type[:100]} is not understood here: send Content-Type: {JSON} (or {MSGPACK})."
    return Problem("unsupported-media-type", detail)


def _wanted(accept: str, default: str) -> str:
    """The first of the media types in `accept` that we have; the default when there is none, as browsers need it."""
    for item in accept.split(","):
        media = item.partition(";")[0].strip().lower()
        if media == "*/*":
            return default
        if media in _TYPES:
            return _TYPES[media]
    return default
