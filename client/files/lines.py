"""How a line stands in a message, for the writer and the reader alike.

A line is the body of a message, as bytes. A line over the body limit lies in parts in a queue of its own, its side
queue, and a pointer with an empty body stands at its place. Attributes:

raftq_open_end  true: the file ended without a `\\n` after this line
raftq_line      on a pointer: the side queue
raftq_parts     on a pointer: how many messages lie there
raftq_bytes     on a pointer: the length of the line
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from raftq.client.models import Attribute, LeasedMessage, NewMessage

_OPEN_END: dict[str, Attribute] = {"raftq_open_end": True}
_NAME_BYTES_MAX = 128
#: A side queue is peeked at and deleted on the word of a message: only a name that a writer made up is believed.
_SIDE_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,80}\.line-[0-9a-f]{32}-[0-9]{1,12}")


class Pointer(msgspec.Struct, frozen=True):
    side_queue: str
    parts: int
    line_bytes: int


class Piece(msgspec.Struct, frozen=True):
    """What a leased message gives to the output: a line, or where it lies."""

    content: bytes | Pointer
    open_end: bool


def side_queue(queue: str, run: str, batch: int) -> str:
    name = f"{queue[:80]}.line-{run}-{batch}"
    assert len(name) <= _NAME_BYTES_MAX, name
    return name


def messages(lines: list[bytes], *, open_end: bool) -> list[NewMessage]:
    """`open_end` is said of the last of `lines`."""
    made = [NewMessage(body=line) for line in lines]
    if open_end:
        made[-1].attributes = dict(_OPEN_END)
    return made


def pointer_message(pointer: Pointer, *, open_end: bool) -> NewMessage:
    attributes: dict[str, Attribute] = {
        "raftq_line": pointer.side_queue,
        "raftq_parts": pointer.parts,
        "raftq_bytes": pointer.line_bytes,
    }
    return NewMessage(body=b"", attributes=attributes | (_OPEN_END if open_end else {}))


def piece(message: LeasedMessage) -> Piece:
    """Of any message: bytes are taken as they are, a text as its UTF-8, other values as their JSON text."""
    open_end = message.attributes.get("raftq_open_end") is True
    return Piece(_pointer(message.attributes) or _body(message.body), open_end)


def _pointer(attributes: dict[str, Any]) -> Pointer | None:
    if "raftq_line" not in attributes:
        return None
    side_queue, parts, line_bytes = (attributes.get(key) for key in ("raftq_line", "raftq_parts", "raftq_bytes"))
    if not isinstance(side_queue, str) or not _SIDE_QUEUE.fullmatch(side_queue):
        return None
    return Pointer(side_queue, parts, line_bytes) if isinstance(parts, int) and isinstance(line_bytes, int) else None


def _body(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else msgspec.json.encode(body)
