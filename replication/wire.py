"""Frames: what two nodes say to each other over one connection, as bytes.

Owns the shape of a frame (a length in 4 bytes, big endian, then one msgpack value), of the two frames that open a
connection, and of every message that follows (`MESSAGES`); what `security` adds to them is its own. Never opens a
socket, and never unpickles: what a peer sends is data, whoever the peer is.
Invariant: a frame's announced length is held against the limit before a byte of it is kept, and whatever is not exactly
one well-formed value of the kind expected raises Malformed and nothing else. So a message that reaches the cycle has
all its fields, each of its type.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NoReturn, TypedDict

import msgspec
from msgspec import Meta

#: To be raised when nodes of two versions cannot talk to each other: both sides refuse a difference.
PROTOCOL: Final = 2
FRAME_BYTES_MAX: Final = 64 << 20
#: Before a peer is known it may say a hello, and no more than that.
HELLO_BYTES_MAX: Final = 16 << 10
#: And so many frames in one piece: it proves what it knows, or says hello, and waits for the answer.
HELLO_FRAMES_MAX: Final = 2
PREFIX_BYTES: Final = 4


Buffer = bytes | bytearray | memoryview


class Malformed(Exception):
    """The peer sent bytes that are no frame of ours."""


#: An index, a term, a count: never negative, and it fits 8 bytes on disk with room for one more.
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 2)]
#: Short enough for a few of them, and a refusal that repeats them, to fit HELLO_BYTES_MAX.
Name = Annotated[str, Meta(max_length=512)]


class Hello(msgspec.Struct, tag="hello", tag_field="kind"):
    """Who a node is: the first frame of a connection, and the answer to it. What protocol 1 did not have has a default,
    so that a node of it is refused for its protocol and not for a hello that cannot be read."""

    protocol: int
    cluster_id: Name
    node_id: Name
    node_uuid: Name
    boot: Number
    api_url: Name
    peer_address: Name
    version: Name
    last_index: Number
    term: Number
    #: Log index of the newest configuration in its log; 0: that of the bootstrap.
    config_index: Number = 0
    #: It is in that configuration.
    member: bool = True
    #: And so is this very folder, by its uuid.
    named: bool = False
    #: The highest machine version that it can run.
    machine_version: Number = 1
    lane: Literal["main", "bulk"] = "main"
    #: The node that the connection is meant for; "" in an answer.
    to: Name = ""


class Refusal(msgspec.Struct, tag="refusal", tag_field="kind"):
    """The answer to a hello that was not accepted."""

    reason: str
    #: The refused folder must never take part again under this name.
    final: bool = False
    #: Log index of the configuration by which it was refused.
    config_index: Number = 0
    #: What the node is held to have acknowledged, of a log that its hello says is shorter.
    acknowledged: Number = 0


_VOTE_ASKED: Final = {"term": Number, "last_index": Number, "last_term": Number, "transfer": bool}
_VOTE_ANSWERED: Final = {"term": Number, "asked": Number, "granted": bool}
#: Its type byte, and what it is.
_Command = Annotated[bytes, Meta(min_length=1)]
#: May be before 1970 on a node whose clock was never set.
_Wall = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]

#: Kind -> the fields beside `type` that each message of it has. A field that is not named here does not arrive.
MESSAGES: Final[dict[str, dict[str, Any]]] = {
    "append": {
        "term": Number,
        "round": Number,
        "prev_index": Number,
        "prev_term": Number,
        "commit": Number,
        "compact": Number,
        "entries": list[tuple[Number, _Command]],
        "wall": _Wall,
        "lease": Number,
    },
    "append_answer": {
        "term": Number,
        "round": Number,
        "ok": bool,
        "match": Number,
        "prev_index": Number,
        "hint": Number,
        "applied": Number,
        "wall": _Wall,
        "low": bool,
    },
    "prevote": _VOTE_ASKED,
    "prevote_answer": _VOTE_ANSWERED,
    "vote": _VOTE_ASKED,
    "vote_answer": _VOTE_ANSWERED,
    "timeout_now": {"term": Number},
    "echo": {"term": Number, "round": Number},
    "ping": {},
    "digest": {"index": Number, "digest": str},
    "roster": {"known": dict[str, tuple[str, Number, Number]]},
    "snapshot_offer": {"term": Number, "index": Number, "snapshot_term": Number, "bytes": Number, "id": str},
    "snapshot_ask": {"term": Number, "id": str, "offset": Number},
    "snapshot_chunk": {"term": Number, "id": str, "offset": Number, "data": bytes, "checksum": int},
}


class Splitter:
    """Cuts the bytes of one connection into frames."""

    __slots__ = ("_needed", "_partial", "limit", "trailer")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Bytes that follow each payload, are not counted in its length, and are given out with it.
        self.trailer = 0
        self._partial = bytearray()
        #: How long `_partial` must be before looking at it again is worth it.
        self._needed = PREFIX_BYTES

    def feed(self, data: bytes) -> list[memoryview]:
        """The payloads that are whole now that `data` has arrived. Raises Malformed when one announces too much, or who
        is not known says too many."""
        whole: bytes | bytearray = data
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return []
            whole, self._partial = self._partial, bytearray()
        return self._split(memoryview(whole))

    def _split(self, view: memoryview) -> list[memoryview]:
        frames: list[memoryview] = []
        start = 0
        while (end := self._end(view, start)) <= len(view):
            if len(frames) == HELLO_FRAMES_MAX and self.limit <= HELLO_BYTES_MAX:
                raise Malformed(f"more than {HELLO_FRAMES_MAX} frames at once before it is known")
            frames.append(view[start + PREFIX_BYTES : end])
            start = end
        self._needed = end - start
        self._partial += view[start:]
        return frames

    def _end(self, view: memoryview, start: int) -> int:
        """Where the frame at `start` ends, or where its length does while that has not arrived."""
        after = start + PREFIX_BYTES
        if len(view) < after:
            return after
        length = int.from_bytes(view[start:after], "big")
        if length > self.limit:
            raise Malformed(f"a frame of more than the {self.limit} bytes allowed is announced")
        return after + length + self.trailer


def frame(value: object) -> bytearray:
    """One value as it goes over the wire. Raises ValueError when it is too long to be received."""
    data = bytearray(PREFIX_BYTES)
    _encoder.encode_into(value, data, PREFIX_BYTES)
    length = len(data) - PREFIX_BYTES
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"a message of {length} bytes is over the {FRAME_BYTES_MAX} of a frame")
    data[:PREFIX_BYTES] = length.to_bytes(PREFIX_BYTES, "big")
    return data


def framed(payload: bytes) -> bytes:
    """Bytes that are no value of msgpack, as a frame."""
    return len(payload).to_bytes(PREFIX_BYTES, "big") + payload


def opening(payload: memoryview) -> Hello | Refusal:
    """The first frame of a connection, from either side."""
    try:
        return _openings.decode(payload)
    except _UNDECODABLE as error:
        raise Malformed(f"not an opening: {error}") from None


def message(payload: memoryview) -> dict[str, Any] | None:
    """Every further frame, as its kind in `MESSAGES` says; None for a kind that only a newer node knows."""
    try:
        decoder = _decoders.get(_kinds.decode(payload).type)
        return None if decoder is None else decoder.decode(payload)
    except _UNDECODABLE as error:
        raise Malformed(f"not a message: {error}") from None


def _no_extensions(code: int, _data: memoryview) -> NoReturn:
    raise ValueError(f"extension type {code}")


class _Kind(msgspec.Struct, gc=False):
    """A message, but for all that is not its kind."""

    type: str


#: msgspec's own errors, and those of text that is not UTF-8, are ValueErrors.
_UNDECODABLE: Final = (ValueError, RecursionError)

_encoder = msgspec.msgpack.Encoder()
_openings: msgspec.msgpack.Decoder[Hello | Refusal] = msgspec.msgpack.Decoder(Hello | Refusal)
_kinds = msgspec.msgpack.Decoder(_Kind, ext_hook=_no_extensions)
_decoders: dict[str, msgspec.msgpack.Decoder[dict[str, Any]]] = {
    kind: msgspec.msgpack.Decoder(TypedDict(kind, {"type": str, **fields}), ext_hook=_no_extensions)  # type: ignore[operator]
    for kind, fields in MESSAGES.items()
}
