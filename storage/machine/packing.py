"""How messages lie in bytes: one blob for many, written once by the front end and kept as it is.

A blob is `u32 count`, then `count` times `u32 end` (offset after message i, from the start of the data), then the data.
A message is `u8 kind, u8 group_bytes, u16 attributes_bytes, group, attributes, body`; attributes are a JSON object as
text (empty: none), the body of kind JSON is JSON text, of kind BINARY raw bytes. Integers are little-endian. With bit 7
of `kind` an `Extension` stands before the body: `u16 bytes`, then a msgpack array of its fields.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec

#: Kinds of body.
JSON = 0
BINARY = 1
#: Bit of `kind`: the message has an extension.
EXTENDED = 0x80

#: A blob holds at most this many bytes, or one message.
BLOB_BYTES_MAX = 64 * 1024

#: The head of a message with a JSON body and neither group nor attributes: nearly every message.
PLAIN_JSON = b"\0\0\0\0"

_HEAD = struct.Struct("<BBH")
_COUNT = struct.Struct("<I")
_SINGLE = struct.Struct("<II")
_U16 = struct.Struct("<H")
_LITTLE = sys.byteorder == "little"


class DeadLetter(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Where a dead-lettered message comes from, and why."""

    #: Its last queue (a queue key), and its place there.
    queue: str
    queue_number: int
    priority: int
    number: int
    #: "max_failures", "rejected", "rejected: <why>" or "retention".
    reason: str
    #: Counted in that queue.
    failures: int
    deliveries: int
    #: Wall time.
    enqueued_at_ms: int
    dead_at_ms: int


class Extension(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What few messages have. Fields are only ever added at the end. At most 65,535 bytes when packed."""

    dead: DeadLetter | None = None
    #: How often the message went back from a dead-letter queue.
    redriven: int = 0
    replace_key: str | None = None


_encode_extension = msgspec.msgpack.Encoder().encode
_decode_extension = msgspec.msgpack.Decoder(Extension).decode


class Message(NamedTuple):
    kind: int
    group: str
    #: A JSON object as text, or b"".
    attributes: bytes
    body: bytes
    extension: Extension | None = None


def pack_message(
    body: bytes,
    *,
    kind: int = JSON,
    group: bytes = b"",
    attributes: bytes = b"",
    extension: Extension | None = None,
) -> bytes:
    if extension is not None:
        return extended(pack_message(body, kind=kind, group=group, attributes=attributes), extension)
    if not group and not attributes:
        return (PLAIN_JSON if kind == JSON else b"\1\0\0\0") + body
    return b"".join((_HEAD.pack(kind, len(group), len(attributes)), group, attributes, body))


def unpack_message(data: bytes) -> Message:
    kind, group_bytes, attributes_bytes = _HEAD.unpack_from(data)
    body = 4 + group_bytes + attributes_bytes
    group, attributes = data[4 : 4 + group_bytes].decode(), data[4 + group_bytes : body]
    if kind < EXTENDED:
        return Message(kind, group, attributes, data[body:])
    end = body + 2 + int(_U16.unpack_from(data, body)[0])
    return Message(kind ^ EXTENDED, group, attributes, data[end:], _decode_extension(data[body + 2 : end]))


def group_of(data: bytes, start: int = 0) -> bytes:
    """The group key of the message that begins at `start`; b"" when it has none."""
    return data[start + 4 : start + 4 + data[start + 1]]


def _extension_at(data: bytes) -> int:
    """Where the extension of the packed message begins, or would."""
    _, group_bytes, attributes_bytes = _HEAD.unpack_from(data)
    return 4 + int(group_bytes) + int(attributes_bytes)


def extension_of(data: bytes) -> Extension | None:
    """The extension of a packed message."""
    if data[0] < EXTENDED:
        return None
    start = _extension_at(data)
    return _decode_extension(data[start + 2 : start + 2 + int(_U16.unpack_from(data, start)[0])])


def extended(data: bytes, extension: Extension) -> bytes:
    """The packed message with this extension instead of the one that it had, or none when it says nothing."""
    start = body = _extension_at(data)
    if data[0] >= EXTENDED:
        body += 2 + int(_U16.unpack_from(data, start)[0])
    kind = data[0] & ~EXTENDED
    if extension == _NOTHING:
        return b"".join((bytes((kind,)), data[1:start], data[body:]))
    encoded = _encode_extension(extension)
    return b"".join((bytes((kind | EXTENDED,)), data[1:start], _U16.pack(len(encoded)), encoded, data[body:]))


_NOTHING = Extension()


def pack(messages: Sequence[bytes]) -> bytes:
    """A blob of packed messages."""
    if len(messages) == 1:
        return _SINGLE.pack(1, len(messages[0])) + messages[0]
    ends = array("I", accumulate(map(len, messages)))
    if not _LITTLE:
        ends.byteswap()
    return b"".join((_COUNT.pack(len(messages)), ends.tobytes(), *messages))


def count(blob: bytes | memoryview, offset: int = 0) -> int:
    return int(_COUNT.unpack_from(blob, offset)[0])


def unpack(blob: bytes, first: int = 0, number: int | None = None, offset: int = 0) -> list[bytes]:
    """`number` packed messages of the blob that starts at `offset` of `blob`, from the `first` (0-based) on."""
    total = count(blob, offset)
    last = total if number is None else min(total, first + number)
    ends = array("I")
    ends.frombytes(blob[offset + 4 + 4 * max(first - 1, 0) : offset + 4 + 4 * last])
    if not _LITTLE:
        ends.byteswap()
    base = offset + 4 + 4 * total
    start = base + (ends.pop(0) if first else 0)
    stops = [base + end for end in ends]
    return [blob[begin:stop] for begin, stop in zip([start, *stops], stops, strict=False)]


def without(blob: bytes, gone: int, offset: int = 0) -> bytes:
    """The blob at `offset` of `blob` with nothing left of the messages whose bits are set in `gone`: the others keep
    their positions, and an empty message stands for each of these."""
    messages = unpack(blob, offset=offset)
    bits = f"{gone:0{len(messages)}b}"[::-1]
    return pack([b"" if bit == "1" else message for bit, message in zip(bits, messages, strict=True)])


def count_valid(blob: bytes) -> int:
    """The number of messages in the blob, 0 when it is not a blob of at least one."""
    size = len(blob)
    if size < 8:
        return 0
    number = int(_COUNT.unpack_from(blob)[0])
    if not 0 < number <= (size - 4) // 4 or int(_COUNT.unpack_from(blob, 4 * number)[0]) != size - 4 - 4 * number:
        return 0
    return number


def join(blobs: Sequence[bytes]) -> bytes:
    """One blob of the messages of several."""
    if len(blobs) == 1:
        return blobs[0]
    ends: list[int] = []
    pieces: list[bytes] = []
    base = 0
    for blob in blobs:
        number = count(blob)
        pieces.append(blob[4 + 4 * number :])
        if number == 1:
            ends.append(base + len(blob) - 8)
        else:
            ends += [base + end for end in struct.unpack_from(f"<{number}I", blob, 4)]
        base = ends[-1]
    return b"".join((struct.pack(f"<I{len(ends)}I", len(ends), *ends), *pieces))
