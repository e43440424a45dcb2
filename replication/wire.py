"""Frames: what two nodes say to each other over one connection, as bytes.

Owns the shape of a frame (a length in 4 bytes, big endian, then one msgpack value) and of the two frames that open a
connection. Never opens a socket, and never unpickles: what a peer sends is data, whoever the peer is.
Invariant: a frame's announced length is held against the limit before a byte of it is kept, and whatever is not exactly
one well-formed value of the kind expected raises Malformed and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import msgspec

#: To be raised when nodes of two versions cannot talk to each other: both sides refuse a difference.
PROTOCOL: Final = 1
FRAME_BYTES_MAX: Final = 64 << 20
#: Before a peer is known it may say a hello, and no more than that.
HELLO_BYTES_MAX: Final = 16 << 10
_PREFIX_BYTES: Final = 4

_T = TypeVar("_T")


class Malformed(Exception):
    """The peer sent bytes that are no frame of ours."""


class Hello(msgspec.Struct, tag="hello", tag_field="kind"):
    """Who a node is: the first frame of a connection, and the answer to it."""

    protocol: int
    cluster_id: str
    node_id: str
    node_uuid: str
    boot: int
    api_url: str
    peer_address: str
    version: str
    last_index: int
    term: int


class Refusal(msgspec.Struct, tag="refusal", tag_field="kind"):
    """The answer to a hello that was not accepted."""

    reason: str


class Splitter:
    """Cuts the bytes of one connection into frames."""

    __slots__ = ("_needed", "_partial", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._partial = bytearray()
        #: How long `_partial` must be before looking at it again is worth it.
        self._needed = _PREFIX_BYTES

    def feed(self, data: bytes) -> list[memoryview]:
        """The payloads that are whole now that `data` has arrived. Raises Malformed when one announces too much."""
        whole: bytes | bytearray = data
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return []
            whole, self._partial = self._partial, bytearray()
        return self._split(memoryview(whole))

    def _split(self, view: memoryview) -> list[memoryview]:
        frames, start = [], 0
        while (end := self._end(view, start)) <= len(view):
            frames.append(view[start + _PREFIX_BYTES : end])
            start = end
        self._needed = end - start
        self._partial += view[start:]
        return frames

    def _end(self, view: memoryview, start: int) -> int:
        """Where the frame at `start` ends, or where its length does while that has not arrived."""
        after = start + _PREFIX_BYTES
        if len(view) < after:
            return after
        length = int.from_bytes(view[start:after], "big")
        if length > self.limit:
            raise Malformed(f"a frame of more than the {self.limit} bytes allowed is announced")
        return after + length


def frame(value: object) -> bytearray:
    """One value as it goes over the wire. Raises ValueError when it is too long to be received."""
    data = bytearray(_PREFIX_BYTES)
    _encoder.encode_into(value, data, _PREFIX_BYTES)
    length = len(data) - _PREFIX_BYTES
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"a message of {length} bytes is over the {FRAME_BYTES_MAX} of a frame")
    data[:_PREFIX_BYTES] = length.to_bytes(_PREFIX_BYTES, "big")
    return data


def opening(payload: memoryview) -> Hello | Refusal:
    """The first frame of a connection, from either side."""
    return _decode(_openings.decode, payload)


def message(payload: memoryview) -> dict[str, Any]:
    """Every further frame."""
    return _decode(_messages.decode, payload)


def _decode(decode: Callable[[memoryview], _T], payload: memoryview) -> _T:
    try:
        return decode(payload)
    except (ValueError, RecursionError) as error:  # msgspec's own errors, and those of text that is not UTF-8
        raise Malformed(f"not a message: {error}") from None


def _no_extensions(code: int, _data: memoryview) -> NoReturn:
    raise ValueError(f"extension type {code}")


_encoder = msgspec.msgpack.Encoder()
_openings: msgspec.msgpack.Decoder[Hello | Refusal] = msgspec.msgpack.Decoder(Hello | Refusal)
_messages = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_no_extensions)
