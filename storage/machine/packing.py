"""How messages lie in bytes: one blob for many, written once by the front end and kept as it is.

A blob is `u32 count`, then `count` times `u32 end` (offset after message i, from the start of the data), then the data.
A message is `u8 kind, u8 group_bytes, u16 attributes_bytes, group, attributes, body`; attributes are a JSON object as
text (empty: none), the body of kind JSON is JSON text, of kind BINARY raw bytes. Integers are little-endian.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

#: Kinds of body.
JSON = 0
BINARY = 1

#: A blob holds at most this many bytes, or one message.
BLOB_BYTES_MAX = 64 * 1024

#: The head of a message with a JSON body and neither group nor attributes: nearly every message.
PLAIN_JSON = b"\0\0\0\0"

_HEAD = struct.Struct("<BBH")
_COUNT = struct.Struct("<I")
_SINGLE = struct.Struct("<II")
_LITTLE = sys.byteorder == "little"


class Message(NamedTuple):
    kind: int
    group: str
    #: A JSON object as text, or b"".
    attributes: bytes
    body: bytes


def pack_message(body: bytes, *, kind: int = JSON, group: bytes = b"", attributes: bytes = b"") -> bytes:
    if not group and not attributes:
        return (PLAIN_JSON if kind == JSON else b"\1\0\0\0") + body
    return b"".join((_HEAD.pack(kind, len(group), len(attributes)), group, attributes, body))


def unpack_message(data: bytes) -> Message:
    kind, group_bytes, attributes_bytes = _HEAD.unpack_from(data)
    body = 4 + group_bytes + attributes_bytes
    return Message(kind, data[4 : 4 + group_bytes].decode(), data[4 + group_bytes : body], data[body:])


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
    out = []
    for end in ends:
        out.append(blob[start : base + end])
        start = base + end
    return out


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
    number = count(blob)
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
