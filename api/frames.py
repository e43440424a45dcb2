"""The frames of `/v1/stream`: operations as they come, answers as they go, in JSON text or msgpack binary.

A frame is decoded once, into the very structs that the HTTP routes decode. When it does not fit them, its operations
are decoded one by one, so that each bad one is answered by its own id and the others are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import WSMsgType
from msgspec import Meta

from raftq.api import problems
from raftq.api.answers import JSON
from raftq.api.call import MSGPACK
from raftq.api.problems import Problem
from raftq.api.schemas import EnqueueGiven, ExtendGiven, LeaseGiven, LeaseSeconds, NackGiven, ReceiptsGiven, RejectGiven

ID_CHARACTERS_MAX = 128
#: Chosen by the client, echoed with the answer.
Id = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)] | Annotated[str, Meta(max_length=ID_CHARACTERS_MAX)]
#: Messages that a subscription may have credit for.
CREDIT_MAX = 10_000
Credit = Annotated[int, Meta(ge=0, le=CREDIT_MAX)]


class Enqueue(EnqueueGiven, tag_field="op", tag="enqueue", kw_only=True, forbid_unknown_fields=True, gc=False):
    id: Id
    queue: str


class Lease(LeaseGiven, tag_field="op", tag="lease", kw_only=True, forbid_unknown_fields=True, gc=False):
    id: Id
    queue: str


class Ack(ReceiptsGiven, tag_field="op", tag="ack", kw_only=True, forbid_unknown_fields=True, gc=False):
    id: Id
    queue: str


class Nack(NackGiven, tag_field="op", tag="nack", kw_only=True, forbid_unknown_fields=True, gc=False):
    id: Id
    queue: str


class Release(ReceiptsGiven, tag_field="op", tag="release", kw_only=True, forbid_unknown_fields=True, gc=False):
    id: Id
    queue: str


class Reject(RejectGiven, tag_field="op", tag="reject", kw_only=True, forbid_unknown_fields=True, gc=False):
    id: Id
    queue: str


class Extend(ExtendGiven, tag_field="op", tag="extend", kw_only=True, forbid_unknown_fields=True, gc=False):
    id: Id
    queue: str


class Subscribe(msgspec.Struct, tag_field="op", tag="subscribe", kw_only=True, forbid_unknown_fields=True, gc=False):
    """Its id names the subscription from then on."""

    id: Id
    queue: str
    lease_seconds: LeaseSeconds | None = None
    credit: Credit


class AddCredit(msgspec.Struct, tag_field="op", tag="credit", forbid_unknown_fields=True, gc=False):
    id: Id
    subscription: Id
    credit: Credit


class Unsubscribe(msgspec.Struct, tag_field="op", tag="unsubscribe", forbid_unknown_fields=True, gc=False):
    id: Id
    subscription: Id


Settlement = Ack | Nack | Release | Reject | Extend
Operation = Enqueue | Lease | Ack | Nack | Release | Reject | Extend | Subscribe | AddCredit | Unsubscribe


class Bad(msgspec.Struct, gc=False):
    """An operation that could not be read. `id` is None when not even that could."""

    id: int | str | None
    problem: Problem


class _Named(msgspec.Struct, gc=False):
    id: Id


class Format:
    """One of the two encodings. All that goes out is a list, however short."""

    content_type: str
    frame_type: WSMsgType
    _decoder: Any
    _one: Any
    _raw: Any
    _named: Any

    def decode(self, data: bytes) -> Sequence[Operation | Bad]:
        """Raises Problem 400 when it is no JSON or msgpack at all."""
        try:
            try:
                found = self._decoder.decode(data)
            except msgspec.ValidationError:
                return [self._decode_one(one) for one in self._split(data)]
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise problems.undecodable(error) from error
        return found if type(found) is list else [found]

    def _split(self, data: bytes) -> Sequence[bytes | msgspec.Raw]:
        try:
            found: list[msgspec.Raw] = self._raw.decode(data)
        except msgspec.ValidationError:
            return [data]
        return found

    def _decode_one(self, data: bytes | msgspec.Raw) -> Operation | Bad:
        try:
            operation: Operation = self._one.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            return Bad(self._id_of(data), problems.undecodable(error))
        return operation

    def _id_of(self, data: bytes | msgspec.Raw) -> int | str | None:
        try:
            named: _Named = self._named.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            return None
        return named.id

    def encode(self, value: Any) -> bytes:
        raise NotImplementedError

    def frame(self, items: list[bytes]) -> bytes:
        raise NotImplementedError

    def item(self, name: int | str | None, kind: bytes, body: bytes) -> bytes:
        """`kind`, of at most 31 letters: answer, problem, push or ended; `body` is encoded."""
        raise NotImplementedError

    def enqueued(self, name: int | str, message_id: bytes, duplicate: bool, index: int) -> bytes:
        """The answer to the enqueue of one message."""
        raise NotImplementedError

    def problem(self, name: int | str | None, problem: Problem) -> bytes:
        return self.item(name, b"problem", self.encode(problem.document()))


class Json(Format):
    content_type = JSON
    frame_type = WSMsgType.TEXT
    _decoder = msgspec.json.Decoder(Operation | list[Operation])
    _one = msgspec.json.Decoder(Operation)
    _raw = msgspec.json.Decoder(list[msgspec.Raw])
    _named = msgspec.json.Decoder(_Named)

    def decode(self, data: bytes) -> Sequence[Operation | Bad]:
        # msgspec checks the syntax of what it keeps raw, but not that it is UTF-8.
        if not data.isascii():
            try:
                data.decode()
            except UnicodeError as error:
                raise problems.undecodable(error) from error
        return super().decode(data)

    def encode(self, value: Any) -> bytes:
        return msgspec.json.encode(value)

    def frame(self, items: list[bytes]) -> bytes:
        return b"[%b]" % b",".join(items)

    def item(self, name: int | str | None, kind: bytes, body: bytes) -> bytes:
        return b'{"id":%b,"%b":%b}' % (msgspec.json.encode(name), kind, body)

    def enqueued(self, name: int | str, message_id: bytes, duplicate: bool, index: int) -> bytes:
        return b'{"id":%b,"answer":{"messages":[{"id":"%b","duplicate":%b}],"index":%d}}' % (
            b"%d" % name if type(name) is int else msgspec.json.encode(name),
            message_id,
            b"true" if duplicate else b"false",
            index,
        )


class Msgpack(Format):
    content_type = MSGPACK
    frame_type = WSMsgType.BINARY
    _decoder = msgspec.msgpack.Decoder(Operation | list[Operation])
    _one = msgspec.msgpack.Decoder(Operation)
    _raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
    _named = msgspec.msgpack.Decoder(_Named)

    def encode(self, value: Any) -> bytes:
        return msgspec.msgpack.encode(value)

    def frame(self, items: list[bytes]) -> bytes:
        head = b"\xdd" + len(items).to_bytes(4, "big")
        return head + b"".join(items)

    def item(self, name: int | str | None, kind: bytes, body: bytes) -> bytes:
        return b"\x82\xa2id%b%c%b%b" % (_encode(name), 0xA0 | len(kind), kind, body)

    def enqueued(self, name: int | str, message_id: bytes, duplicate: bool, index: int) -> bytes:
        return b"\x82\xa2id%b\xa6answer\x82\xa8messages\x91\x82\xa2id\xd9%c%b\xa9duplicate%b\xa5index%b" % (
            _encode(name),
            len(message_id),
            message_id,
            b"\xc3" if duplicate else b"\xc2",
            _encode(index),
        )


_encode = msgspec.msgpack.Encoder().encode
FORMATS: dict[str, Format] = {"raftq.v1.json": Json(), "raftq.v1.msgpack": Msgpack()}
